"""python benchmarks/faults.py --data alpaca_data.json: the fault detectors on Alpaca.

One line a detector: the rows it hits, how many of its hits were judged by reading, and
how many of those are faults. The judgements are in faults_labels.json, by row number of
Stanford's alpaca_data.json (52,002 rows; not part of this project): up to 20 hits of
each detector's first version, on which the detectors were sharpened, and up to 20 fresh
hits of the sharpened ones. The last column says how many of all the true rows are hit:
what sharpening lost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alpaca_lib.dataset.faults import DETECTORS, KINDS, find_faults
from alpaca_lib.files import write_text
from alpaca_lib.records import load_examples

LABELS = Path(__file__).with_name("faults_labels.json")


def main() -> None:
    """Prints the table."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--data", type=Path, required=True, help="Stanford's alpaca_data.json")
    top.add_argument("--out", type=Path, help="a .json file for the numbers")
    options = top.parse_args()
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    examples = load_examples(options.data)
    hits: dict[str, set[int]] = {kind: set() for kind in KINDS}
    for fault in find_faults(examples):
        hits[fault.kind].add(fault.row)
    severity = {detector.kind: detector.severity for detector in DETECTORS}
    print(f"{len(examples):,} rows of {options.data.name}\n")
    print(f"{'detector':30}{'severity':>10}{'rows':>7}{'judged':>8}{'true':>6}{'of the true':>14}")
    out = {}
    for kind in KINDS:
        judged = {int(row): true for row, true in labels.get(kind, {}).items()}
        still = [true for row, true in judged.items() if row in hits[kind]]
        share = f"{sum(still)} of {sum(judged.values())} found"
        print(
            f"{kind:30}{severity.get(kind, 'review'):>10}{len(hits[kind]):7,}"
            f"{len(still):8}{sum(still):6}{share:>14}"
        )
        out[kind] = {"rows": len(hits[kind]), "judged": len(still), "true": sum(still)}
    if options.out:
        write_text(options.out, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
