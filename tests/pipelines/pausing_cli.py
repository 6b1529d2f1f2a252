"""`pausing_cli.py MARKER N ARGUMENTS...`: the command line, which stops at the N-th line of its log with the marker."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipelines.cli import main
from tests.pausing import Pause

logging.getLogger("tactful").addHandler(Pause(sys.argv.pop(1), int(sys.argv.pop(1))))
main()
