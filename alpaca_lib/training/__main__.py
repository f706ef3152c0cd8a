"""python -m alpaca_lib.training run SETTINGS.json

Trains as the JSON file says: under plain python one process, under torchrun as
many as it starts. The settings are those of alpaca_lib.training.settings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Runs the command line; the exit code is 0 only if the training ended."""
    if len(arguments) != 2 or arguments[0] != "run":
        print(__doc__)
        return 0 if arguments in ([], ["-h"], ["--help"]) else 2
    from alpaca_lib.embedded import ModelError
    from alpaca_lib.records import DataError
    from alpaca_lib.training.adapters import AdapterError
    from alpaca_lib.training.checkpoints import CheckpointError
    from alpaca_lib.training.loop import TrainingStopped, train
    from alpaca_lib.training.settings import Settings

    try:
        train(
            Settings.load(Path(arguments[1])),
            report=lambda line: print(json.dumps(line), flush=True),
        )
    except (
        AdapterError, CheckpointError, DataError, ModelError, TrainingStopped, ValueError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
