"""The magnified picture of enlarged images."""

import pytest
import torch
from PIL import Image

from experiments.config.compose import compose
from experiments.config.preset import RowConfig
from experiments.errors import ConfigError
from experiments.reports import zoom
from experiments.runs import runner
from experiments.settings.resolve import resolve

TINY = ["backend=inf_dit", "backend.size=tiny", "num_steps=5", "interval=4", "num_items=2", "metrics=none",
        "metrics.latency_repeats=1", "metrics.latency_warmup=0"]  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    made = [resolve(compose([*TINY, f"method={name}", f"results={tmp_path}"])) for name in ("none", "hicache", "fora")]
    for settings in made[:2]:
        runner.execute(settings)
    rows = [(RowConfig(label=settings.method.name), settings) for settings in made]
    monkeypatch.setattr(zoom, "rows_of", lambda preset, overrides: (None, rows))
    return tmp_path


@pytest.mark.slow
def test_it_shows_what_was_run_beside_truth_and_bicubic(runs, capsys):
    truth, found = zoom.panels("small_table5", runs, "00_chelsea")
    assert [label for label, _ in found] == ["high resolution", "bicubic", "none", "hicache"]
    assert zoom.fidelity(found[1][1], truth) > zoom.fidelity(found[2][1], truth)
    zoom.main([f"results={runs}", "item=00_chelsea"])
    assert Image.open(runs / "figures" / "small_table5_zoom.png").width > 300
    assert "bicubic" in capsys.readouterr().out


def test_the_window_is_where_the_detail_is():
    image = torch.zeros(3, 128, 128)
    image[:, 70:110, 20:60] = torch.rand(3, 40, 40)
    top, left = zoom.find_detail(image)
    assert 110 - zoom.WINDOW - 4 <= top <= 72 and 60 - zoom.WINDOW - 4 <= left <= 22


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("item=none", "item: must be one of 00_chelsea, 01_coffee, got 'none'"),
        ("colour=red", "argument: must be one of preset, item, results, embedded as key=value"),
        ("embedded=yes", "embedded: must be true or false"),
    ],
)
def test_bad_arguments_are_one_line(runs, argument, message):
    with pytest.raises(ConfigError, match=message.replace("(", "\\(")):
        zoom.main([f"results={runs}", argument])
