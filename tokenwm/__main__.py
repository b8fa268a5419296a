"""``python -m tokenwm``: the same as the ``tokenwm`` command."""

import sys

from tokenwm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
