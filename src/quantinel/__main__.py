"""``python -m quantinel`` is the command line."""

import sys

from quantinel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
