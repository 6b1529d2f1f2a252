"""`pausing_cli.py MARKER N ARGUMENTS...`: the command line, which stops at the N-th line of its log with the marker."""

import logging
import os
import signal
import sys

from pipelines.cli import main


class Pause(logging.Handler):
    """Stops the whole process group, so that whoever waits for it acts at that very line."""

    def __init__(self, marker: str, nth: int) -> None:
        super().__init__()
        self.marker, self.left = marker, nth

    def emit(self, record: logging.LogRecord) -> None:
        if self.marker in record.getMessage():
            self.left -= 1
            if self.left == 0:
                os.killpg(0, signal.SIGSTOP)


logging.getLogger("tactful").addHandler(Pause(sys.argv.pop(1), int(sys.argv.pop(1))))
main()
