"""Sub-commands about data sets: describe, report, card, check, and ``alpaca inspect``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.command_line import Command
from alpaca_lib.errors import DataError
from alpaca_lib.files import parse_json, write_text
from alpaca_lib.formats.tables import open_table
from alpaca_lib.records import Example, flatten, load_examples, load_records, read_text

_EXIT_CODES = (
    "\nErrors make training wrong; review lines need a reader; style lines compare the set with"
    "\nthis course's limits and with Alpaca's 52,002 rows."
    "\nExit code 0: no error, 1: an error, 2: a file cannot be used."
)
DATA = Path(__file__).resolve().parents[2] / "data"
OWN_SETS = [path for path in (DATA / "seed_tasks.jsonl", DATA / "eval_60.json") if path.is_file()]
_FILES = {"type": Path, "nargs": "*", "default": [], "metavar": "FILE"}
_FLAGS: dict[str, dict[str, Any]] = {
    "--apart": {
        **_FILES,
        "help": "seeds or held-out sets, to which no instruction may be near (default of check and "
        "inspect: the course's own seed_tasks.jsonl and eval_60.json)",
    },
    "--foreign": {
        **_FILES,
        "help": "other people's data: nothing may be copied from it, and its diversity is compared",
    },
    "--proofs": {
        "type": Path,
        "metavar": "FILE",
        "help": '.jsonl of {"instruction", "proof"}: Python that recomputes an answer. It is run: '
        "use your own (default: the course's proofs.jsonl, for the rows that it knows)",
    },
    "--allowed": {
        "type": Path,
        "metavar": "FILE",
        "help": '.json list of {"fault", "instruction", "reason"}: detector hits that are correct '
        "(default: FILE with .allowed.json in place of .json, if it exists)",
    },
    "--mode": {"choices": ("rouge", "unicode"), "default": "unicode", "help": "ROUGE-L tokenizer"},
    "--rows": {"type": int, "default": 5, "metavar": "N", "help": "failing rows to show (5)"},
    "--out": {"type": Path, "help": "the file to write (default: FILE with .html or .card.md)"},
    "--licence": {"default": "", "help": "the card's text on the licence"},
    "--provenance": {"default": "", "help": "the card's text on the source of the data"},
    "--limits": {"default": "", "help": "the card's text on the limits of the data"},
    "--report": {"action": "store_true", "help": "also write the report, FILE with .html"},
    "--card": {"action": "store_true", "help": "also write the data card, FILE with .card.md"},
}


def _arguments(
    *flags: str, nargs: str | None = None, **defaults: object
) -> Callable[[argparse.ArgumentParser], None]:
    """Returns a function that adds FILE and the named flags to a parser."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "file", type=Path, nargs=nargs, help="data in any layout, see alpaca convert"
        )
        for flag in flags:
            parser.add_argument(flag, **_FLAGS[flag])
        parser.set_defaults(**defaults)

    return add


def _load_each(path: Path) -> list[Example]:
    """Returns the examples of a file; of a conversation, each question with its answer.

    Prints a line if there is a conversation.
    """
    records = load_records(path)
    examples = [example for record in records for example in flatten(record, "each")]
    several = sum(not isinstance(record, Example) for record in records)
    if several:
        print(
            f"{path}: {several:,} of {len(records):,} rows are conversations; each question with "
            f"its answer is one row here ({len(examples):,}), without the turns before it"
        )
    return examples


def load_sets(paths: Sequence[Path]) -> dict[str, list[Example]]:
    """Returns the examples of files by file name, or by path where two files share a name.

    Only their instructions are compared, so they need no answers.
    """
    counts = Counter(path.name for path in paths)
    return {
        path.name if counts[path.name] == 1 else str(path): load_examples(
            path, "optional", turns="each"
        )
        for path in paths
    }


def load_allowed(path: Path) -> list[dict[str, str]]:
    """Returns the detector hits that a .json file lists as correct.

    Raises DataError if the file is not a list of {"fault", "instruction", "reason"}.
    """
    text = read_text(path)
    try:
        keys = ("fault", "instruction", "reason")
        return [{key: entry[key] for key in keys} for entry in parse_json(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path}: is no list of {{"fault", "instruction", "reason"}} ({error!r})'
        ) from None


def _describe(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.statistics import markdown_table

    print(markdown_table({path.name: _load_each(path) for path in options.file}))


def _write_report(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.html_report import render_report

    examples, apart = _load_each(options.file), load_sets(options.apart)
    name, show = options.file.name, lambda step: print(step, "...")
    page = render_report(examples, name, apart, options.mode, progress=show)
    print(write_text(options.out or options.file.with_suffix(".html"), page))


def _write_card(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.card import data_card

    card = data_card(
        _load_each(options.file),
        name=options.file.name,
        licence=options.licence,
        provenance=options.provenance,
        limits=options.limits,
        evaluation=load_sets(options.apart),
        mode=options.mode,
    )
    print(write_text(options.out or options.file.with_suffix(".card.md"), card))


def _other_files(options: argparse.Namespace) -> list[Path]:
    return [path for path in options.apart if path.resolve() != options.file.resolve()]


def _check(options: argparse.Namespace) -> int:
    from alpaca_lib.dataset.check_results import ERROR, STYLE, format_results
    from alpaca_lib.dataset.checks import check
    from alpaca_lib.dataset.proofs import load_proofs

    file: Path = options.file
    proofs = options.proofs or DATA / "proofs.jsonl"
    allowed = options.allowed or file.with_name(f"{file.stem}.allowed.json")
    examples = load_examples(file, turns="each")
    lines = open_table(file).lines
    results = check(
        examples,
        apart=load_sets(_other_files(options)),
        foreign=load_sets(options.foreign),
        proofs=load_proofs(proofs) if options.proofs or proofs.is_file() else {},
        allowed=load_allowed(allowed) if options.allowed or allowed.is_file() else [],
        mode=options.mode,
        lines=lines if len(lines) == len(examples) else [],
    )
    print(format_results(results, options.rows))
    met = {}
    for kind in (ERROR, STYLE):
        passed = [r.passed for r in results if r.kind == kind and r.passed is not None]
        met[kind] = sum(passed), len(passed)
    required, style = (f"{some} of {all_}" for some, all_ in met.values())
    print(f"\n{file}: {required} requirements met, {style} style limits")
    return 0 if met[ERROR][0] == met[ERROR][1] else 1


def _inspect(options: argparse.Namespace) -> int:
    options.apart = _other_files(options)
    _describe(argparse.Namespace(file=[options.file]))
    print()
    code = _check(options)
    if options.report:
        _write_report(options)
    if options.card:
        _write_card(options)
    return code


_CHECK_FLAGS = ("--apart", "--foreign", "--proofs", "--allowed", "--mode", "--rows")
_CARD_FLAGS = ("--licence", "--provenance", "--limits")
DESCRIBE = Command(
    "describe",
    "print the statistics of data sets as a Markdown table",
    _arguments(nargs="+"),
    _describe,
    (
        "python -m alpaca_lib.dataset describe my.json",
        "python -m alpaca_lib.dataset describe data/alpaca_520.json data/seed_tasks.jsonl",
    ),
    error_code=2,
)
REPORT = Command(
    "report",
    "write one HTML page about a data set: figures, faults, near-duplicates",
    _arguments("--apart", "--out", "--mode"),
    _write_report,
    (
        "python -m alpaca_lib.dataset report my.json",
        "python -m alpaca_lib.dataset report my.json --apart my_seeds.jsonl --out my.html",
    ),
    error_code=2,
)
CARD = Command(
    "card",
    "write a data card in Markdown",
    _arguments("--apart", "--out", "--mode", *_CARD_FLAGS),
    _write_card,
    (
        "python -m alpaca_lib.dataset card my.json --licence 'CC BY 4.0'",
        "python -m alpaca_lib.dataset card my.json --apart my_eval.json --out CARD.md",
    ),
    error_code=2,
)
CHECK = Command(
    "check",
    "check a data set against the requirements that this course's own meets",
    _arguments(*_CHECK_FLAGS, apart=OWN_SETS),
    _check,
    (
        "python -m alpaca_lib.dataset check my.json --apart my_seeds.jsonl my_eval.json",
        "python -m alpaca_lib.dataset check data/alpaca_520.json --foreign alpaca_data.json",
    ),
    "Prints one line per requirement, with the failing rows." + _EXIT_CODES,
    error_code=2,
)
INSPECT = Command(
    "inspect",
    "what is in a data set, and is it good enough to train on?",
    _arguments(*_CHECK_FLAGS, *_CARD_FLAGS, "--report", "--card", apart=OWN_SETS, out=None),
    _inspect,
    (
        "alpaca inspect my.json",
        "alpaca inspect my.json --apart my_seeds.jsonl my_eval.json --report --card",
    ),
    "Prints statistics, and one line per requirement with the failing rows." + _EXIT_CODES,
    error_code=2,
)
