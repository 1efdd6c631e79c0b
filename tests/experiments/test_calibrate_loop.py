"""The closed loop: what it sees is what a run does, and values along a plan are those of the model."""

import dataclasses
import json

import pytest
import torch

import hicache.adapters
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.calibration.calibrate import main, measure
from experiments.calibration.closed_loop import refit
from experiments.calibration.options import Options
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.settings.resolve import resolve
from hicache.fitting.calibrated_plan import build_plan

QUICK = Options(items=4, trials=0)


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=calibrated"]))


@pytest.mark.parametrize("solver", ["unipc", "dpmpp"])
def test_the_closed_loop_is_refused_where_a_step_has_a_memory(small, tmp_path, capsys, solver):
    path, words = tmp_path / "plan.json", [*small, f"backend.solver={solver}", "budget=3", "items=2"]
    for refine in ("loop", "search"):
        with pytest.raises(ConfigError, match=f"refine: must be none .*{solver}.*, got '{refine}'") as error:
            main([*words, f"output={path}", f"refine={refine}"])
        assert "\n" not in str(error.value) and capsys.readouterr().out == "" and not path.exists()
    main([*words, f"output={path}"])
    assert capsys.readouterr().out.startswith("refine=none: ")
    made = json.loads(path.read_text())
    assert made["made"]["refine"] == "none" and "closed_loop_psnr" not in made["plan"]


def test_the_closed_loop_sees_what_a_run_does(settings):
    backend = load_backend(settings.backend)
    found = measure(settings, QUICK, backend)
    loop = found.loop
    full = [0, 2, 5]
    rows, errors = loop.refine(full, memory=2)
    plan = dataclasses.replace(build_plan(found.gram, found.gains.cost, "output", full_steps=full), rows=rows)
    backend.prepare(sampling_of(settings))
    with hicache.cached(backend.pipe, hicache.method("calibrated", **plan.knobs())):
        images = torch.stack(backend.generate(loop.items, loop.sampling))
    final = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(rows[s].anchors, rows[s].weights))
    )
    assert torch.allclose(images, (final / 2 + 0.5).clamp(0, 1), atol=1e-4)
    assert torch.allclose((final - loop.path[:, -1]).square().flatten(1).mean(1), errors, rtol=1e-2, atol=1e-8)
    open_loop = build_plan(found.gram, found.gains.cost, "output", full_steps=full).rows
    followed = loop.run(
        full, lambda s, x, a, v: sum(w[0] * v[a.index(t)] for t, w in zip(open_loop[s].anchors, open_loop[s].weights))
    )
    assert errors.mean() <= (followed - loop.path[:, -1]).square().mean() * 1.05


def test_the_path_is_the_uncached_run(settings):
    backend = load_backend(settings.backend)
    loop = measure(settings, QUICK, backend).loop
    backend.prepare(sampling_of(settings))
    images = torch.stack(backend.generate(loop.items, loop.sampling))
    assert torch.allclose(images, (loop.path[:, -1] / 2 + 0.5).clamp(0, 1), atol=1e-5)
    everything = loop.run(list(range(8)), lambda *args: pytest.fail("nothing is to be estimated"))
    assert torch.allclose(everything, loop.path[:, -1], atol=1e-5)


@pytest.mark.parametrize("scope", ["stack", "modules"])
def test_values_along_the_plan_are_those_of_the_model(settings, scope):
    inner = dataclasses.replace(settings, scope=scope)
    backend = load_backend(inner.backend)
    found = measure(inner, QUICK, backend)
    assert found.gram.shape == ((1 if scope == "stack" else 4), 8, 8)
    whole = build_plan(found.gram, found.gains.cost, scope, full_steps=list(range(8)))
    assert torch.allclose(refit(backend, inner, found.items, whole), found.gram, rtol=1e-6)
    plan = build_plan(found.gram, found.gains.cost, scope, full_steps=[0])
    drifted = refit(backend, inner, found.items, plan)
    assert drifted.shape == found.gram.shape
    assert torch.allclose(drifted[:, :2, :2], found.gram[:, :2, :2], rtol=1e-6)  # step 1 is the first estimated one
    assert not torch.allclose(drifted, found.gram, rtol=1e-5)
