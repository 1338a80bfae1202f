"""`python -m cpuinfer`: the command line."""

from __future__ import annotations

import sys

from cpuinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
