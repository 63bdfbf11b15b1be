#!/usr/bin/env python3
"""The command of `python -m benchmarks.policy`, from any folder."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.policy import main

if __name__ == "__main__":
    sys.exit(main())
