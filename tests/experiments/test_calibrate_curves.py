"""Curves for SmoothCache, TeaCache and MagCache: against values recorded by hand, and the runs that use them."""

import dataclasses
import json

import pytest
import torch

from experiments.artefacts.stored_curves import curve_path, load_curves
from experiments.backends import load_backend
from experiments.calibration.calibrate import main
from experiments.calibration.curves import magnitudes, polynomial, smoothness
from experiments.calibration.trajectories import generate
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.runs.runner import execute, items_of
from experiments.settings.describe import describe_method
from experiments.settings.identity import canonical, run_id
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from hicache.policy.accumulate import POLYNOMIALS
from hicache.policy.scheduled import greedy


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=none", "num_items=4"]))


def test_error_curves_are_those_of_recorded_values(settings):
    backend, items = load_backend(settings.backend), items_of(settings)
    found = smoothness(backend, settings, items)
    assert found["fused_from"] is None and set(found["errors"]) == {"attn.img", "mlp.img"}
    values = {}
    for start in range(0, 4, settings.batch_size):
        batch = items[start : start + settings.batch_size]
        for site, recorded in generate(backend, settings, batch, ["modules"]).items():
            values.setdefault(site, []).append(recorded)
    for kind in ("attn", "mlp"):
        sites = [torch.cat(v).double() for site, v in values.items() if f".{kind}." in site]
        for s, k in ((1, 1), (5, 2), (7, 3)):
            ratios = [
                (v[:, s - k] - v[:, s]).abs().flatten(2).sum(-1) / v[:, s].abs().flatten(2).sum(-1) for v in sites
            ]
            assert found["errors"][f"{kind}.img"][s][k - 1] == pytest.approx(
                float(torch.stack(ratios).mean()), rel=1e-4
            )


def test_the_magnitude_curve_is_that_of_recorded_residuals(settings):
    backend, items = load_backend(settings.backend), items_of(settings)[:3]
    curve = magnitudes(backend, settings, items)["curve"]
    recorded = generate(backend, settings, items, ["stack"])["stack"].double().norm(dim=-1)
    ratios = (recorded[:, 1:] / recorded[:, :-1]).transpose(0, 1).flatten(1).mean(1)
    assert curve[0] == 1.0 and curve[1:] == pytest.approx(ratios.tolist(), rel=1e-4)


def test_the_polynomial_fits_better_than_its_mean(settings):
    found = polynomial(load_backend(settings.backend), settings, items_of(settings))
    assert len(found["coefficients"]) == 5
    assert 0 <= found["r_squared"] <= 1 and 0 < found["range"][0] < found["range"][1]


@pytest.mark.matrix
@pytest.mark.parametrize("backend", ["flux", "hunyuan_video", "qwen_image"])
def test_every_kind_of_a_backend_has_a_curve(backend, tmp_path):
    tiny = [f"backend={backend}", "backend.size=tiny", "backend.weights=random", "num_steps=4", "batch_size=1"]
    settings = resolve(compose([*tiny, f"results={tmp_path}", "method=none", "num_items=1"]))
    loaded, items = load_backend(settings.backend), items_of(settings)
    found = smoothness(loaded, settings, items)
    expected = {"attn.joint", "mlp.img", "mlp.txt"} | ({"fused.joint"} if backend != "qwen_image" else set())
    assert set(found["errors"]) == expected and (found["fused_from"] is None) == (backend == "qwen_image")
    assert all(row[0] > 0 for curve in found["errors"].values() for row in curve[1:])
    assert all(ratio > 0 for ratio in magnitudes(loaded, settings, items)["curve"])
    assert len(polynomial(loaded, settings, items)["coefficients"]) == 5


@pytest.mark.slow
def test_curves_are_made_beside_other_weights_used_and_refused_elsewhere(small, tiny, tmp_path):
    def run(*overrides):
        return resolve(compose([*small, "num_items=2", *overrides]))

    before = {name: canonical(run(f"method={name}")) for name in ("teacache", "magcache")}
    with pytest.raises(
        ConfigError,
        match=r"method: must have been calibrated .*method=smoothcache backend=digits backend.path=.* num_steps=8",
    ):
        method_of(run("method=smoothcache"))
    for name in ("smoothcache", "teacache", "magcache"):
        main([*small, f"method={name}", "items=2"])
        assert curve_path(run(f"method={name}"), name).is_relative_to(tiny)
    main([*small, "method=smoothcache", "items=2", f"output={tmp_path / 'curves.json'}"])
    assert (tmp_path / "curves.json").read_bytes() == curve_path(run("method=smoothcache"), "smoothcache").read_bytes()
    smooth = run("method=smoothcache", "method.alpha=0.1")
    errors = load_curves(smooth, "smoothcache")["errors"]
    assert method_of(smooth).policy.table == {kind: greedy(curve, 0.1) for kind, curve in errors.items()}
    assert "α=0.1" in describe_method(smooth)
    assert execute(run("method=smoothcache", "method.alpha=0")).metrics["num_full_steps"] == 8
    assert len(method_of(run("method=teacache")).policy.coefficients) == 5
    assert (
        method_of(run("method=teacache", "method.policy_options={polynomial:flux}")).policy.coefficients
        == POLYNOMIALS["flux"]
    )
    assert len(method_of(run("method=magcache")).policy.ratios) == 8
    assert len(method_of(run("method=hicache", "method.policy=magcache")).policy.ratios) == 8
    for name, old in before.items():
        assert canonical(run(f"method={name}"))["method"].keys() == old["method"].keys() | {"curves"}
        named = {"teacache": "{polynomial:identity}", "magcache": "{curve:flat}"}[name]
        assert "curves" not in canonical(run(f"method={name}", f"method.policy_options={named}"))["method"]
    assert run_id(smooth) != run_id(dataclasses.replace(smooth, method=dataclasses.replace(smooth.method, alpha=0.2)))
    path = curve_path(smooth, "smoothcache")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"keys": data["keys"] | {"num_steps": 50}}))
    with pytest.raises(ConfigError, match="smoothcache-ddim8-g1.5.json is valid for num_steps=50, got 8"):
        method_of(smooth)
    for name in ("smoothcache", "teacache", "magcache"):
        curve_path(run(f"method={name}"), name).unlink()


def test_published_coefficients_come_first(tmp_path, monkeypatch):
    settings = resolve(compose(["backend=flux", "backend.size=tiny", "backend.weights=random", "method=teacache"]))
    monkeypatch.setattr(
        "experiments.artefacts.stored_curves.curve_path", lambda *_: pytest.fail("no file is looked for")
    )
    assert "curves" not in canonical(settings)["method"]
    assert method_of(settings).policy.polynomial == "auto"


def test_the_shipped_curves_serve_the_embedded_model():
    smooth = method_of(resolve(compose(["method=smoothcache"]))).policy
    assert set(smooth.table) == {"attn.img", "mlp.img"} and all(len(steps) < 50 for steps in smooth.table.values())
    assert len(method_of(resolve(compose(["method=teacache"]))).policy.coefficients) == 5
    assert len(method_of(resolve(compose(["method=magcache"]))).policy.ratios) == 50
    with pytest.raises(ConfigError, match="method.alpha: must be a finite number >= 0, got -1.0"):
        compose(["method=smoothcache", "method.alpha=-1"])
