"""Being told to stop: the batch at work is finished and recorded, the next one is not begun.

A worker `listen`s; the runner asks `check` before every batch. The second signal stops at once, as Ctrl-C does.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

__all__ = ["Stopped", "asked", "check", "listen", "stop_with_parent"]

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

_asked = threading.Event()


class Stopped(KeyboardInterrupt):
    """Raised between two batches once the process was told to stop."""


def listen() -> None:
    """Take the signals of schedulers, parents and people as a wish to stop."""
    for number in SIGNALS:
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    del frame
    if _asked.is_set() and number != signal.SIGUSR1:
        raise KeyboardInterrupt
    _asked.set()
    os.write(2, f"told to stop by {signal.Signals(number).name}: after this batch\n".encode())


def asked() -> bool:
    """Whether a signal came."""
    return _asked.is_set()


def check() -> None:
    """Raise `Stopped` if a signal came."""
    if _asked.is_set():
        raise Stopped("told to stop")


def stop_with_parent() -> None:
    """Stop when standard input ends: a parent that holds its other end has died, by whatever signal."""

    def watch() -> None:
        while os.read(0, 65536):  # not sys.stdin: its lock, held by this thread, aborts the interpreter at its end
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
