"""`fastaug find-shift`, from a checkout that need not be installed."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from fastaug.commands.find_shift import main

if __name__ == "__main__":
    sys.exit(main())
