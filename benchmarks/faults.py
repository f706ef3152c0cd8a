"""python benchmarks/faults.py --data alpaca_data.json: the fault detectors on Alpaca.

One line a detector: the rows it hits, how many of a sample of hits were judged by
reading, and how many of those are faults. The judgements are in faults_labels.json,
by row number of Stanford's alpaca_data.json (52,002 rows; not part of this project).
They were made on hits of the first version of the detectors, and some detectors were
sharpened after them; so "judged" are the labelled rows that are still hit, and the
last column says how many of the true ones are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alpaca_lib.dataset.faults import DETECTORS, KINDS, find_faults
from alpaca_lib.records import load_examples, write_text

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
