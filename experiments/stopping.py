"""Being told to stop: the batch at work is finished and recorded, the next one is not begun.

A worker `listen`s; the runner asks `check` before every batch. The second signal stops at once, as Ctrl-C does. Every
other program has `heard`: SIGTERM, SIGUSR1 and SIGHUP raise `Stopped` where it stands, or at the end of a batch that is
`finishing`; Ctrl-C stops it at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["STOPPED", "Stopped", "asked", "check", "finishing", "heard", "listen", "stop_with_parent"]

STOPPED = 85
"""Exit code of a program that was told to stop and has work left: put it back into the queue."""

REQUESTS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)

SIGNALS = (*REQUESTS, signal.SIGINT)

_asked = threading.Event()

_depth = 0
"""How many `finishing` blocks the main thread is in."""


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


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Requests to stop raise `Stopped` inside, unless something else listens; afterwards all is as it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = [number for number in REQUESTS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)
        if free:
            _asked.clear()


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    if _depth and not _asked.is_set():
        _asked.set()
        os.write(2, f"told to stop by {signal.Signals(number).name}: after this batch\n".encode())
        return
    _asked.clear()
    raise Stopped("told to stop")


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """What is begun inside is finished first; the second request stops it at once."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


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
