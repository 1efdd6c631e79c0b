"""The studies: what they compare composes, and their tables say what they should."""

import dataclasses
import math

import pytest
import torch

from experiments.calibration.calibrate import measure
from experiments.calibration.options import Options
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from experiments.studies import scale_study
from experiments.studies.curves_study import contenders, share_computed
from experiments.studies.curves_study import main as curves_main
from experiments.studies.transfer import interpolation, log_snr, map_calibration
from experiments.studies.transfer import main as transfer_main


@pytest.mark.parametrize(("label", "overrides"), list(contenders()), ids=lambda value: str(value)[:40])
def test_every_contender_composes(label, overrides):
    settings = resolve(compose(overrides))
    said = share_computed(settings, [0, 1, 2])
    assert ("attn.img" in said) == (settings.method.name == "smoothcache")
    assert label


def test_the_best_of_the_grid_is_the_best(monkeypatch):
    monkeypatch.setattr(
        scale_study, "measure_psnr", lambda bench, s: (10 - abs(s.sigma - 0.6) - abs(s.order - 4), 0.0, 0.0)
    )
    best = scale_study.best_of_grid(None, resolve(compose([])))  # type: ignore[arg-type]
    assert best.sigma == pytest.approx(0.6) and best.order == 4


def test_interpolation_is_exact_on_lines_and_constant_outside():
    known, wanted = torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([-1.0, 0.5, 2.0, 4.0, 9.0])
    rows = interpolation(known, wanted)
    assert torch.allclose(rows.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(rows @ (2 * known.double() + 1), torch.tensor([1.0, 2.0, 5.0, 9.0, 9.0], dtype=torch.float64))


def test_a_gram_matrix_mapped_to_the_same_run_is_itself_and_to_another_is_near(small):
    settings = resolve(compose([*small, "method=calibrated", "num_steps=20"]))
    from experiments.backends import load_backend

    found = measure(settings, Options(items=2, refine="none"), load_backend(settings.backend))
    assert torch.allclose(map_calibration(found, settings, settings).gram, found.gram)
    other = dataclasses.replace(settings, num_steps=25)
    there = measure(other, Options(items=2, refine="none"), load_backend(settings.backend))
    here = map_calibration(found, settings, other)
    assert here.gram.shape == (1, 25, 25) and torch.equal(here.gains.cost, there.gains.cost)
    middle = slice(3, 22)
    assert torch.allclose(here.gram[0, middle, middle], there.gram[0, middle, middle], rtol=0.1)
    assert math.isclose(float(log_snr(settings)[0]), float(log_snr(other)[0]), rel_tol=0.1)


@pytest.mark.parametrize(
    ("main", "argument", "message"),
    [
        (scale_study.main, "part=sigmas", "part: must be one of .*did you mean sigma"),
        (scale_study.main, "study_items=x", "study_items: must be an integer, got 'x'"),
        (curves_main, "study_items=3", "study_items: must be an integer >= 10, got 3"),
        (transfer_main, "part=width", "part: must be one of size, steps, got 'width'"),
    ],
)
def test_errors_name_the_key(main, argument, message):
    with pytest.raises(ConfigError, match=message):
        main([argument])
