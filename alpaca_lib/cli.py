"""alpaca: from seed tasks to a model that answers, on the command line.
`alpaca COMMAND --help` lists its options, and ends with two worked examples.
    data      generate, or convert a file -> inspect
    model     plan -> train, or launch several processes, or cluster -> merge
    answers   chat, compare, judge, evaluate -> export, serve, publish
"""

from __future__ import annotations

import sys

from alpaca_lib import command_line
from alpaca_lib.dataset.commands import INSPECT
from alpaca_lib.dataset.convert_command import CONVERT
from alpaca_lib.evaluation.benchmark_commands import EVALUATE
from alpaca_lib.evaluation.commands import COMPARE, JUDGE
from alpaca_lib.export.commands import EXPORT, PUBLISH, SERVE
from alpaca_lib.generation.commands import GENERATE
from alpaca_lib.inference.commands import CHAT
from alpaca_lib.launch.commands import CLUSTER, LAUNCH, TRAIN, WATCH
from alpaca_lib.planning.commands import PLAN
from alpaca_lib.training.commands import MERGE

COMMANDS = (
    GENERATE,
    INSPECT,
    CONVERT,
    PLAN,
    TRAIN,
    LAUNCH,
    WATCH,
    CLUSTER,
    MERGE,
    CHAT,
    COMPARE,
    JUDGE,
    EVALUATE,
    EXPORT,
    SERVE,
    PUBLISH,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs ``alpaca`` with these arguments (default: the process's); returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return command_line.main("alpaca", __doc__, COMMANDS, given)
