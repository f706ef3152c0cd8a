"""``alpaca convert``: other people's files and layouts -> rows of Alpaca or of messages."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from alpaca_lib.command_line import Command
from alpaca_lib.errors import UsageError
from alpaca_lib.formats.convert import OUT_SUFFIXES, Report, convert_files, list_rows
from alpaca_lib.formats.layouts import Options
from alpaca_lib.formats.parts import Plan
from alpaca_lib.formats.streams import Progress

_FIELDS = ("instruction", "input", "output", "system", "history", "messages")
_PROCESSES = 4  # at most: the writing process keeps up with about that many


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="+",
        help='.json, .jsonl, .csv, .tsv or .parquet, also .gz or .zst; a folder; or "owner/name", '
        '"owner/name:split" of the Hugging Face hub',
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the .json or .jsonl to write, or .gz of it"
    )
    parser.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=COLUMN",
        help=f"the column of {', '.join(_FIELDS)} (default: by the columns' names)",
    )
    parser.add_argument("--drop", default="", metavar="COLUMNS", help="columns to leave out: a,b")
    parser.add_argument(
        "--drop-unanswered", action="store_true", help="leave out rows whose answer is missing"
    )
    parser.add_argument(
        "--drop-bad",
        action="store_true",
        help="leave out rows that cannot be read, and list them in a file",
    )


def _convert(options: argparse.Namespace) -> None:
    out: Path = options.out
    if any(os.path.exists(file) and out.resolve() == Path(file).resolve() for file in options.file):
        raise UsageError(f"--out {out}: is a file that is read; choose another name")
    if not out.name.endswith(OUT_SUFFIXES):
        raise UsageError(f"--out {out}: name it {', '.join(OUT_SUFFIXES)}")
    given: dict[str, str] = {}
    for text in options.map:
        field, equals, column = text.partition("=")
        if not equals or field in given:
            raise UsageError(f"--map {text}: use each field once, as in --map output=response")
        if field not in _FIELDS:
            raise UsageError(f"--map {text}: map to one of {', '.join(_FIELDS)}")
        given[field] = column
    drop = frozenset(filter(None, options.drop.split(",")))
    if needed := sorted(drop & set(given.values())):
        raise UsageError(f"--drop {needed[0]}: it is the column of a field that is needed")
    chat = given.pop("messages", "")
    plan = Plan(
        Options(tuple(given.items()), drop, chat, answers="optional", is_strict=False),
        drop_unanswered=options.drop_unanswered,
        drop_bad=options.drop_bad,
    )
    workers = min(os.cpu_count() or 1, _PROCESSES)
    with _progress_bar(options.file) as progress:
        reports = convert_files(options.file, out, plan, workers, progress)
    listings = list_rows(reports, out)
    for report in reports:
        _print_report(report, listings)
    if any(report.counts.unanswered for report in reports) and not options.drop_unanswered:
        print("training needs answers: write them, or add --drop-unanswered")
    rows = sum(report.counts.kept for report in reports)
    kind = "messages" if reports[0].plan.as_messages else "instruction, input and output"
    print(f"{out}: {rows:,} rows of {kind}")


def _print_report(report: Report, listings: dict[str, Path]) -> None:
    counts = report.counts
    listed = {label: f", listed in {path}" for label, path in listings.items()}
    print(report.describe() + (listed["unanswered"] if counts.unanswered else ""))
    lines = {
        "left out, as it cannot be read": f"{report.bad:,} rows{listed.get('bad', '')}"
        * bool(report.bad),
        "kept, but not used in training": ", ".join(f"`{column}`" for column in counts.extra),
        "left out": ", ".join(f"`{column}` ({n:,} rows)" for column, n in counts.left_out.items()),
        "half characters replaced": f"{counts.replaced:,} rows" if counts.replaced else "",
    }
    for label, text in lines.items():
        if text:
            print(f"  {label}: {text}")


@contextlib.contextmanager
def _progress_bar(files: list[str]) -> Iterator[Progress]:
    """Yields a function that shows the bytes read so far; it does nothing without a terminal."""
    if not sys.stderr.isatty():
        yield lambda read: None
        return
    from tqdm import tqdm

    is_plain = all(os.path.isfile(file) and not file.endswith((".gz", ".zst")) for file in files)
    total = sum(os.path.getsize(file) for file in files) if is_plain else None
    with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update


CONVERT = Command(
    "convert",
    "other people's files and layouts -> rows of Alpaca or of messages",
    _add_arguments,
    _convert,
    (
        "alpaca convert sharegpt.jsonl.gz --out my.jsonl --drop-unanswered",
        "alpaca convert faq.csv --out my.json --map instruction=Question output=Reply --drop id",
    ),
    "Finds the layout of each file from its rows: Alpaca, seed tasks, Dolly, ShareGPT, messages,\n"
    "prompt/completion, question/answer, preference pairs (the chosen answer), OASST and others.\n"
    "Writes instruction, input and output if every row is one question and answer without a\n"
    "system message, else messages; other columns are kept behind them. What is unclear is\n"
    "refused by row, with the option to give; then nothing is written.",
)
