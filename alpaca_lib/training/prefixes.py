"""Common prefixes: what examples of a packed row share, and what the row computes only once.

In a causal model the states of a prefix depend on the prefix alone, so examples that begin with
the same tokens (a template's header, a system prompt, few-shot examples) need its states once
per row. The idea is known from GRPO, where the answers to one prompt share it (PrefixGrouper,
arXiv:2506.05433); here the prefixes are found in the data, and form a tree. With dropout, a
shared token has one mask for all examples that share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import NamedTuple

# A shared segment is one more attention call per layer. In SmolLM2-135M on a CPU that takes as
# long as 3 tokens in float32 (AVX2), and 9 in bfloat16 (AMX); of a larger model, as fewer.
SHORTEST = 8


class Segment(NamedTuple):
    """Tokens ``start`` to ``end`` of an example, as one part of a row.

    ``parent`` is the index of the row's segment that these tokens continue, -1 if ``start`` is 0.
    A segment attends to its parent, to the parent's parent ..., and causally to itself.
    """

    example: int  # a shared segment names one of its examples
    start: int
    end: int
    parent: int = -1

    @property
    def tokens(self) -> int:
        """The number of tokens that are computed."""
        return self.end - self.start


@dataclass(frozen=True)
class Prefixes:
    """The common prefixes of some examples, as a forest of nodes; a parent has a lower index.

        example 0   a b c d | e f       node 0: a b c d, examples 0, 1 and 2
        example 1   a b c d | g h | i   node 1: g h after node 0, examples 1 and 2
        example 2   a b c d | g h | k l

    has parents [-1, 0], ends [4, 6] and deepest [0, 1, 1].
    """

    parents: list[int]  # of each node; -1: it begins with the examples' first token
    ends: list[int]  # of each node: the index after its last token, counted from the first token
    deepest: list[int]  # of each example: the last node on its way, or -1

    def path(self, example: int) -> list[int]:
        """Returns the nodes of an example, the first token's first."""
        nodes, node = [], self.deepest[example]
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def tokens(self, node: int) -> int:
        """Returns a node's number of tokens, without its parents'."""
        parent = self.parents[node]
        return self.ends[node] - (self.ends[parent] if parent >= 0 else 0)


def find_prefixes(prompts: Sequence[list[int]]) -> Prefixes:
    """Returns the common prefixes of prompts: the longest, in a tree of SHORTEST tokens per node.

    ``prompts`` are the first token ids of each example, as far as they may be shared.
    """
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    # common[k]: tokens that the k-th prompt in this order shares with the one before it.
    neighbours = ([prompts[a], prompts[b]] for a, b in pairwise(order))
    common = [0] + [len(commonprefix(pair)) for pair in neighbours]  # noqa: RUF071
    found = Prefixes([], [], [-1] * len(prompts))
    open_ranges = [(0, len(order), -1)]  # order[first:last] share the prefix that ends in a node
    while open_ranges:
        first, last, node = open_ranges.pop()
        if last - first < 2:
            continue
        shared = min(common[first + 1 : last])
        if shared - (found.ends[node] if node >= 0 else 0) >= SHORTEST:
            found.parents.append(node)
            found.ends.append(shared)
            node = len(found.ends) - 1
            for i in order[first:last]:
                found.deepest[i] = node
        cuts = [k for k in range(first + 1, last) if common[k] == shared]
        open_ranges += [(a, b, node) for a, b in zip([first, *cuts], [*cuts, last], strict=True)]
    return found


def list_segments(
    lengths: Sequence[int] | Mapping[int, int],
    members: Iterable[int],
    prefixes: Prefixes | None = None,
) -> list[Segment]:
    """Returns the segments of a row: each shared one before the examples that share it.

    ``lengths`` are the examples' tokens, ``members`` the indices of the row's. A prefix that only
    one member has is part of that member's own segment. The last segment is never shared.
    """
    members = list(members)
    if prefixes is None:
        return [Segment(i, 0, lengths[i]) for i in members]
    paths = {i: prefixes.path(i) for i in members}
    users = Counter(node for path in paths.values() for node in path)
    segments: list[Segment] = []
    placed: dict[int, int] = {}  # node -> index of its segment
    for i in members:
        start, parent, path = 0, -1, paths[i]
        for node, after in pairwise([*path, -1]):
            if users[node] == 1 or users[node] == users[after]:
                continue  # it becomes part of the segment after it
            if node not in placed:
                placed[node] = len(segments)
                segments.append(Segment(i, start, prefixes.ends[node], parent))
            start, parent = prefixes.ends[node], placed[node]
        segments.append(Segment(i, start, lengths[i], parent))
    return segments


def attention_context(segments: Iterable[Segment]) -> float:
    """Returns twice the number of keys per computed token, on average.

    Of one example of n tokens that is n: token p of a causal model attends to p + 1 keys.
    """
    squares = tokens = 0
    for _, start, end, _ in segments:
        squares += end**2 - start**2
        tokens += end - start
    return squares / max(tokens, 1)
