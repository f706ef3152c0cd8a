"""Data cards in Markdown: what a set is, its source, its licence and its numbers.

The form follows Datasheets for Datasets (Gebru et al. 2021), in short. The numbers are computed;
what only the authors know is a parameter, and is stated to be unknown if it is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alpaca_lib.dataset.faults import Fault, count_faults, find_faults
from alpaca_lib.dataset.rouge import THRESHOLD
from alpaca_lib.dataset.statistics import (
    clusters,
    format_rows,
    instructions_of,
    markdown_table,
    nearest,
)
from alpaca_lib.records import Example

UNKNOWN = "not stated by whoever made this card"


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
    """Returns the data card of a set as Markdown.

    evaluation: held-out sets by name, in which leaked rows are searched. faults: the result of
    ``find_faults``, if it is known already.
    """
    instructions = instructions_of(examples)
    groups = clusters(instructions, THRESHOLD, mode)
    found = find_faults(examples) if faults is None else faults
    counts = [[kind, f"{n:,}"] for kind, n in sorted(count_faults(found).items()) if n]
    leaks = []
    for other, held_out in (evaluation or {}).items():
        scores = [one.score for one in nearest(instructions, instructions_of(held_out), mode)]
        leaks.append(
            f"- `{other}`: {sum(score > THRESHOLD for score in scores)} rows above ROUGE-L "
            f"{THRESHOLD} with one of its {len(held_out)} instructions; the highest is "
            f"{max(scores, default=0.0):.2f}."
        )
    leakage = "\n".join(leaks) or "Compared with no evaluation set."
    return f"""# Data card: {name}

- **Provenance:** {provenance or UNKNOWN}
- **Licence:** {licence or UNKNOWN}
- **Limits:** {limits or UNKNOWN}

## Statistics

{markdown_table({name: examples})}

## Near-duplicates

{sum(map(len, groups))} of {len(examples)} instructions are joined in {len(groups)} groups by \
pairs above ROUGE-L {THRESHOLD}.

## Leakage

{leakage}

## Faults

{format_rows(["Detector", "Rows"], counts) if counts else "No detector fires."}
"""
