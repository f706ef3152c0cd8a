"""python -m alpaca_lib.training COMMAND: train, watch, plan, merge, or write a cluster's files.

Every command has a --help. The settings are those of alpaca_lib.training.settings.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from alpaca_lib import command_line
from alpaca_lib.launch.commands import CLUSTER, LAUNCH, TRAIN, WATCH
from alpaca_lib.planning.commands import PLAN
from alpaca_lib.training.commands import MERGE

COMMANDS = [replace(TRAIN, name="run"), LAUNCH, WATCH, CLUSTER, PLAN, MERGE]


def main(arguments: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    return command_line.main("python -m alpaca_lib.training", __doc__, COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
