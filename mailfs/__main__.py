"""``python -m mailfs`` is the command ``mailfs``."""

import sys

from mailfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
