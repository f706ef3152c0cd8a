"""Results of the checks of a data set, and their form as text: errors, review, style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ERROR, REVIEW, STYLE = "error", "review", "style"
# Figures of Stanford's 52,002 rows, measured by ``check`` itself.
ALPACA = {
    "with an input": "40%",
    "words per output, mean": "44.2",
    "words, longest output": "717",
    "outputs without a regular end": "471",
    "share their first 4 words": "800 (1.5%)",
    "nearest within the set": "0.73",
}


@dataclass(frozen=True)
class CheckResult:
    """The result of one requirement: the value found, the value required, the failing rows.

    ``passed`` is None for a line that is only information, and for one that cannot be judged;
    ``rows`` describes each failing row; ``kind`` is ERROR, REVIEW or STYLE.
    """

    name: str
    found: str
    required: str
    passed: bool | None
    rows: list[str] = field(default_factory=list)
    kind: str = ERROR


def format_results(results: Sequence[CheckResult], show: int = 5) -> str:
    """Returns the results as text, with at most ``show`` failing rows under each."""
    heads = {
        ERROR: "errors: they make training wrong",
        REVIEW: "review: a reader decides",
        STYLE: "style, compared with Alpaca's 52,002 rows",
    }
    bad = {ERROR: "FAIL", REVIEW: "read", STYLE: "off "}
    lines: list[str] = []
    for kind, head in heads.items():
        some = [result for result in results if result.kind == kind]
        lines += [*([""] if lines and some else []), *([head] if some else [])]
        name = max((len(one.name) for one in some), default=0)
        found = max((len(one.found) for one in some if len(one.found) < 30), default=0)
        for one in some:
            mark = {True: "ok  ", False: bad[kind], None: "    "}[one.passed]
            known = ALPACA.get(one.name, "") if kind == STYLE else ""
            theirs = f" (Alpaca: {known})" if known else ""
            line = f"{mark} {one.name:{name}}  {one.found:{found}}  {one.required}{theirs}"
            lines.append(line.rstrip())
            if one.passed is False:
                lines += [f"       {row}" for row in one.rows[:show]]
                if len(one.rows) > show:
                    lines.append(f"       and {len(one.rows) - show} more (--rows N shows N)")
    return "\n".join(lines)
