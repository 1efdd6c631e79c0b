"""`python -m evaluation ...`; see `evaluation.cli`.

It ends with 85 when told to stop by a signal, with 130 by Ctrl-C: the values of finished items are kept, and the same
command continues.
"""

import signal
import sys
from types import FrameType

from evaluation.cli import main

STOPPED, INTERRUPTED = 85, 130


class StopSignal(KeyboardInterrupt):
    """A scheduler, or a person with kill, asked to stop."""


def stop(number: int, frame: FrameType | None) -> None:
    """End in order, so that partial files are removed."""
    del frame
    raise StopSignal(signal.Signals(number).name)


for request in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(request, stop)
try:
    code = main(sys.argv[1:])
except KeyboardInterrupt as asked:
    code, said = (STOPPED, "told to stop") if isinstance(asked, StopSignal) else (INTERRUPTED, "interrupted")
    print(f"{said}; the same command continues", file=sys.stderr)
sys.exit(code)
