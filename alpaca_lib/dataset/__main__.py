"""What is in a data set, and is it good enough to train on?"""

from __future__ import annotations

import sys

from alpaca_lib import command_line
from alpaca_lib.dataset.commands import CARD, CHECK, DESCRIBE, REPORT
from alpaca_lib.dataset.convert_command import CONVERT


def main(arguments: list[str]) -> int:
    """Runs a command line of ``python -m alpaca_lib.dataset`` and returns its exit code."""
    commands = [CHECK, DESCRIBE, REPORT, CARD, CONVERT]
    return command_line.main("python -m alpaca_lib.dataset", str(__doc__), commands, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
