"""Writes the network of a run for other programs; the body is fastaug/commands/export.py."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from fastaug.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
