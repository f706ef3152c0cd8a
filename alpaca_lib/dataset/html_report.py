"""A self-contained HTML page about a data set: figures, faults, near-duplicates.

The page loads nothing from the network, and every text of the data is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alpaca_lib import figures
from alpaca_lib.dataset.detectors import DETECTORS
from alpaca_lib.dataset.faults import Fault, count_faults, find_faults
from alpaca_lib.dataset.rouge import THRESHOLD
from alpaca_lib.dataset.statistics import (
    clusters,
    instructions_of,
    nearest,
    nearest_scores,
    overview,
    shorten,
    vocabulary_growth,
)
from alpaca_lib.dataset.verbs import verb_objects
from alpaca_lib.records import Example, words

SHOWN = 3  # examples of each fault, and members of each cluster
ALL_PAIRS = 20_000  # rows up to which the nearest other row is searched among all
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left;
  vertical-align: top; }
img { max-width: 100%; } mark { background: #ffe08a; } .quiet { color: #666; }
summary { cursor: pointer; }
"""


def render_report(
    examples: Sequence[Example],
    name: str,
    apart: Mapping[str, Sequence[Example]] | None = None,
    mode: str = "unicode",
    progress: Callable[[str], None] = lambda step: None,
    faults: Sequence[Fault] | None = None,
) -> str:
    """Returns the page as HTML.

    apart: seeds or held-out sets by name, whose distance is measured. progress: called with the
    name of each step. faults: the result of ``find_faults``, if it is known already.
    """
    progress("counts and lengths")
    view, texts = overview(examples), instructions_of(examples)
    parts = [
        _table(
            ["", ""],
            [
                ["rows", f"{view.rows:,}"],
                ["with an input", f"{view.with_input:,} ({view.with_input / view.rows:.0%})"],
                ["distinct instructions", f"{view.distinct_instructions:,}"],
                ["empty outputs", f"{view.empty_outputs:,}"],
            ],
        ),
        _table(
            ["words", "rows", "mean", "median", "95 % under", "longest"],
            [
                [field, f"{n.rows:,}", f"{n.mean:.1f}", f"{n.median:g}", f"{n.p95:.0f}", n.longest]
                for field, n in view.lengths.items()
            ],
        ),
        _draw_lengths(examples),
        "<h2>What the instructions ask for</h2>",
        _image(
            figures.sunburst(verb_objects(texts), "Root verbs and their objects"),
            "Two rings: the most frequent verbs, and the objects of each",
        ),
        _table(["first words", "rows"], view.first_words[:12]),
        _draw_vocabulary(examples),
    ]
    progress("near-duplicates")
    parts += _duplicates(texts, apart or {}, mode)
    progress("faults")
    parts += _faults(examples, find_faults(examples) if faults is None else faults)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(name)}</h1>" + "\n".join(parts) + "</html>\n"
    )


def _draw_lengths(examples: Sequence[Example]) -> str:
    values = {
        field: [min(words(getattr(e, field)), 250) for e in examples if getattr(e, field)]
        for field in ("instruction", "output")
    }
    drawn = figures.histogram(values, "Lengths (250 and more in the last bar)", "words", 50)
    return _image(drawn, "Histogram: words of instructions and outputs")


def _draw_vocabulary(examples: Sequence[Example]) -> str:
    lines = {
        field: vocabulary_growth([getattr(e, field) for e in examples])
        for field in ("instruction", "output")
    }
    drawn = figures.curve(lines, "Vocabulary", "words read", "distinct words")  # type: ignore[arg-type]
    return _image(drawn, "Lines: distinct words by words read")


def _duplicates(
    texts: Sequence[str], apart: Mapping[str, Sequence[Example]], mode: str
) -> list[str]:
    groups = clusters(texts, THRESHOLD, mode)
    quotes = [[html.escape(shorten(texts[i], 160)) for i in group[:SHOWN]] for group in groups[:10]]
    rows = [[f"{len(g):,}", "<br>".join(quote)] for g, quote in zip(groups, quotes, strict=False)]
    out = [
        "<h2>Near-duplicates</h2>",
        f"<p>{sum(map(len, groups)):,} instructions in {len(groups):,} groups, joined by pairs "
        f"above ROUGE-L {THRESHOLD}.</p>",
        _table(["rows", f"the first {SHOWN}"], rows, escaped=True) if rows else "",
    ]
    series = {}
    if len(texts) <= ALL_PAIRS:
        series["within the set"] = [one.score for one in nearest(texts, mode=mode)]
    for name, others in apart.items():
        series[f"in {name}"] = nearest_scores(texts, instructions_of(others), mode).tolist()
    if series:
        drawn = figures.histogram(series, "Distance to the nearest", "highest ROUGE-L", 40)
        drawn[1].axvline(THRESHOLD, color="black", linestyle=":")
        out.append(_image(drawn, "Histogram: ROUGE-L of each instruction to the nearest other"))
    return out


def _faults(examples: Sequence[Example], faults: Sequence[Fault]) -> list[str]:
    meanings = {detector.kind: detector.meaning for detector in DETECTORS}
    out = [
        "<h2>Faults</h2>",
        "<p>A detector reports rows to look at; it changes nothing. <b>error</b> is nearly "
        "always a fault, <b>review</b> needs a reader.</p>",
    ]
    for kind, rows in count_faults(faults).most_common():
        mine = [fault for fault in faults if fault.kind == kind]
        if not mine:
            continue
        what = meanings.get(kind, "the same text in several rows")
        shown = "".join(_fault(examples, fault) for fault in mine[:SHOWN])
        out.append(
            f"<details><summary><b>{kind}</b>: {rows:,} rows "
            f'<span class="quiet">({mine[0].severity}; {html.escape(what)})</span></summary>'
            f"{shown}</details>"
        )
    if not faults:
        out.append("<p>No detector fires.</p>")
    return out


def _fault(examples: Sequence[Example], fault: Fault) -> str:
    text = getattr(examples[fault.row], fault.field)
    start, end = fault.span
    before, after = text[max(start - 80, 0) : start], text[end : end + 80]
    context = f"row {fault.row + 1}, {fault.field}: …{html.escape(before)}"
    middle = f"<mark>{html.escape(text[start:end][:300]) or '(empty)'}</mark>"
    return (
        f"<p>{context}{middle}{html.escape(after)}… "
        f'<span class="quiet">{html.escape(fault.fix)}</span></p>'
    )


def _table(heads: Iterable[Any], rows: Iterable[Iterable[Any]], escaped: bool = False) -> str:
    """Returns an HTML table; the rows' cells are escaped unless they are ``escaped`` already."""

    def cell(value: Any) -> str:
        return str(value) if escaped else html.escape(str(value))

    top = "".join(f"<th>{html.escape(str(head))}</th>" for head in heads)
    cells = ["".join(f"<td>{cell(value)}</td>" for value in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><tr>{top}</tr>{body}</table>"


def _image(drawn: tuple[Any, Any], alt: str) -> str:
    """Returns a figure as an img tag with the PNG inside."""
    stream = io.BytesIO()
    drawn[0].savefig(stream, format="png", dpi=100, metadata={"Software": None})
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'
