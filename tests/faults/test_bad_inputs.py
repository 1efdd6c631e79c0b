"""The rule for bad input: one line with the key, the rule and the value, code 2, nothing written.

Inputs are listed by hand, for every command; `test_generated_inputs` has those that follow from the schemas.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks import digits, speed
from benchmarks.forecasters import main as forecasters
from evaluation import cli as evaluation
from experiments.backends.weights import main as weights
from experiments.calibration.calibrate import main as calibrate
from experiments.calibration.trajectories import main as trajectories
from experiments.config.compose import compose
from experiments.config.words import check_words
from experiments.errors import ConfigError
from experiments.learning.train_predictor import main as train
from experiments.plans.collect import main as collect
from experiments.plans.execute import main as execute
from experiments.plans.make import main as plan_main
from experiments.plans.retry import main as retry
from experiments.plans.slurm import main as submit
from experiments.plans.status import main as status
from experiments.plans.verify import main as verify
from experiments.reports.figures import main as figures
from experiments.reports.report import main as report
from experiments.reports.tables import main as tables
from experiments.runs import runner
from experiments.settings.resolve import resolve

LONG = "x" * 300
TRAJECTORIES = ("backend=digits", "num_items=2", "num_steps=4")
TRAIN = ("method=lesa", "backend=digits", "num_steps=6", "items=2", "held_out=1", "updates=1,1", "every=1")
CALIBRATE = ("backend=digits", "num_steps=4", "items=2", "budget=2", "refine=none")
IMAGES = ("images=a", "reference=b", "metrics=[psnr]")


def run(words: list[str]) -> None:
    """What run.py refuses before it runs."""
    check_words(words)
    runner.check(resolve(compose([word for word in words if not word.startswith("-")])))


def settle(words: list[str]) -> None:
    """The checks of benchmarks.digits, without a model."""
    digits.main(words)


BY_HAND: dict[Any, list[tuple[str, tuple[str, ...]]]] = {
    run: [
        ("foo", ("+foo=1",)),
        ("_target_", ("+backend._target_=os.system",)),
        ("backend.x", ("++backend.x.y=1",)),
        ("backend.x", ("+backend.x=1",)),
        ("method.stepz", ("method.stepz=3",)),
        ("-x", ("-x",)),
        ("--sigma", ("--sigma", "0.5")),
        ("--config-dir", ("--config-dir=/nope",)),
        ("sigma", ("-m", "sigma=range(1,0)")),
        ("hydra.sweep.dir", ("-m", "sigma=0.5,0.6", "hydra.sweep.dir=/proc/x")),
        ("hydra.sweep.dir", ("-m", "sigma=0.5,0.6", "hydra.sweep.dir=afile/x")),
        ("hydra.run.dir", ("hydra.run.dir=/proc/x",)),
        ("backend", ("backend=digits.yaml",)),
        ("backend", ("backend=null",)),
        ("method", ("method=null",)),
        ("method", ("method=5",)),
        ("override", ("=1",)),
        ("override", ("foo",)),
        ("method.name", ("method.name=../../x",)),
        ("method.name", ("method.name=foo",)),
        ("results", ("results=''",)),
        ("seed", ("seed=99999999999999999999999",)),
        ("seed", ("seed=-1",)),
        ("num_steps", ("num_steps=100000",)),
        ("method.steps", ("method=steps", "method.steps=100000")),
        ("metrics.bootstrap_seed", ("metrics.bootstrap_seed=-1",)),
        ("backend.recommended.num_items", ("backend.recommended.num_items=-4",)),
        ("backend.guidance", ("backend.guidance=inf",)),
        ("backend.guidance", ("backend=flux", "backend.size=tiny", "backend.guidance=inf")),
        ("sigma", ("sigma=1e400",)),
        ("shard", ("shard=1",)),
        ("shard", ("shard=2/2",)),
        ("policy_options", ("method=teacache", "method.policy_options={threshold:inf}")),
        ("backend.path", (f"backend.path={LONG}",)),
    ],
    plan_main: [
        ("title", (f"title={LONG}",)),
        ("title", ("title=a/b",)),
        ("title", ("title=",)),
        ("override", ("foo",)),
        ("foo", ("+foo=1",)),
        ("results", ("results=afile",)),
    ],
    execute: [
        ("plan", ()),
        ("plan", ("nope",)),
        ("plan", (LONG,)),
        ("plan", ("../..",)),
        ("--executor", ("mini", "--executor", "foo")),
        ("--shards", ("mini", "--shards", "x")),
        ("--shards", ("mini", "--shards", "0")),
        ("--threads", ("mini", "--threads", "1.5")),
        ("--foo", ("mini", "--foo")),
    ],
    status: [("plan", ()), ("plan", ("nope",)), ("--foo", ("x", "--foo")), ("plan", (LONG,))],
    retry: [("plan", ()), ("rows", ("mini", "x")), ("rows", ("mini", "1.5")), ("plan", ("nope",))],
    collect: [("plan", ()), ("plan", ("nope",)), ("plan", (LONG,))],
    verify: [("PLAN", ()), ("plan", ("nope",)), ("plan", (LONG,))],
    submit: [("plan", ()), ("plan", ("nope", "cluster=a100"))],
    report: [
        ("table", ()),
        ("table", ("table=nope",)),
        ("run", ("nope",)),
        ("items", ("results", "items=0")),
        ("side", ("results", "side=abc")),
        ("out", ("table=digits", "out=")),
        ("out", ("table=digits", f"out={LONG}")),
        ("out", ("table=digits", "out=afile/x.html")),
        ("argument", ("results", "foo=1")),
    ],
    tables: [
        ("table", ()),
        ("table", ("table=nope",)),
        ("embedded", ("table=digits", "embedded=x")),
        ("columns", ("table=digits", "columns=x")),
        ("argument", ("plan=x", "foo=1")),
    ],
    figures: [
        ("quality", ("table=digits", "quality=foo")),
        ("speed", ("table=digits", "speed=foo")),
        ("items", ("table=digits", "items=0")),
        ("errors", ("table=digits", "errors=-1")),
        ("table", ()),
        ("argument", ("foo",)),
        ("argument", ("plan=mini", "foo=1")),
        ("plan", ("plan=nope",)),
    ],
    weights: [
        ("argument", ()),
        ("argument", ("a",)),
        ("SOURCE", ("/nope", "x")),
        ("--foo", ("a", "b", "--foo")),
    ],
    forecasters: [
        ("foo", ("--foo",)),
        ("foo", ("foo",)),
        ("seeds", ("--seeds", "-1")),
        ("seeds", ("--seeds", "a")),
    ],
    trajectories: [
        ("reserve", (*TRAJECTORIES, "reserve=a")),
        ("reserve", (*TRAJECTORIES, "reserve=inf")),
        ("reserve", (*TRAJECTORIES, "reserve=1e9")),
        ("tokens", (*TRAJECTORIES, "tokens=1.5")),
        ("tokens", (*TRAJECTORIES, "tokens=0")),
        ("keep", (*TRAJECTORIES, "keep=foo")),
        ("folder", (*TRAJECTORIES, "folder=")),
        ("folder", (*TRAJECTORIES, "folder=afile")),
        ("folder", (*TRAJECTORIES, "folder=afile/x")),
        ("sites", (*TRAJECTORIES, "sites=foo")),
        ("sites", (*TRAJECTORIES, "sites=")),
        ("sites", (*TRAJECTORIES, "sites=,")),
        ("sites", (*TRAJECTORIES, "sites=output,foo")),
        ("method", (*TRAJECTORIES, "method=hicache")),
        ("argument", ("foo",)),
        ("foo", ("+foo=1",)),
    ],
    train: [
        ("method", ()),
        ("argument", ("method=lesa", "foo")),
        ("cuts", (*TRAIN, "intervals=2", "memories=2,2", "cuts=99")),
        ("cuts", (*TRAIN, "intervals=2", "memories=2,2", "cuts=-1")),
        ("intervals", (*TRAIN, "intervals=99", "memories=2")),
        ("output", (*TRAIN, "output=afile/x.safetensors")),
        ("output", (*TRAIN, "output=/proc/x")),
        ("output", (*TRAIN, "output=")),
        ("output", (*TRAIN, "output=afolder")),
    ],
    calibrate: [
        ("trials", (*CALIBRATE, "trials=-1")),
        ("trials", (*CALIBRATE, "trials=1.5")),
        ("seconds", (*CALIBRATE, "seconds=60")),
        ("calibration_seed", (*CALIBRATE, "calibration_seed=-1")),
        ("output", (*CALIBRATE, "output=")),
        ("output", (*CALIBRATE, "output=afolder")),
        ("output", (*CALIBRATE, "output=afile/x")),
        ("budget", ("backend=digits", "budget=a")),
        ("budget", ("backend=digits", "budget=0")),
        ("method", ("backend=digits", "method=nope")),
        ("items", ("backend=digits", "items=0")),
        ("argument", ("foo",)),
    ],
    settle: [
        *((key, (f"{key}=0",)) for key in ("batch", "interval", "steps", "repeats", "threads")),
        ("order", ("order=-1",)),
        ("order", ("order=7",)),
        ("sigma", ("sigma=-1.0",)),
        ("foo", ("foo=1",)),
        ("foo", ("foo",)),
        ("foo", ("--foo",)),
    ],
}


@pytest.mark.parametrize(
    ("main", "key", "words"),
    [(main, key, words) for main, cases in BY_HAND.items() for key, words in cases],
    ids=lambda value: "" if callable(value) else " ".join(value)[:60] if isinstance(value, tuple) else value[:20],
)
def test_listed_inputs_are_refused(main, key, words, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    (tmp_path / "afolder").mkdir()
    found = call(main, *words)
    lines = found.err.strip().splitlines()
    assert found.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), found
    assert key in lines[0]
    assert sorted(os.listdir(tmp_path)) == ["afile", "afolder"]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("size", {"size": "nope"}),
        ("device", {"device": "tpu"}),
        ("scopes", {"scopes": "foo"}),
        ("intervals", {"intervals": "0"}),
        ("intervals", {"intervals": "a,b"}),
        ("backend", {"backend": "nope"}),
        ("steps", {"steps": 0}),
        ("order", {"order": -1}),
        ("repeats", {"repeats": 0}),
    ],
)
def test_the_speed_benchmark_checks_before_it_builds(key, words):
    with pytest.raises(ConfigError, match=key):
        speed.check_config({**speed.DEFAULTS, "device": "cpu", **words})


EVALUATION = [
    ("argument", ()),
    ("metrics", ("images=a",)),
    ("images", ("images=a", "images.b=1")),
    ("level", (*IMAGES, "level=2.0")),
    ("batch_size", (*IMAGES, "batch_size=0")),
    ("out", (*IMAGES, "out=afile")),
    ("out", (*IMAGES, "out=afile/x")),
    ("out", (*IMAGES, "out=/proc/x")),
    ("device", (*IMAGES, "device=tpu")),
    ("crop", ("images=a", "reference=b", "metrics=[psnr_y]", "psnr_y.crop=abc")),
    ("weights.foo", ("doctor", "weights.foo=/x")),
    ("runs", ("compare", "baseline=a", "runs=[]", "metrics=[psnr]")),
    ("metrics", ("compare", "baseline=a", "runs=[a]", "metrics=[]")),
    ("foo", ("compare", "baseline=a", "runs=[a]", "metrics=[psnr]", "foo=1")),
    ("npz", ("npz", "images=a")),
    ("samples", ("vbench", "videos=a", "info=x", "python=x", "out=o", "samples=abc")),
    ("download", ("vbench", "videos=a", "info=x", "python=x", "out=o", "download=3")),
    ("run", ("run=nope", "metrics=[psnr]")),
    ("foo", ("foo=1",)),
    ("foo", ("foo",)),
]


@pytest.mark.parametrize(("key", "words"), EVALUATION, ids=lambda value: " ".join(value)[-40:])
def test_inputs_of_the_evaluation_are_refused(key, words, tmp_path, monkeypatch, call):
    from tests.evaluation.conftest import noise, save_all

    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        save_all(tmp_path / folder, noise(2), "{}.png")
    (tmp_path / "afile").touch()
    found = call(evaluation.main, *words)
    lines = found.err.strip().splitlines()
    assert found.code == 2 and len(lines) == 1 and key in lines[0], found
    assert sorted(os.listdir(tmp_path)) == ["a", "afile", "b"]


def test_an_empty_file_of_weights_is_not_ready(tmp_path, monkeypatch, call):
    for name in ("inception.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(b"GARBAGE" * 100)
    found = call(evaluation.main, "doctor", "metrics=[fid]", f"weights.inception={tmp_path / 'inception.pth'}")
    assert found.code == 2 and "is no file of torch" in found.err
