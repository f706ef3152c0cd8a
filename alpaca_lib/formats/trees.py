"""Message trees, as in OASST: one row per message -> one conversation per tree.

From the root, the path follows the reply with the best rank (0 is the best; without ranks the
first), and ends with the last answer on it. The other branches are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca_lib.json_rows import RowError

TREE_COLUMNS = frozenset(("message_id", "parent_id", "text", "role"))
NESTED = (
    "is a tree with its replies inside, as in OASST's trees files; convert the file of its "
    "messages instead, with one row per message"
)
_KEPT = ("message_tree_id", "lang")


def read_trees(rows: Sequence[Any]) -> tuple[list[dict[str, Any]], list[int], int]:
    """Returns (rows of messages, the number of each one's first row, messages left out).

    Raises RowError, with the row's number in the text, for a message that is in no tree.
    """
    replies: dict[Any, list[int]] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.keys() >= TREE_COLUMNS:
            raise RowError(f"row {number} is no message of a tree, and row 1 is one")
        replies.setdefault(row["parent_id"], []).append(number)
    ids = {row["message_id"] for row in rows}
    lost = [n for parent, numbers in replies.items() if parent not in {*ids, None} for n in numbers]
    if lost:
        raise RowError(f"row {min(lost)} has a `parent_id` that no row has as its `message_id`")
    made, firsts, used = [], [], 0
    for root in replies.get(None, []):
        path = [root]
        while following := replies.get(rows[path[-1] - 1]["message_id"]):
            path.append(min(following, key=lambda number: _rank(rows[number - 1])))
        while len(path) > 1 and rows[path[-1] - 1]["role"] not in ("assistant", "gpt"):
            path.pop()
        messages = [
            {"role": rows[number - 1]["role"], "content": rows[number - 1]["text"]}
            for number in path
        ]
        first = rows[root - 1]
        made.append({"messages": messages, **{k: first[k] for k in _KEPT if k in first}})
        firsts.append(root)
        used += len(path)
    return made, firsts, len(rows) - used


def _rank(row: dict[str, Any]) -> float:
    rank = row.get("rank")
    return float(rank) if isinstance(rank, int | float) and rank == rank else 0.0
