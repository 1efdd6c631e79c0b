"""The study of the learned methods, on the tiny model."""

import csv
import functools

import pytest

import hicache
from experiments.errors import ConfigError
from experiments.learning.predictor_options import L2cOptions, LesaOptions
from experiments.learning.train_predictor import main as train_main
from experiments.studies import learned_study
from experiments.studies.learned_study import contenders, main, spread

QUICK = {"items": 4, "held_out": 2, "tokens": 4, "rows": 8, "intervals": (2, 3), "updates": (1, 2)}
VARIED = {"KAN": {}, "MLP": {"temporal": "mlp"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the tables go; trainings take a moment."""
    monkeypatch.setattr(learned_study, "FOLDER", tmp_path / "tables")
    monkeypatch.setattr(learned_study, "LesaOptions", functools.partial(LesaOptions, **QUICK))
    short = functools.partial(L2cOptions, updates=(2,), items=10, held_out=1)
    monkeypatch.setattr(learned_study, "L2cOptions", short)
    monkeypatch.setattr(learned_study, "VARIANTS", VARIED)
    return tmp_path / "tables"


def table(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.slow
def test_every_part_writes_its_table_and_figure(small, folder, tmp_path):
    path = tmp_path / "lesa.safetensors"
    options = [f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in QUICK.items()]
    train_main([*small, "method=lesa", *options, f"output={path}"])
    main([*small, "part=lesa", f"method.artefact={path}", "study_items=10"])
    main([*small, "part=ablation,l2c", "study_items=10"])
    names = {"lesa", "lesa_ablation", "l2c"}
    assert {p.name for p in folder.iterdir()} == {
        *(f"{name}.{kind}" for name in names for kind in ("csv", "md")),
        *("lesa.png", "lesa_losses.png", "lesa_losses.csv", "l2c.png"),
    }
    losses = table(folder / "lesa_losses.csv")
    assert {(row["predictor"], row["phase"]) for row in losses} == {
        (p, f) for p in VARIED for f in ("guided", "closed")
    }
    rows = table(folder / "lesa.csv")
    assert {(row["N"], row["full steps"]) for row in rows} == {("5", "4"), ("7", "4"), ("10", "4")}
    assert [row["method"] for row in rows[:4]] == ["LESA", "FORA", "TaylorSeer", "HiCache"]
    assert all(float(row["low"]) <= float(row["PSNR (dB)"]) <= float(row["high"]) for row in rows)
    kan, mlp = table(folder / "lesa_ablation.csv")
    assert (kan["predictor"], mlp["predictor"]) == ("KAN", "MLP") and kan["parameters"] != mlp["parameters"]
    for first in range(0, 8, 4):
        router, *others = table(folder / "l2c.csv")[first : first + 4]
        nearest = min(float(other["FLOPs speed-up"]) for other in others)
        assert abs(8 / float(router["FLOPs speed-up"]) - 8 / nearest) < 0.6  # within half a step
    assert "part=l2c study_items=10" in (folder / "l2c.md").read_text()


def test_full_steps_are_spread_evenly():
    assert spread(50, 5) == [0, 10, 20, 30, 40] and spread(50, 50) == list(range(50))
    for count in range(1, 51):
        gaps = [b - a for a, b in zip(spread(50, count), spread(50, count)[1:])]
        assert len(spread(50, count)) == count and max(gaps, default=0) - min(gaps, default=0) <= 1


def test_contenders_share_their_schedule():
    made = [method for _, _, method in contenders(interval=7, warmup_steps=4, scope="stack")]
    assert all(method.policy.plan(50) == hicache.full_steps(50, 7, 4) and method.scope == "stack" for method in made)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("part=lessa", "part: must be one of .*did you mean lesa"),
        ("study_items=3", "study_items: must be an integer >= 10, got 3"),
        ("study_items=x", "study_items: must be an integer"),
    ],
)
def test_errors_name_the_key(small, argument, message):
    with pytest.raises(ConfigError, match=message):
        main([*small, argument])
