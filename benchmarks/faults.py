"""Measures the precision of the fault detectors on Stanford's Alpaca data.

python benchmarks/faults.py --data alpaca_data.json

It prints one line per detector: the rows that it flags, how many of these were read by a
person, and how many of those are faults. The labels are in faults_labels.json, by row number of
Stanford's alpaca_data.json (52,002 rows; not part of this project): up to 20 rows flagged by
each detector's first version, from which the detectors were tuned, and up to 20 new rows
flagged by the tuned ones. The last column is the recall on all rows with a fault: what tuning
lost.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Stanford's alpaca_data.json")
    parser.add_argument("--out", type=Path, help="a .json file for the numbers")
    options = parser.parse_args()
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
        flagged = [true for row, true in judged.items() if row in hits[kind]]
        recall = f"{sum(flagged)} of {sum(judged.values())} found"
        print(
            f"{kind:30}{severity.get(kind, 'review'):>10}{len(hits[kind]):7,}"
            f"{len(flagged):8}{sum(flagged):6}{recall:>14}"
        )
        out[kind] = {"rows": len(hits[kind]), "judged": len(flagged), "true": sum(flagged)}
    if options.out:
        write_text(options.out, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
