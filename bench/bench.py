"""The entry point of `make bench`; the suite itself is in suite.py."""

import sys
from pathlib import Path

# The repository's root in place of this directory, where this very file hides the package bench.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.suite import main  # noqa: E402 - found by the line above

if __name__ == "__main__":
    sys.exit(main())
