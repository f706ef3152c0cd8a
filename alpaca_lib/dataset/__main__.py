"""What is in a data set, and is it good enough to train on?

describe FILE ...: counts, lengths and variety as a Markdown table.
report FILE: one self-contained HTML page with figures, faults and near-duplicates.
card FILE: a data card in Markdown, to go beside the file.
check FILE: one line a demand with the number found and the number wanted, and below
each demand that fails the rows that fail it. Exit code 0: all demands are met,
1: some are not, 2: a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from alpaca_lib.dataset.checks import check, table
from alpaca_lib.dataset.proofs import load_proofs
from alpaca_lib.dataset.rouge import MODES
from alpaca_lib.dataset.statistics import markdown_table
from alpaca_lib.errors import DataError
from alpaca_lib.files import write_text
from alpaca_lib.records import Example, load_examples

DATA = Path(__file__).resolve().parents[2] / "data"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m alpaca_lib.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "check",
        help="measure a data set against the demands on this course's own",
        description="Example: python -m alpaca_lib.dataset check data/alpaca_520.json "
        "--foreign alpaca_data.json",
    )
    one.add_argument("file", type=Path, help="the Alpaca-format file to check")
    one.add_argument(
        "--apart", type=Path, nargs="*", metavar="FILE",
        help="sets whose instructions may not be near: seeds, held-out tasks "
        "(default: the course's own seed_tasks.jsonl and eval_60.json)",
    )  # fmt: skip
    one.add_argument(
        "--foreign", type=Path, nargs="*", default=[], metavar="FILE",
        help="other people's data: nothing may be taken from it, and random samples of it "
        "are measured beside this set",
    )  # fmt: skip
    one.add_argument(
        "--proofs", type=Path, metavar="FILE",
        help='.jsonl of {"instruction", "proof"}: Python that recomputes an answer. It is run: '
        "use your own (default: the course's proofs.jsonl, for the rows that it knows)",
    )  # fmt: skip
    one.add_argument(
        "--allowed", type=Path, metavar="FILE",
        help='.json list of {"fault", "instruction", "reason"}: hits of a detector that are in '
        "order (default: FILE with .allowed.json in place of .json, if there is one)",
    )  # fmt: skip
    one.add_argument("--mode", choices=MODES, default="unicode", help="how ROUGE-L splits words")
    one.add_argument("--rows", type=int, default=5, metavar="N", help="failing rows to show (5)")
    two = commands.add_parser(
        "describe",
        help="print the statistics of data sets as a Markdown table",
        description="Example: python -m alpaca_lib.dataset describe data/alpaca_520.json",
    )
    two.add_argument("file", type=Path, nargs="+", help="Alpaca-format or seed files")
    three = commands.add_parser(
        "report",
        help="write one HTML page about a data set",
        description="Example: python -m alpaca_lib.dataset report my.json --apart my_seeds.jsonl",
    )
    three.add_argument("file", type=Path, help="the Alpaca-format file")
    three.add_argument("--out", type=Path, help="the page (default: FILE with .html)")
    four = commands.add_parser(
        "card",
        help="write a data card",
        description="Example: python -m alpaca_lib.dataset card my.json --licence 'CC BY 4.0'",
    )
    four.add_argument("file", type=Path, help="the Alpaca-format file")
    four.add_argument("--out", type=Path, help="the card (default: FILE with .card.md)")
    for name in ("licence", "provenance", "limits"):
        four.add_argument(f"--{name}", default="", help=f"the card's words on {name}")
    for command in (three, four):
        command.add_argument(
            "--apart", type=Path, nargs="*", default=[], metavar="FILE",
            help="seeds or held-out sets: how near is it to them?",
        )  # fmt: skip
        command.add_argument("--mode", choices=MODES, default="unicode")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "describe":
            print(markdown_table({path.name: load_examples(path) for path in options.file}))
            return 0
        if options.command == "check":
            return run_check(options)
        return write_page(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def by_name(paths: list[Path]) -> dict[str, list[Example]]:
    """The sets of several files, by file name; by path where two have the same name."""
    names = Counter(path.name for path in paths)
    return {
        path.name if names[path.name] == 1 else str(path): load_examples(path) for path in paths
    }


def load_allowed(path: Path) -> list[dict[str, str]]:
    """The hits that are in order, of a .json list; DataError if it is not such a list."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [
            {key: entry[key] for key in ("fault", "instruction", "reason")} for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: is no list of {{"fault", "instruction", "reason"}} ({error!r})'
        ) from None


def write_page(options: argparse.Namespace) -> int:
    """The report and card commands."""
    from alpaca_lib.dataset.card import data_card
    from alpaca_lib.dataset.html_report import report

    examples = load_examples(options.file)
    apart = by_name(options.apart)
    if options.command == "report":
        target = options.out or options.file.with_suffix(".html")
        text = report(
            examples, options.file.name, apart, options.mode, lambda step: print(step, "...")
        )
    else:
        target = options.out or options.file.with_suffix(".card.md")
        text = data_card(
            examples, options.file.name, options.licence, options.provenance, options.limits,
            apart, options.mode,
        )  # fmt: skip
    print(write_text(target, text))
    return 0


def run_check(options: argparse.Namespace) -> int:
    """The check command."""
    examples = load_examples(options.file)
    apart = options.apart
    if apart is None:
        apart = [DATA / name for name in ("seed_tasks.jsonl", "eval_60.json")]
        apart = [path for path in apart if path.is_file()]
    apart = [path for path in apart if path.resolve() != options.file.resolve()]
    proofs = options.proofs or DATA / "proofs.jsonl"
    allowed = options.allowed or options.file.with_name(f"{options.file.stem}.allowed.json")
    lines = check(
        examples,
        apart=by_name(apart),
        foreign=by_name(options.foreign),
        proofs=load_proofs(proofs) if options.proofs or proofs.is_file() else {},
        allowed=load_allowed(allowed) if options.allowed or allowed.is_file() else [],
        mode=options.mode,
    )
    print(table(lines, options.rows))
    failed = sum(line.met is False for line in lines)
    demands = sum(line.met is not None for line in lines)
    print(f"\n{options.file}: {demands - failed} of {demands} demands met")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
