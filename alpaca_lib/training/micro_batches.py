"""Micro-batches: the examples of one optimizer step, split into groups that are computed together.

step_order chooses the examples of a step; how they are split changes the speed and not the
step. Every rank makes the same plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpaca_lib.errors import SettingsError
from alpaca_lib.training.packing import Encoded, share_prefixes
from alpaca_lib.training.prefixes import Prefixes, Segment, attention_context, list_segments

if TYPE_CHECKING:
    from alpaca_lib.training.settings import Settings

MicroBatches = list[list[list[int]]]  # [micro-batch][rank] -> indices of examples


@dataclass(frozen=True)
class StepPlan:
    """How the examples of one optimizer step are computed; every rank makes the same plan.

    >>> plan = plan_step(settings, examples, ranks=2, by_document=True, share=True)
    >>> row = join(examples, plan.groups[0][rank], plan.prefixes)
    """

    lengths: list[int]  # tokens of each example
    groups: MicroBatches  # indices of the examples
    prefixes: Prefixes | None = None  # what the examples of a group share, if anything

    @property
    def segments(self) -> list[Segment]:
        """The segments of all rows."""
        groups = [group for ranks in self.groups for group in ranks]
        return [s for group in groups for s in list_segments(self.lengths, group, self.prefixes)]

    @property
    def computed_tokens(self) -> int:
        """The tokens that are computed, without padding."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def context(self) -> float:
        """See attention_context."""
        return attention_context(self.segments)


def can_share(settings: Settings, by_document: bool) -> bool:
    """Returns whether a run's examples may share prefixes: packed, with attention by document."""
    return settings.share_prefix == "auto" and settings.batching == "pack" and by_document


def plan_step(
    settings: Settings,
    examples: Sequence[Encoded],
    ranks: int,
    by_document: bool,
    share: bool = False,
) -> StepPlan:
    """Returns how a step's examples are split into micro-batches and computed.

    ``share``: examples of a row compute a common prefix once. See split_step.
    """
    lengths = [len(row["input_ids"]) for row in examples]
    prefixes = share_prefixes(examples) if share else None
    groups = split_step(settings, lengths, ranks, by_document, prefixes)
    return StepPlan(lengths, groups, prefixes)


def split_step(
    settings: Settings,
    lengths: Sequence[int],
    ranks: int,
    by_document: bool,
    prefixes: Prefixes | None = None,
) -> MicroBatches:
    """Returns [micro-batch][rank] -> the indices of a step's examples, as the settings say.

    ``lengths`` are the examples' tokens. ``by_document``: attention costs the sum of the
    documents' squares; otherwise it costs the row's square, and a micro-batch is one row.
    """
    if settings.batching != "pack":
        by_length = settings.batching == "bucket"
        return group_rows(lengths, settings.rows_per_micro_batch, ranks, by_length)
    rows = settings.rows_per_micro_batch if by_document else 1
    return balance_micro_batches(lengths, rows * settings.row_length, ranks, prefixes)


def balance_micro_batches(
    lengths: Sequence[int], most: int, ranks: int, prefixes: Prefixes | None = None
) -> MicroBatches:
    """Returns [micro-batch][rank] -> indices: groups of at most ``most`` tokens, balanced.

    As few micro-batches as possible, of groups about equally long, so that no rank waits for
    another: longest first into the emptiest group (Graham 1969). With ``prefixes``, longest first
    to the group where it costs fewest tokens, as long as that group stays below the mean. A group
    may be empty, as all ranks meet in every collective. Raises SettingsError if an example is
    longer than ``most``.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > most:
        raise SettingsError(
            f"an example has {lengths[order[0]]} tokens, a micro-batch only {most}; raise "
            "row_length or lower max_length"
        )
    shared = prefixes is not None and len(prefixes.ends) > 0
    computed = sum(s.tokens for s in list_segments(lengths, order, prefixes if shared else None))
    count = max(-(-computed // (most * ranks)), 1)
    while True:
        if shared and prefixes is not None:
            groups, fullest = _gather_prefixes(lengths, order, prefixes, count * ranks, computed)
        else:
            groups, fullest = _balance(lengths, order, count * ranks)
        if fullest <= most:
            return [groups[m * ranks : (m + 1) * ranks] for m in range(count)]
        count += 1


def _balance(
    lengths: Sequence[int], order: Sequence[int], count: int
) -> tuple[list[list[int]], int]:
    """Returns (groups, tokens of the fullest): each in ``order`` into the emptiest group."""
    groups: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, g) for g in range(count)]
    for i in order:
        tokens, g = heapq.heappop(filled)
        groups[g].append(i)
        heapq.heappush(filled, (tokens + lengths[i], g))
    return groups, max(tokens for tokens, _ in filled)


def _gather_prefixes(
    lengths: Sequence[int], order: Sequence[int], prefixes: Prefixes, count: int, computed: int
) -> tuple[list[list[int]], int]:
    """Returns (groups, tokens of the fullest), where examples with the same prefix meet.

    ``computed`` is the tokens of all examples in a single group. In ``order``, each example goes
    to the group that must compute fewest tokens for it, of those that have most of its prefix
    and do not exceed the mean by it; if there is none, to the one that is emptiest with it.
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    filled, nodes = [0] * count, [set[int]() for _ in range(count)]
    for i in order:
        path = prefixes.path(i)
        sizes = {node: prefixes.tokens(node) for node in path}
        found = [sum(sizes[node] for node in path if node in nodes[g]) for g in range(count)]
        costs = [lengths[i] - tokens for tokens in found]
        after = [tokens + cost for tokens, cost in zip(filled, costs, strict=True)]
        half = sum(sizes.values()) / 2
        meets = [g for g in range(count) if found[g] > half and after[g] * count <= computed]
        if meets:
            g = min(meets, key=lambda g: (costs[g], after[g]))
        else:
            g = min(range(count), key=after.__getitem__)
        groups[g].append(i)
        filled[g] = after[g]
        nodes[g].update(path)
    # The groups of one micro-batch are computed at the same time: equally long ones, if possible.
    by_tokens = sorted(range(count), key=lambda g: -filled[g])
    return [groups[g] for g in by_tokens], max(filled)


def group_rows(lengths: Sequence[int], rows: int, ranks: int, by_length: bool) -> MicroBatches:
    """Returns [micro-batch][rank] -> ``rows`` indices each, of examples to be padded.

    ``by_length`` puts similar lengths together (bucketing); otherwise the order stays.
    """
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lambda i: -lengths[i])
    groups = [order[at : at + rows] for at in range(0, len(order), rows)]
    groups += [[] for _ in range(-len(groups) % ranks)]
    return [groups[at : at + ranks] for at in range(0, len(groups), ranks)]
