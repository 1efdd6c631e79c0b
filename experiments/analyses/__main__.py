"""`python -m experiments analyses`: see `experiments.analyses.parts`."""

from __future__ import annotations

import sys

from experiments.analyses.parts import main
from experiments.cli import Exit

outcome = Exit()
outcome.guard(lambda: main(sys.argv[1:]))
sys.exit(outcome.code)
