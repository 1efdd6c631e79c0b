"""One front door: `python -m experiments VERB ...`; each verb is a module that is run as a program."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from experiments.cli import until_nobody_reads

__all__ = ["VERBS", "main"]

VERBS: dict[str, tuple[str, str]] = {
    "plan": ("plans.make", "freeze a preset or a sweep into a plan, with its cost"),
    "execute": ("plans.execute", "execute a plan here, one worker per device"),
    "submit": ("plans.slurm", "submit a plan to Slurm"),
    "status": ("plans.status", "where the rows of a plan stand"),
    "retry": ("plans.retry", "let failed rows be tried again"),
    "verify": ("plans.verify", "whether all files of runs and plans still are what was written"),
    "collect": ("plans.collect", "check, finish and index the runs of a plan"),
    "tables": ("reports.tables", "print a table and write it to results/tables"),
    "figures": ("reports.figures", "figures of tables, and of trajectories"),
    "zoom": ("reports.zoom", "a part of an enlarged image, magnified, method by method"),
    "report": ("reports.report", "one HTML page of everything"),
    "pages": ("reports.pages", "fill the tables of README.md and docs/ from results/embedded"),
    "calibrate": ("calibration.calibrate", "calibrate full steps and weights, or curves"),
    "trajectories": ("calibration.trajectories", "record what the model computes over the steps"),
    "train digits": ("learning.train_digits", "train the embedded model"),
    "train emoji": ("learning.train_emoji", "train the text-to-image model"),
    "train emoji-judge": ("learning.train_emoji_judge", "train what scores its pictures"),
    "train emoji-atlas": ("learning.emoji_atlas", "make its sprites from two npm packages"),
    "train super-resolution": ("learning.train_super_resolution", "train the small super-resolution model"),
    "train predictor": ("learning.train_predictor", "train a learned method"),
    "analyses": ("analyses.parts", "analyses of trajectories"),
    "study calibrated": ("studies.calibrated", "calibrated plans against hand-made ones"),
    "study ceiling": ("studies.ceiling", "calibrated plans against a fitted solver"),
    "study curves": ("studies.curves_study", "methods with calibrated curves"),
    "study inside": ("studies.inside_study", "a plan inside the model and every forecaster on its full steps"),
    "study learned": ("studies.learned_study", "the learned methods"),
    "study margins": ("studies.margins", "calibrated plans against forecasters, by what schedules these may have"),
    "study places": ("studies.places_study", "where full steps belong, for every forecaster"),
    "study places-transfer": ("studies.places_transfer", "searched places at other forecasters, scopes and models"),
    "study places-own": ("studies.places_own", "full steps searched for each item alone, and for all items at once"),
    "study scale": ("studies.scale_study", "sigma and order chosen from trajectories"),
    "study transfer": ("studies.transfer", "calibrated plans on other seeds and solvers"),
    "compare": ("settings.compare", "what to set to compare with another program"),
    "methods": ("settings.zoo", "all methods, and which backend runs which"),
    "convert inf-dit": ("backends.inf_dit.checkpoint", "Inf-DiT's checkpoint as safetensors"),
    "weights": ("backends.weights", "a pipeline of .bin files written again as safetensors"),
}
"""Verb -> its module, and one line of help."""


def list_verbs(first: str = "") -> str:
    """All verbs, or those of two words that begin with this one, a line each."""
    shown = {verb: line for verb, (_, line) in VERBS.items() if not first or verb.startswith(f"{first} ")}
    wide = max(map(len, shown))
    head = f"python -m experiments {first} WORD ..." if first else __doc__ or ""
    ask = f"`python -m experiments {first or 'VERB'}{' WORD' if first else ''} --help` says what one does."
    return "\n".join([head, "", *(f"    {verb:<{wide}}  {line}" for verb, line in shown.items()), "", ask])


def docstring_of(verb: str) -> str | None:
    """What `--help` says of a verb: its module's docstring, read without an import; None where argparse adds to it."""
    text = Path(__file__).parent.joinpath(*VERBS[verb][0].split(".")).with_suffix(".py").read_text()
    return None if "description=__doc__" in text else ast.get_docstring(ast.parse(text))


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code where the module does not end the process itself."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(list_verbs())
        return 0
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if verb in VERBS:
            asked = {"-h", "--help"} & set(arguments[words:])
            if asked and (text := docstring_of(verb)) is not None:
                print(text)
                return 0
            sys.argv = [f"python -m experiments {verb}", *arguments[words:]]
            runpy.run_module(f"experiments.{VERBS[verb][0]}", run_name="__main__", alter_sys=True)
            return 0
    return refuse(*arguments)


def refuse(first: str, *rest: str) -> int:
    """Say what stands for an unknown verb, or the second words of a verb of two; returns the exit code."""
    seconds = [verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{first} ")]
    if seconds and {"-h", "--help"} & set(rest):
        print(list_verbs(first))
        return 0
    key, known, got = (first, seconds, rest[0] if rest else "") if seconds else ("verb", list(VERBS), first)
    print(f"error: {key}: must be one of {', '.join(known)}, got {got!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    with until_nobody_reads():
        sys.exit(main(sys.argv[1:]))
