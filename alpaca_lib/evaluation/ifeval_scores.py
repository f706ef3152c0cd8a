"""IFEval's four scores: per prompt or per instruction, strict or loose, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from alpaca_lib.errors import DataError
from alpaca_lib.evaluation.ifeval import Prompt, Verdict
from alpaca_lib.evaluation.intervals import Interval, interval, win_rate

# The metrics' names in lm-evaluation-harness, and in the table.
METRICS = {
    "prompt_level_strict_acc": "prompts, strict",
    "prompt_level_loose_acc": "prompts, loose",
    "inst_level_strict_acc": "instructions, strict",
    "inst_level_loose_acc": "instructions, loose",
}


@dataclass(frozen=True)
class IfevalScores:
    """The scores of one model; what could not be judged is in none of them."""

    scores: dict[str, Interval]  # by the names in METRICS; 95 % intervals
    prompts: int  # whose instructions were all judged
    instructions: int  # that were judged
    unjudged: dict[str, int]  # kind -> number of instructions
    by_kind: dict[str, tuple[int, int, int]]  # judged, followed strictly, followed loosely

    @property
    def average(self) -> float:
        """The mean of the four scores, which model cards report as IFEval."""
        return mean(score.value for score in self.scores.values())


def score_verdicts(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> IfevalScores:
    """Returns the scores of one model's verdicts.

    A prompt counts if all of its instructions were judged. Prompts are the sample: the interval
    of a score per instruction resamples prompts, whose instructions stand or fall together.
    Raises DataError if nothing was judged.
    """
    scores, judged = {}, 0
    for name, strictness in (("strict", "strict"), ("loose", "loose")):
        rows = [getattr(verdict, strictness) for verdict in verdicts]
        complete = [float(all(row)) for row in rows if None not in row]
        found = [[met for met in row if met is not None] for row in rows]
        found = [row for row in found if row]
        if not complete:
            raise DataError("no prompt has only instructions that can be judged here")
        judged = len(complete)
        scores[f"prompt_level_{name}_acc"] = proportion(complete)
        scores[f"inst_level_{name}_acc"] = _by_instruction(found)
    counts: dict[str, list[int]] = {}
    unjudged: Counter[str] = Counter()
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        for one, strict, loose in zip(
            prompt.instructions, verdict.strict, verdict.loose, strict=True
        ):
            if strict is None:
                unjudged[one.kind] += 1
            else:
                count = counts.setdefault(one.kind, [0, 0, 0])
                for place, met in enumerate((True, strict, loose)):
                    count[place] += bool(met)
    return IfevalScores(
        scores={name: scores[name] for name in METRICS},
        prompts=judged,
        instructions=sum(count[0] for count in counts.values()),
        unjudged=dict(sorted(unjudged.items())),
        by_kind={kind: (n, s, most) for kind, (n, s, most) in sorted(counts.items())},
    )


def proportion(values: Sequence[float]) -> Interval:
    """Returns the Interval of the mean of ones and zeros; of one value, from 0 to 1."""
    return win_rate(values) if len(values) > 1 else Interval(values[0], 0.0, 1.0)


def _by_instruction(rows: Sequence[Sequence[bool]]) -> Interval:
    """Returns the Interval of the fraction of instructions followed, with prompts as the sample."""
    flat = [float(met) for row in rows for met in row]
    if len(rows) < 2 or len(set(flat)) < 2:  # the bootstrap needs a spread
        return proportion(flat)
    found = interval([float(sum(row)) for row in rows], [float(len(row)) for row in rows])
    return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0))
