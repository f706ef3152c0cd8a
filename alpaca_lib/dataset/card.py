"""A data card in Markdown: what a set is, where it is from, and its numbers.

The numbers are computed; the words that only its makers know are asked for, and
what is not given is said to be unknown rather than left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alpaca_lib.dataset.faults import Fault, count_faults, find_faults
from alpaca_lib.dataset.statistics import clusters, markdown_table, nearest
from alpaca_lib.records import Example

UNKNOWN = "not stated by whoever made this card"
NEAR = 0.7


def data_card(
    examples: Sequence[Example],
    name: str,
    licence: str = "",
    provenance: str = "",
    limits: str = "",
    evaluation: Mapping[str, Sequence[Example]] | None = None,
    mode: str = "unicode",
    faults: Sequence[Fault] | None = None,
) -> str:
    """The card of a set as Markdown. evaluation: held-out sets, to look for leaks into;
    faults: what find_faults() found, if it has been called already."""
    instructions = [example.instruction for example in examples]
    groups = clusters(instructions, NEAR, mode)
    joined = sum(len(group) for group in groups)
    found = find_faults(examples) if faults is None else faults
    counts = {kind: n for kind, n in count_faults(found).items() if n}
    lines = [
        f"# Data card: {name}",
        "",
        f"- **Provenance:** {provenance or UNKNOWN}",
        f"- **Licence:** {licence or UNKNOWN}",
        f"- **Limits:** {limits or UNKNOWN}",
        "",
        "## Statistics",
        "",
        markdown_table({name: examples}),
        "",
        "## Near-duplicates",
        "",
        f"{joined} of {len(examples)} instructions are joined in {len(groups)} groups by pairs "
        f"above ROUGE-L {NEAR}.",
        "",
        "## Leakage",
        "",
    ]
    for other, held_out in (evaluation or {}).items():
        near = nearest(instructions, [example.instruction for example in held_out], mode)
        over = sum(one.score > NEAR for one in near)
        highest = max((one.score for one in near), default=0.0)
        lines.append(
            f"- `{other}`: {over} rows above ROUGE-L {NEAR} with one of its {len(held_out)} "
            f"instructions; the highest is {highest:.2f}."
        )
    if not evaluation:
        lines.append("Compared with no evaluation set.")
    lines += ["", "## Faults", ""]
    if counts:
        lines += ["| Detector | Rows |", "| --- | ---: |"]
        lines += [f"| {kind} | {count:,} |" for kind, count in sorted(counts.items())]
    else:
        lines.append("No detector fires.")
    return "\n".join(lines) + "\n"
