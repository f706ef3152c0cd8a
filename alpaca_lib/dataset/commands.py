"""Sub-commands about data sets: describe, report, card, check, and ``alpaca inspect``."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alpaca_lib.command_line import Command
from alpaca_lib.errors import DataError, UsageError
from alpaca_lib.files import parse_json, write_text
from alpaca_lib.json_rows import read_rows
from alpaca_lib.records import Example, load_examples, read_text, save_rows

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
        parser.add_argument("file", type=Path, nargs=nargs, help="Alpaca-format or seed data")
        for flag in flags:
            parser.add_argument(flag, **_FLAGS[flag])
        parser.set_defaults(**defaults)

    return add


def load_sets(paths: Sequence[Path]) -> dict[str, list[Example]]:
    """Returns the examples of files by file name, or by path where two files share a name.

    Only their instructions are compared, so they need no answers.
    """
    counts = Counter(path.name for path in paths)
    return {
        path.name if counts[path.name] == 1 else str(path): load_examples(path, answers="optional")
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

    print(markdown_table({path.name: load_examples(path) for path in options.file}))


def _write_report(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.html_report import render_report

    examples, apart = load_examples(options.file), load_sets(options.apart)
    name, show = options.file.name, lambda step: print(step, "...")
    page = render_report(examples, name, apart, options.mode, progress=show)
    print(write_text(options.out or options.file.with_suffix(".html"), page))


def _write_card(options: argparse.Namespace) -> None:
    from alpaca_lib.dataset.card import data_card

    card = data_card(
        load_examples(options.file),
        name=options.file.name,
        licence=options.licence,
        provenance=options.provenance,
        limits=options.limits,
        evaluation=load_sets(options.apart),
        mode=options.mode,
    )
    print(write_text(options.out or options.file.with_suffix(".card.md"), card))


def _add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help=".json, .jsonl, .csv, .tsv or .parquet")
    parser.add_argument("--out", type=Path, required=True, help="the .json or .jsonl to write")
    parser.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=COLUMN",
        help="the column of instruction, input or output (default: by the columns' names)",
    )
    parser.add_argument("--drop", default="", metavar="COLUMNS", help="columns to leave out: a,b")
    parser.add_argument(
        "--drop-unanswered", action="store_true", help="leave out rows whose answer is missing"
    )


def _convert(options: argparse.Namespace) -> None:
    from alpaca_lib.formats import convert_rows, detect_columns, name_layout, read_table

    if options.out.resolve() == options.file.resolve():
        raise UsageError(f"--out {options.out}: is the file that is read; choose another name")
    if options.out.suffix not in (".json", ".jsonl"):
        raise UsageError(f"--out {options.out}: name it .json or .jsonl")
    given: dict[str, str] = {}
    for text in options.map:
        field, equals, column = text.partition("=")
        if not equals or field in given:
            raise UsageError(f"--map {text}: use each field once, as in --map output=response")
        given[field] = column
    table = read_table(options.file)
    columns = detect_columns(table, given)
    drop = list(dict.fromkeys(filter(None, options.drop.split(","))))
    made = convert_rows(table, columns, drop, options.drop_unanswered)
    save_rows(made.rows, options.out)
    left_out = " (left out)" if options.drop_unanswered else ""
    print(
        f"{options.file}: {len(table.rows)} rows, read as {name_layout(table, columns)}; "
        f"{len(made.unanswered) or 'none'} without an answer{left_out}"
    )
    rest = [c for c in made.rows[0] if c not in ("instruction", "input", "output")]
    lines = {
        "no answer": _list_rows([table.name(row) for row in made.unanswered]),
        "kept, but not used in training": ", ".join(f"`{column}`" for column in rest),
        "dropped": ", ".join(f"`{column}` ({n} rows)" for column, n in made.dropped.items()),
        "half characters replaced": f"{made.replaced} rows" if made.replaced else "",
    }
    for label, text in lines.items():
        if text:
            print(f"  {label}: {text}")
    if made.unanswered and not options.drop_unanswered:
        print("  training needs answers: write them, or add --drop-unanswered")
    print(f"{options.out}: {len(made.rows)} rows")


def _list_rows(names: Sequence[str], show: int = 5) -> str:
    rest = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + rest


def _other_files(options: argparse.Namespace) -> list[Path]:
    return [path for path in options.apart if path.resolve() != options.file.resolve()]


def _check(options: argparse.Namespace) -> int:
    from alpaca_lib.dataset.check_results import ERROR, STYLE, format_results
    from alpaca_lib.dataset.checks import check
    from alpaca_lib.dataset.proofs import load_proofs

    file: Path = options.file
    proofs = options.proofs or DATA / "proofs.jsonl"
    allowed = options.allowed or file.with_name(f"{file.stem}.allowed.json")
    results = check(
        load_examples(file),
        apart=load_sets(_other_files(options)),
        foreign=load_sets(options.foreign),
        proofs=load_proofs(proofs) if options.proofs or proofs.is_file() else {},
        allowed=load_allowed(allowed) if options.allowed or allowed.is_file() else [],
        mode=options.mode,
        lines=read_rows(file).lines,
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
CONVERT = Command(
    "convert",
    "other people's files and columns -> rows in Alpaca's format",
    _add_convert_arguments,
    _convert,
    (
        "alpaca convert dolly.jsonl --out my.json",
        "alpaca convert faq.csv --out my.json --map instruction=Question output=Reply --drop id",
    ),
    "Reads .json (also with the rows under one key), .jsonl, .csv, .tsv and .parquet, finds the\n"
    "columns by their names or takes those of --map, and writes instruction, input and output;\n"
    "other columns are kept behind them. What is unclear is refused, with the option to give.",
)
