"""Run an experiment.

    python run.py                                              the embedded model under HiCache
    python run.py method=taylorseer interval=8                 another method, other settings
    python run.py -m sigma=0.3,0.5,0.75 method=hicache,fora    a sweep; what is done is not done again
    python run.py compare=hicache,taylorseer,fora              methods on the same items, side by side
    python run.py experiment=digits_table                      all rows of a preset
    python run.py --cfg job                                    show the composed configuration

A run lives in results/runs/<id>; the same command continues one that was interrupted. Settings:
conf/config.yaml and conf/<group>/, their types and rules: experiments/config/backend.py.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.cli import Exit, JobError, until_nobody_reads
from experiments.config.front_help import help_text
from experiments.config.imports import load

outcome = Exit()


@cache
def sweep() -> Any:
    """The runs of this command (imported late, as all that loads torch: help needs none of it)."""
    from experiments.reports.sweep import Sweep

    return Sweep()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Hydra composes; errors become a line and an exit code. The value is what a sweeper optimises."""
    from experiments.config.compose import to_dataclass

    overrides = list(HydraConfig.get().overrides.task)
    outcome.guard(lambda: sweep().run(to_dataclass(config), overrides, outcome))
    outcome.hand_over()
    if sweep().objective is None and (name := config.metrics.objective) is not None:
        raise JobError(f"no {name} for the sweeper")
    return sweep().objective


def start() -> None:
    """`compare=` becomes its sweep; words that Hydra would answer with its usage text are refused in a line.

    Flags, sweeps and Hydra's own keys are Hydra's; a single run is composed once here, and not twice there.
    """
    load("torch")
    from experiments.config.compose import compose, set_up
    from experiments.config.words import check_words, expand_compare

    set_up()
    words, sweep().pictures = expand_compare(sys.argv[1:])
    words = check_words(words)
    if any(word.startswith(("-", "hydra")) for word in words):
        sys.argv[1:] = words
        main()
    else:
        sweep().run(compose(words), words, outcome, alone=True)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        with until_nobody_reads():
            print(help_text(__doc__ or ""))
        sys.exit()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of composition reach us, who say them in one line
    outcome.guard(start)
    if {"-m", "--multirun"} & set(sys.argv):
        outcome.guard(lambda: sweep().rank())
    sys.exit(outcome.code)
