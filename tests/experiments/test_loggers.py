"""One run reported the same everywhere; what is not installed is said before anything is made."""

import sys
import types

import pytest

from experiments.config.compose import compose, options
from experiments.errors import ConfigError
from experiments.runs import loggers, runner
from experiments.runs.loggers import LOGGERS, check_logger, flat
from experiments.runs.runner import execute, folder_of
from experiments.settings.resolve import resolve


class Kept:
    """A sink that keeps what it is given."""

    made: list = []

    def __init__(self, settings, folder):
        self.values, self.pictures = {}, 0
        Kept.made.append(self)

    def log(self, values, step):
        for name, value in values.items():
            self.values.setdefault(name, []).append((step, value))

    def picture(self, path, step):
        assert path.is_file()
        self.pictures += 1

    def close(self):
        return "see it here"


def test_every_logger_has_a_configuration():
    assert set(options("logger")) == set(LOGGERS)


def test_a_run_is_reported_once_also_when_it_was_finished_before(small, monkeypatch, capsys):
    monkeypatch.setitem(LOGGERS, "trackio", ("sys", Kept))
    monkeypatch.setitem(LOGGERS, "wandb", ("sys", Kept))
    Kept.made.clear()
    words = [word for word in small if word != "metrics=none"] + [
        "metrics.names=[psnr]",
        "metrics.timing=full",
        "num_items=3",
    ]
    done = execute(resolve(compose([*words, "logger=wandb"])))
    mine = Kept.made[-1]
    assert [step for step, _ in mine.values["items"]] == [3] and mine.pictures == 1
    assert mine.values["psnr/mean"] == [(3, done.metrics["psnr"]["mean"])] and "wall_speedup" in mine.values
    count = len(Kept.made)
    again = execute(resolve(compose([*words, "logger=wandb"])))
    assert again.found and len(Kept.made) == count, "it was reported already"
    capsys.readouterr()
    execute(resolve(compose([*words, "logger=trackio"])))
    later = Kept.made[-1]
    assert len(Kept.made) == count + 2 and set(later.values) == set(mine.values), "run and reference"
    assert later.values["psnr/mean"] == mine.values["psnr/mean"]
    assert "trackio: see it here" in capsys.readouterr().out
    assert (folder_of(again.run).path / "logged.json").is_file()


def test_a_logger_that_is_missing_is_said_in_one_line(small, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in ("tensorboard", "trackio", "wandb"):
        settings = resolve(compose([*small, f"logger={name}"]))
        line = rf"^logger: must be installed \(pip install 'hicache\[{name}\]'\), got '{name}'$"
        with pytest.raises(ConfigError, match=line):
            check_logger(settings)
        with pytest.raises(ConfigError, match="^logger: must be installed"):
            runner.check(settings)
        assert not settings.results.exists()


def test_trackio_is_called_as_it_documents(small, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **given: calls.append(("init", sorted(given))),
        log=lambda values, step: calls.append(("log", sorted(values), step)),
        finish=lambda: calls.append(("finish",)),
        Image=lambda path: path,
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    settings = resolve(compose([*small, "logger=trackio"]))
    sink = loggers.Trackio(settings, folder_of(settings))
    sink.log({"psnr/mean": 1.0}, 3)
    assert sink.close() == "trackio show --project hicache"
    assert calls == [("init", ["config", "name", "project", "resume"]), ("log", ["psnr/mean"], 3), ("finish",)]


def test_tensorboard_writes_events(small, tmp_path):
    pytest.importorskip("tensorboard")
    settings = resolve(compose([*small, "logger=tensorboard"]))
    folder = folder_of(settings)
    folder.path.mkdir(parents=True)
    sink = loggers.TensorBoard(settings, folder)
    sink.log({"psnr/mean": 1.0}, 3)
    assert sink.close().startswith("tensorboard --logdir") and list((folder.path / "tensorboard").glob("events*"))


def test_names_are_those_of_the_metrics():
    metrics = {"psnr": {"mean": 1.5, "low": None, "why": "x"}, "flops_speedup": 2.0, "run": "a", "full_steps": [1]}
    assert flat(metrics) == {"psnr/mean": 1.5, "flops_speedup": 2.0}
