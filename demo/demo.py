"""`make demo`: a source, a far host and a disaster, on this machine, in about a minute."""

import runpy
import sys
from pathlib import Path

# A script's own directory comes first in the path; there `demo` would be this very file.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
runpy.run_module("demo.play", run_name="__main__")
