"""DMD and auto: exactness, the Gram form against SVD, agreement with hicache-pp, one decision per sample."""

import math

import pytest
import torch

import hicache
from hicache.forecast import BASES
from hicache.forecast.dmd import HERMITE, Dmd
from hicache.forecast.window import extend_gram

from . import denoisers
from .models import build, denoise, inputs


def exponentials(steps, width=24, poles=((0.95, 0.3), (0.8, 0.0)), seed=0):
    """`F_t = Re sum_j a_j (r_j exp(i w_j))^t`."""
    generator = torch.Generator().manual_seed(seed)
    amplitude = torch.randn(width, len(poles), dtype=torch.complex128, generator=generator)
    z = torch.tensor([complex(r * math.cos(w), r * math.sin(w)) for r, w in poles], dtype=torch.complex128)
    return [(amplitude @ z**t).real for t in range(steps)]


def noisy(steps, seed, noise=0.05, **kwargs):
    generator = torch.Generator().manual_seed(100 + seed)
    return [v + noise * torch.randn(v.shape, dtype=v.dtype, generator=generator) for v in exponentials(steps, **kwargs)]


def observed(name, series, times, **knobs):
    forecaster = hicache.forecaster(name, **{"order": 2, "sigma": 0.5, **knobs})
    for t in times:
        forecaster.observe(t, series[t][None])
    return forecaster


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("times", [range(5), range(0, 25, 5), [0, 1, 2, 3, 8, 13, 18, 23, 28]])
def test_exact_on_one_real_and_one_complex_pair(times):
    times = list(times)
    series = exponentials(times[-1] + 12, poles=((0.99, 0.1), (0.97, 0.0)))
    forecaster = observed("dmd", series, times)
    for step in range(times[-1] + 1, times[-1] + 9):
        assert relative(forecaster.predict(step)[0], series[step]) < 1e-6


def test_four_snapshots_are_the_floor():
    series = exponentials(20, poles=((0.95, 0.3),))
    assert relative(observed("dmd", series, range(4)).predict(7)[0], series[7]) < 1e-6
    hermite = hicache.forecaster("hicache", order=2, sigma=0.5, gate=False)
    for times in ([0, 1, 2], [0, 1, 2, 3, 8], [0, 1, 5, 9]):
        hermite.reset()
        for t in times:
            hermite.observe(t, series[t][None])
        assert torch.equal(observed("dmd", series, times).predict(12), hermite.predict(12))
    assert relative(hermite.predict(12)[0], series[12]) > 1e-2


def svd_form(values, h, tolerance=1e-4, ridge=1e-8):
    """Exact DMD as it is written down, without the Gram matrix."""
    v = torch.stack(values, 1)
    u, s, w = torch.linalg.svd(v[:, :-1], full_matrices=False)
    r = int((s > tolerance * s[0]).sum())
    right = w[:r].T / (s[:r] + ridge)
    poles, modes = torch.linalg.eig(u[:, :r].T @ v[:, 1:] @ right)
    phi = (v[:, 1:] @ right).to(modes.dtype) @ modes
    b = torch.linalg.lstsq(phi, v[:, -1:].to(modes.dtype)).solution[:, 0]
    return (phi @ (poles**h * b)).real


@pytest.mark.parametrize("n", [4, 5, 6, 8])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("h", [0.2, 1, 3.6])
def test_gram_form_is_the_svd_form(n, noise, h):
    values = noisy(n, seed=n, noise=noise, poles=((0.99, 0.4), (0.9, 0.9)))
    found = hicache.forecaster("dmd", basis_options={"history": n}, order=2)
    for t, value in enumerate(values):
        found.observe(5 * t, value[None])
    weights = found.history.basis.identify(found.history.gram).at(h)[0]
    forecast = sum(w * f for w, f in zip(weights, values[1:]))
    assert relative(forecast, svd_form(values, h)) < 1e-10


def test_a_linear_trend_survives_its_defective_propagator():
    base, slope = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    series = [base + 0.1 * t * slope for t in range(30)]
    assert relative(observed("dmd", series, range(0, 24, 4)).predict(26)[0], series[26]) < 1e-5


def test_not_finite_means_reuse():
    series = exponentials(10)
    broken = [v.clone() for v in series]
    broken[1][3] = math.nan
    assert torch.equal(observed("dmd", broken, range(4)).predict(6)[0], broken[3])
    forecaster = hicache.forecaster("dmd", order=2)
    for t in range(4):
        forecaster.observe(t, torch.stack([broken[t], series[t]]))
    weights = torch.stack(forecaster.coefficients(6)[1:])
    assert weights[:, 0].tolist() == [0, 0, 1]
    assert relative(forecaster.predict(6)[1], series[6]) < 1e-6
    zeros = observed("dmd", [torch.zeros(4)] * 6, range(6))
    assert torch.equal(zeros.predict(9), torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["dmd", "auto"])
def test_the_report_names_what_served_in_place_of_dmd(name):
    """Hermite until there are enough equally spaced anchors, reuse where the features are no longer finite.

    That auto prefers Hermite there is its choice.
    """
    given = [1, 3, 5] if name == "dmd" else [1, 3, 5, 7]
    loop = hicache.Loop(hicache.method(name, interval=2, warmup_steps=1, order=2), num_steps=16, batch=False)
    series = [*exponentials(11), *[torch.full((24,), math.nan, dtype=torch.float64)] * 5]
    for step in range(16):
        loop(step, lambda value=series[step]: value)
    assert loop.report.estimated_steps == list(range(1, 16, 2))
    assert loop.report.fallbacks == {"hermite": given, **({"reuse": [13, 15]} if name == "dmd" else {})}
    assert f"  hermite in place of the method's basis at {len(given)} steps: {given}" in str(loop.report)
    loop(0, lambda: series[0])
    assert not loop.report.fallbacks
    plain = hicache.Loop(hicache.method("hicache", interval=2, warmup_steps=1), num_steps=16, batch=False)
    for step in range(16):
        plain(step, lambda value=series[step]: value)
    assert not plain.report.fallbacks and "in place of" not in str(plain.report)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["modules", "stack", "output"])
def test_the_report_of_a_model(scope):
    """On the fused path and on the tapped one: the steps whose window is not equally spaced."""
    for model, call in ((build("dit"), None), (denoisers.build("SD3Transformer2DModel"), denoisers.inputs_of)):
        with hicache.cached(model, hicache.method("dmd", interval=3, warmup_steps=1, scope=scope)) as cache:
            if call is None:
                denoise(model, inputs(model, "dit"), steps=16)
            else:
                cache.begin(16)
                for step in range(16):
                    model(**call("SD3Transformer2DModel", step))
                    cache.step()
        report = cache.report
        assert report.full_steps == list(range(0, 16, 3))
        assert report.fallbacks == {"hermite": [step for step in report.estimated_steps if step < 9]}


def test_gram_bases_need_a_gram():
    with pytest.raises(ValueError, match="gram: Dmd needs the inner products of the anchors, got None"):
        BASES["dmd"].weights([0, 1, 2, 3], 4, 2)


def test_a_fixed_rank_rejects_noise():
    clean, series = exponentials(16, poles=((0.97, 0.4),)), noisy(16, seed=3, poles=((0.97, 0.4),))
    knobs = {"basis_options": {"history": 8, "rank": 2}}
    free = observed("dmd", series, range(8), basis_options={"history": 8})
    assert relative(observed("dmd", series, range(8), **knobs).predict(11)[0], clean[11]) < relative(
        free.predict(11)[0], clean[11]
    )


def test_one_fit_serves_a_window(monkeypatch):
    fits, series = [], exponentials(40)
    original = Dmd.identify
    monkeypatch.setattr(Dmd, "identify", lambda self, gram: fits.append(1) or original(self, gram))
    forecaster = hicache.forecaster("dmd", order=2)
    for step in range(40):
        if step % 5 == 0:
            forecaster.observe(step, series[step][None])
        else:
            forecaster.predict(step)
    assert len(fits) == 5
    gram = forecaster.history.gram
    torch.testing.assert_close(gram, regram(forecaster.history.frames), rtol=1e-12, atol=1e-12)
    forecaster.reset()
    assert forecaster.history.gram is None


def regram(frames):
    gram = None
    for n in range(1, len(frames) + 1):
        gram = extend_gram(gram, frames[:n], 1)
    return gram


@pytest.mark.parametrize("name", ["dmd", "auto"])
def test_a_sample_does_not_depend_on_its_batch(name):
    """Samples of different rank and choice, and sites of different scale, in one frame."""
    kinds = [exponentials(30), noisy(30, 1), switching(30), [v * 1e-3 for v in exponentials(30, poles=((0.9, 0.0),))]]
    together = hicache.method(name, order=2).build_forecaster(lead=2)
    alone = [hicache.method(name, order=2).build_forecaster(lead=1) for _ in kinds]
    for t in range(0, 30, 5):
        together.observe(t, torch.stack([kind[t] for kind in kinds]).reshape(2, 2, 4, 6))
        for forecaster, kind in zip(alone, kinds):
            forecaster.observe(t, kind[t].reshape(1, 4, 6))
    for step in (26, 29):
        found = together.predict(step).reshape(4, 4, 6)
        for value, forecaster in zip(found, alone):
            torch.testing.assert_close(value, forecaster.predict(step)[0], rtol=1e-12, atol=1e-12)


def switching(steps, at=18, seed=0):
    """The poles change at step `at`, the state does not jump."""
    generator = torch.Generator().manual_seed(seed)
    amplitude = torch.randn(24, 2, dtype=torch.complex128, generator=generator)
    state, found = torch.ones(2, dtype=torch.complex128), []
    early, late = (
        torch.polar(torch.tensor(r), torch.tensor(w))
        for r, w in (([0.9, 0.95], [0.5, 0.1]), ([0.97, 0.9], [-0.4, 0.3]))
    )
    for t in range(steps):
        found.append((amplitude @ state).real)
        state = state * (early if t < at else late)
    return found


# -- hicache-pp --------------------------------------------------------------------------------------------------

SCHEDULES = {
    "uniform": list(range(0, 60, 5)),
    "warm-up": [0, 1, 2, 3, *range(8, 60, 5)],
    "long warm-up": [*range(7), *range(11, 60, 5)],
    "ragged": [0, 2, 4, 6, 8, 10, 13, 14, 15, 16, 17, 18, 25, 32, 39, 46, 53],
}
KINDS = {
    "exponentials": lambda s: exponentials(60, poles=((0.99, 0.15), (0.97, 0.0)), seed=s),
    "noise": lambda s: noisy(60, s, poles=((0.99, 0.2), (0.98, 0.05))),
    "random walk": lambda s: list(
        torch.randn(60, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(s)).cumsum(0)
    ),
}


def state_of(pp, backend, holdout):
    return pp.hicache_init(60, interval=5, max_order=2, sigma=0.5, backend=backend, history=6, holdout=holdout)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("backend", "holdout"), [("dmd", "1step"), ("auto", "1step"), ("auto", "horizon")])
def test_equals_hicache_pp(kind, schedule, backend, holdout):
    pp = pytest.importorskip("hicache_pp")
    options = {"history": 6} | ({"holdout": holdout} if backend == "auto" else {})
    served = set()
    for seed in range(3):
        series, state = KINDS[kind](seed), state_of(pp, backend, holdout)
        ours = hicache.forecaster(backend, order=2, sigma=0.5, interval=5, basis_options=options)
        for step, value in enumerate(series):
            state["step"] = step
            if step in SCHEDULES[schedule]:
                state["activated_steps"].append(step)
                pp.hicache_update_derivatives(state, value)
                pp.dmd_update_snapshots(state, value)
                ours.observe(step, value[None])
                continue
            theirs = (pp.dmd_forecast_state if backend == "dmd" else pp.auto_forecast_state)(state)
            found = ours.predict(step)[0]
            assert (found - theirs).abs().max() <= 1e-7 * max(1.0, theirs.abs().max().item()), (seed, step)
        served |= set(state["telemetry"]["method_counts"])
        assert state["telemetry"]["method_counts"]["dmd"] > 0 or backend == "auto"


@pytest.mark.parametrize("holdout", ["1step", "horizon"])
def test_auto_picks_what_suits(holdout):
    """The exponentials where they are, the polynomial where the regime has switched inside the window."""
    options = {"basis_options": {"holdout": holdout, "history": 8}, "interval": 2}
    steady, torn = exponentials(20), switching(20, at=7)
    forecaster = hicache.method("auto", order=2, **options).build_forecaster()
    for t in range(10):
        forecaster.observe(t, torch.stack([steady[t], torn[t]]))
    forecaster.predict(10)
    assert forecaster.history._fitted.chosen.tolist() == [True, False]
    few = observed("auto", steady, range(4), **options)
    hermite = hicache.forecaster("hicache", order=2, sigma=0.5, gate=False)
    for t in range(4):
        hermite.observe(t, steady[t][None])
    assert torch.equal(few.predict(6), hermite.predict(6))
    assert few.history._fitted.modes is None


def test_auto_takes_an_adaptive_sigma():
    forecaster = hicache.forecaster(
        "auto", order=2, sigma=0.9, sigma_schedule="adaptive", basis_options={"holdout": "horizon"}
    )
    for t in range(0, 30, 5):
        forecaster.observe(t, torch.stack([exponentials(30)[t], switching(30)[t]]))
    assert torch.isfinite(forecaster.predict(28)).all()


def test_features_that_are_zero_have_no_modes():
    for basis in (Dmd(), Dmd(rank=2), Dmd(ridge=0.0)):
        modes = basis.identify(torch.zeros(1, 5, 5, dtype=torch.float64))
        assert modes.poles.eq(1).all() and modes.amplitudes.isnan().all()


@pytest.mark.parametrize(
    ("interval", "target", "length", "reach"),
    [
        (9, 22, 6, 2),
        (4, 22, 6, 1),
        (1, 29, 8, 3),
        (None, 29, 8, 3),
        (None, 400, 8, 7),
        (None, 30, 6, 2),
        (101, 22, 6, 5),
    ],
)
def test_the_holdout_is_as_far_as_the_forecast(interval, target, length, reach):
    """Skipped steps over spacing 4, rounded up, below the anchors that are there; too few on both sides: the last four are
    held out from."""
    basis = BASES["auto"].__class__(holdout="horizon", interval=interval)
    assert basis._reach([12, 16, 20], target, length) == reach


@pytest.mark.parametrize(
    ("holdout", "length", "h"), [("1step", 7, 1), ("horizon", 7, 2), ("horizon", 7, 4), ("horizon", 12, 5)]
)
def test_auto_decides_by_the_errors_of_both_arms_on_the_held_anchor(holdout, length, h):
    """By hand, from the features themselves: lines, parabolas and exponentials with noise of all sizes."""
    g = torch.Generator().manual_seed(0)
    t, sites = torch.linspace(0, 1, length, dtype=torch.float64), 60
    shapes = torch.stack([1 + 3 * t, 1 - t + 2 * t**2, (2.0 * t).exp(), (9 * t).cos()])
    noise = torch.logspace(-6, -1, sites, dtype=torch.float64)[:, None, None]
    mix = torch.randn(sites, 5, 4, generator=g, dtype=torch.float64) * (torch.rand(sites, 1, 4, generator=g) < 0.4)
    values = (mix @ shapes + noise * torch.randn(sites, 5, length, generator=g)).mT  # [sites, anchors, 5]
    basis = BASES["auto"].__class__(holdout=holdout, interval=h + 1, history=length)
    gram, times = values @ values.mT, range(length)
    chosen = basis.fit(list(times), length + 4.0, 2, 0.6, gram).chosen
    seen, held, reach = range(length - h), length - 1, h
    if h >= 4:  # backwards from the newest
        seen, held, reach = range(length - h, length), length - 1 - h, -h
    line = [*[0.0] * (len(seen) - 2), -1.0, 2.0]
    arm = line if holdout == "1step" else HERMITE.weights(range(len(seen)), len(seen) - 1 + reach, 2, 0.6)
    part = values[:, list(seen)]
    dmd = basis.identify(part @ part.mT).at(reach)
    errors = []
    for weights in (dmd, torch.tensor(arm, dtype=torch.float64).expand(sites, -1)):
        forecast = (weights[:, :, None] * part[:, -weights.shape[1] :]).sum(1)
        errors.append((forecast - values[:, held]).square().sum(-1))
    clear = (errors[0] - errors[1]).abs() > 1e-6 * (errors[0] + errors[1])
    assert torch.equal(chosen[clear], (errors[0] < errors[1])[clear])
    assert 5 < int(chosen.sum()) < sites - 5
