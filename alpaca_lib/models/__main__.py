"""python -m alpaca_lib.models [NAME]: fetches a model now, and prints where it is.

Without NAME it fetches the embedded model.
"""

from __future__ import annotations

import sys

from alpaca_lib.errors import AlpacaError
from alpaca_lib.models import DEFAULT_MODEL, ModelSource


def main(arguments: list[str]) -> int:
    """Runs the command line; the exit code is 0 only if the model is there."""
    if any(word in ("-h", "--help") for word in arguments) or len(arguments) > 1:
        print(__doc__)
        return 0 if len(arguments) <= 1 else 2
    try:
        source = ModelSource.resolve(arguments[0] if arguments else DEFAULT_MODEL)
    except AlpacaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{source.name}: {source.path} ({source.origin})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
