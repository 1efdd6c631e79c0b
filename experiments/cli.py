"""The edge of the program: from exceptions to one line on stderr and an exit code.

0 all runs are done · 1 a run failed (its error.txt has the traceback), or files cannot be read or written (a full disk,
a vanished folder) · 2 the settings are wrong, nothing was written · 85 told to stop by SIGTERM, SIGUSR1 or SIGHUP, what
is finished is kept · 130 interrupted by Ctrl-C. After 85 and 130 the same command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from evaluation.errors import EvaluationError
from experiments import stopping
from experiments.errors import ConfigError, RunError
from experiments.files import lacks_space

__all__ = ["Arguments", "Exit", "JobError", "until_nobody_reads"]


class JobError(RuntimeError):
    """A job in another process failed; its own output has said why."""


class Arguments(argparse.ArgumentParser):
    """A command line whose refusals are lines like all others: key, rule, value."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found.

        Raises:
            ConfigError: always.
        """
        said = message.removeprefix("argument ")
        if match := re.match(r"(.+?): invalid choice: (.+?) \(choose from (.+)\)$", said):
            said = f"{match[1]}: must be one of {match[3]}, got {match[2]}"
        elif match := re.match(r"(.+?): invalid (\w+) value: (.+)$", said):
            said = f"{match[1]}: must be of type {match[2]}, got {match[3]}"
        elif match := re.match(r"the following arguments are required: (.+)$", said):
            said = f"{match[1]}: must be given"
        elif match := re.match(r"unrecognized arguments: (.+)$", said):
            said = f"argument: must be one of those in --help, got {match[1]!r}"
        raise ConfigError(said)


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """What is inside may print into a pipe whose reader goes, as `head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class Exit:
    """Collects the outcome of the jobs of one command; a failed job does not stop the others of a sweep."""

    def __init__(self) -> None:
        self.code = 0
        self.process = os.getpid()

    def guard(self, job: Callable[[], object]) -> None:
        """Do a job; what goes wrong becomes a line and a code. Signals to stop end it in order."""
        try:
            with stopping.heard():
                job()
        except (ConfigError, EvaluationError) as error:
            self.report(one_line(str(error)), 2)
        except stopping.Stopped:
            self.report("told to stop; the same command continues", stopping.STOPPED)
            raise SystemExit(self.code) from None
        except KeyboardInterrupt:
            self.report("interrupted; the same command continues", 130)
            raise SystemExit(self.code) from None
        except SystemExit as stop:
            if stop.code not in (None, 0):
                self.code = max(self.code, stop.code if isinstance(stop.code, int) else 2)
                raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who read our output is gone, as `head` is
            self.code = max(self.code, 1)
        except (RunError, JobError) as error:
            self.report(one_line(f"run failed: {error}"), 1)
        except Exception as error:
            if (said := explain_composer(error)) is not None:
                return self.report(one_line(said), 2)
            if (said := explain_system(error)) is None:
                raise
            self.report(one_line(said), 1)

    def end(self, job: Callable[[], int]) -> NoReturn:
        """Do a job and leave the program with the code that it returns, or with that of what went wrong."""
        found: list[int] = []
        self.guard(lambda: found.append(job()))
        sys.exit(self.code or sum(found))

    def hand_over(self) -> None:
        """In a process that a launcher started, the code is lost unless it is raised."""
        if self.code and os.getpid() != self.process:
            raise JobError(f"a job ended with code {self.code}, see its log")

    def report(self, line: str, code: int) -> None:
        """Print the line and keep the worst code."""
        print(f"error: {line}", file=sys.stderr, flush=True)
        self.code = max(self.code, code)


def one_line(text: str) -> str:
    """Text without line breaks, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def explain_composer(error: Exception) -> str | None:
    """What an error of Hydra's means for the user; None for another. Who has not composed has not loaded Hydra."""
    if "omegaconf" not in sys.modules:
        return None
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from experiments.config.compose import explain

    return explain(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else None


def explain_system(error: Exception) -> str | None:
    """What an error of the operating system means for the user; None for an error of another kind."""
    if lacks_space(error):
        return f"no space left{where(error)}; free some and give the same command"
    if isinstance(error, OSError) and error.errno is not None:
        return f"files must be readable and writable, got {error.strerror}{where(error)}"
    return None


def where(error: BaseException) -> str:
    """The file that an error names."""
    name = getattr(error, "filename", None)
    return f" at {name}" if name else ""
