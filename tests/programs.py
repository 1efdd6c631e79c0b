"""Programs in processes of their own, forked from one that has imported what they need: a start takes a moment."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preload"])


def main(words: list[str], cwd: str, out: str, err: str) -> None:
    """The program that `python *words` is."""
    os.chdir(cwd)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    first, rest = words[0], words[1:]
    sys.argv = rest if first in ("-m", "-c") else words
    try:
        if first == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            exec(rest[0], {"__name__": "__main__"})  # noqa: S102  code of a test
        else:
            runpy.run_path(str(ROOT / first), run_name="__main__")
    finally:
        sys.stdout.flush()


class Program:
    """A started `python *words`."""

    def __init__(self, *words: str, cwd: Path = ROOT) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="program-")
        self.files = Path(self.folder.name, "out"), Path(self.folder.name, "err")
        self.process = SERVER.Process(target=main, args=(list(words), str(cwd), *map(str, self.files)))
        with contextlib.chdir(ROOT):  # the first start makes the server, which imports `tests` from where it stands
            multiprocessing.forkserver.ensure_running()
        self.process.start()

    @property
    def out(self) -> str:
        """What it has printed."""
        return self.files[0].read_text() if self.files[0].exists() else ""

    @property
    def err(self) -> str:
        """What it has said on stderr."""
        return self.files[1].read_text() if self.files[1].exists() else ""

    def until(self, said: str, timeout: float = 120) -> None:
        """Wait until it has said something."""
        end = time.monotonic() + timeout
        while said not in self.err + self.out:
            assert self.process.is_alive() and time.monotonic() < end, self.err
            time.sleep(0.002)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return int(self.process.pid or 0)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.join()

    def wait(self, timeout: float = 120) -> int:
        """Its exit code."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.err}"
        return self.process.exitcode
