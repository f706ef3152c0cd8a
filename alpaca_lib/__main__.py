"""python -m alpaca_lib: the same as the command ``alpaca``."""

import sys

from alpaca_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
