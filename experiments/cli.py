"""The edge of the program: from exceptions to one line on stderr and an exit code.

0 all runs are done · 1 a run failed (its error.txt has the traceback) · 2 the settings are wrong, nothing was
written · 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from evaluation.errors import EvaluationError
from experiments.config.compose import explain
from experiments.errors import ConfigError, RunError

__all__ = ["Exit", "JobError"]


class JobError(RuntimeError):
    """A job in another process failed; its own output has said why."""


class Exit:
    """Collects the outcome of the jobs of one command; a failed job does not stop the others of a sweep."""

    def __init__(self) -> None:
        self.code = 0
        self.process = os.getpid()

    def guard(self, job: Callable[[], object]) -> None:
        """Do a job; what goes wrong becomes a line and a code."""
        try:
            job()
        except (ConfigError, EvaluationError) as error:
            self.report(str(error), 2)
        except (HydraException, OmegaConfBaseException) as error:
            self.report(explain(error), 2)
        except KeyboardInterrupt:
            self.report("interrupted; the same command continues", 130)
            raise SystemExit(self.code) from None
        except Exception as error:
            if not isinstance(error, (RunError, JobError)):
                raise
            self.report(f"run failed: {error}", 1)

    def hand_over(self) -> None:
        """In a process that a launcher started, the code is lost unless it is raised."""
        if self.code and os.getpid() != self.process:
            raise JobError(f"a job ended with code {self.code}, see its log")

    def report(self, line: str, code: int) -> None:
        """Print the line and keep the worst code."""
        print(f"error: {line}", file=sys.stderr, flush=True)
        self.code = max(self.code, code)
