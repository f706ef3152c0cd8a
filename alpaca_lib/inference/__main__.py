"""Compares what was trained, and puts it to use.

MODEL is a folder (an adapter's too), a hub id or the embedded model's name; for serve also a
.gguf file. Every command has a --help. `alpaca COMMAND` is the same.
"""

from __future__ import annotations

import sys

from alpaca_lib import command_line
from alpaca_lib.evaluation.commands import COMPARE, JUDGE, OUTPUTS
from alpaca_lib.export.commands import CHECK, EXPORT, PUBLISH, SERVE
from alpaca_lib.inference.commands import CHAT, SAFETY

COMMANDS = (COMPARE, OUTPUTS, JUDGE, EXPORT, CHECK, PUBLISH, SERVE, SAFETY, CHAT)


def main(arguments: list[str]) -> int:
    """Runs ``python -m alpaca_lib.inference`` and returns its exit code."""
    return command_line.main("python -m alpaca_lib.inference", __doc__ or "", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
