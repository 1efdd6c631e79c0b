"""FoCa, Spectrum, Padé and the growing schedule: exactness, published variants, independent recomputation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hicache
from hicache.forecast.chebyshev import Chebyshev
from hicache.forecast.foca import Foca
from hicache.forecast.pade import Pade
from hicache.forecast.window import extend_gram, uniform_tail
from hicache.policy import Growing

anchors = st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted)
several = anchors.filter(lambda t: len(t) > 1)


def apply(weights, times, function):
    return sum(w * function(t) for w, t in zip(weights, times))


def smooth(t, size=6):
    return torch.sin(torch.linspace(0.1, 0.5, size, dtype=torch.float64) * t + 1)


# -- FoCa --------------------------------------------------------------------------------------------------------


def predictor_corrector(values, times, target):
    """BDF2 and Heun carried out step by step, with the slope of the last parabola (or secant)."""
    f = np.polynomial.Polynomial.fit(times[-3:], values[-3:], len(times[-3:]) - 1).deriv()(times[-1])
    g, k = times[-1] - times[-2], target - times[-1]
    w = k / g
    predicted = ((1 + w) ** 2 * values[-1] - w**2 * values[-2] + (1 + w) * k * f) / (1 + 2 * w)
    parabola = np.polynomial.Polynomial.fit([times[-2], times[-1], target], [*values[-2:], predicted], 2)
    return values[-1] + k / 2 * (f + parabola.deriv()(target))


@given(times=several, k=st.integers(1, 12))
def test_foca_is_its_predictor_and_corrector(times, k):
    target = times[-1] + k
    weights = Foca().weights(times, target, 2)
    values = [math.sin(t / 9) for t in times]
    assert apply(weights, times, lambda t: math.sin(t / 9)) == pytest.approx(
        predictor_corrector(values, times, target), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("variant", ["variable", "paper"])
@given(times=several, k=st.integers(1, 12))
def test_foca_is_exact_on_lines(variant, times, k):
    weights = Foca(variant=variant).weights(times, times[-1] + k, 2)
    assert apply(weights, times, lambda t: 3 - 2 * t) == pytest.approx(3 - 2 * (times[-1] + k), abs=1e-7)


@given(times=several, k=st.integers(1, 12))
def test_the_papers_reading_is_linear_extrapolation(times, k):
    """F_p = 4/3 F_n - 1/3 F_{n-1} + 2/3 h f_n, f_p = (3 F_p - 4 F_n + F_{n-1}) / 2h, F_n + h/2 (f_n + f_p), h = k."""
    new, old = math.exp(times[-1] / 40), math.exp(times[-2] / 40)
    f = (new - old) / (times[-1] - times[-2])
    predicted = 4 / 3 * new - old / 3 + 2 / 3 * k * f
    by_hand = new + k / 2 * (f + (3 * predicted - 4 * new + old) / (2 * k))
    weights = Foca(variant="paper").weights(times, times[-1] + k, 2)
    assert apply(weights, times, lambda t: math.exp(t / 40)) == pytest.approx(by_hand, rel=1e-9)
    taylor = hicache.forecast.BASES["taylor"].weights(times, times[-1] + k, 1)
    assert weights == pytest.approx(taylor, rel=1e-9, abs=1e-9)


def test_foca_util_ignores_the_horizon():
    basis = Foca(variant="util")
    assert basis.weights([2, 9], 10, 2) == basis.weights([2, 9], 15, 2) == pytest.approx([-1 / 6, 7 / 6])


def cache_dit_foca(series, full, steps):
    foca = pytest.importorskip("cache_dit.caching.cache_contexts.calibrators.foca", reason="cache-dit is not installed")
    state, found = foca.FoCaState(), {}
    for step in range(steps):
        state.mark_step_begin()
        if step in full:
            state.update(series[step])
        else:
            found[step] = state.approximate()
    return found


@pytest.mark.parametrize("full", [[0, 1], [0, 1, 2, 3], [0, 3, 7, 12], [0, 1, 2, 9, 16]])
def test_foca_anchored_equals_cache_dit(full):
    """At gap 1 and, as long as all anchors are kept, at any gap."""
    series, steps = [smooth(t) for t in range(24)], full[-1] + 7
    theirs = cache_dit_foca(series, full, steps)
    ours = hicache.forecaster("foca", basis_options={"variant": "anchored", "history": 6})
    for step in range(steps):
        if step in full:
            ours.observe(step, series[step])
        else:
            torch.testing.assert_close(ours.predict(step), theirs[step], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_equals_cache_dit(order):
    """Its gate opens at step 2, as that of the published code with three warm-up steps."""
    taylor = pytest.importorskip(
        "cache_dit.caching.cache_contexts.calibrators.taylorseer", reason="cache-dit is not installed"
    )
    state, full = taylor.TaylorSeerState(n_derivatives=order), set(hicache.full_steps(40, 5, 3))
    ours = hicache.forecaster("taylorseer", order=order, warmup_steps=3)
    for step in range(40):
        value = smooth(step)
        state.mark_step_begin()
        if step in full:
            state.update(value)
            ours.observe(step, value)
        else:
            torch.testing.assert_close(ours.predict(step), state.approximate(), rtol=1e-9, atol=1e-9)


# -- Spectrum ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalise", [False, True])
@given(times=anchors, k=st.integers(1, 12), degree=st.integers(0, 5), mix=st.sampled_from([0.0, 0.5, 1.0]))
def test_spectrum_recomputed_with_numpy(penalise, times, k, degree, mix):
    """Ridge regression as least squares with appended rows sqrt(lambda); the polynomials as cos(n arccos)."""
    target, ridge = times[-1] + k, 0.1
    values = np.cos(np.array(times) / 7)

    def chebyshev(step):
        return np.polynomial.chebyshev.chebvander((step - 25) / 25, degree).reshape(-1)

    penalty = math.sqrt(ridge) * np.eye(degree + 1)
    penalty[0] *= penalise
    rows = np.vstack([np.stack([chebyshev(t) for t in times]), penalty])
    fitted = np.linalg.lstsq(rows, np.concatenate([values, np.zeros(degree + 1)]), rcond=None)[0]
    line = values[-1]
    if len(times) > 1:
        line += k * (values[-1] - values[-2]) / (times[-1] - times[-2])
    expected = (1 - mix) * line + mix * chebyshev(target) @ fitted
    basis = Chebyshev(degree=degree, ridge=ridge, mix=mix, penalise_constant=penalise)
    weights = basis.weights(times, target, 2)
    assert float(np.dot(weights, values)) == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_spectrum_keeps_the_whole_history_up_to_its_cap():
    whole, capped = (hicache.forecaster("chebyshev", basis_options=o) for o in ({}, {"history": 3}))
    for step in range(0, 40, 4):
        whole.observe(step, smooth(step))
        capped.observe(step, smooth(step))
    assert (len(whole.history.frames), len(capped.history.frames)) == (10, 3)


def test_growing_window_schedule():
    assert Growing(alpha=0.75).plan(50) == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    assert Growing(alpha=3).plan(50) == [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    assert Growing(window=1, alpha=0).plan(9) == list(range(9))
    method = hicache.method("chebyshev", policy="growing", policy_options={"alpha": 3.0}, warmup_steps=5)
    assert len(method.policy.plan(50)) == 10


# -- Padé --------------------------------------------------------------------------------------------------------


def test_pade_is_the_rational_function_of_its_series():
    """[3/2] from the differences, solved by numpy for each element."""
    values = torch.stack([smooth(t, 40) * 0.9**t for t in range(6)])
    forecaster = hicache.forecaster("pade")
    for step, value in enumerate(values):
        forecaster.observe(3 * step, value)
    for step in (16, 17, 21):
        h, found = (step - 15) / 3, forecaster.predict(step)
        for i, window in enumerate(values.T.numpy()):
            c = [np.diff(window, n)[-1] / math.factorial(n) for n in range(6)]
            q = np.linalg.solve([[c[3], c[2]], [c[4], c[3]]], [-c[4], -c[5]])
            p = np.convolve(c[:4], [1, *q])[:4]
            below = 1 + q[0] * h + q[1] * h * h
            value = np.polyval(p[::-1], h) / below
            kept = abs(below) > 1e-3 and abs(value) <= 2 * abs(window).max()
            assert found[i].item() == pytest.approx(value if kept else window[-1], rel=1e-6, abs=1e-9)


def test_pade_reuses_where_it_is_not_determined():
    """Lines make the denominators singular; two anchors give the line itself."""
    basis, out = Pade(), torch.empty(2, dtype=torch.float64)
    line = [torch.tensor([t, 1 - t], dtype=torch.float64) for t in range(6)]
    basis.evaluate(range(6), line, 8, out)
    assert torch.equal(out, line[-1])
    basis.evaluate([4, 5], line[-2:], 6, out)
    torch.testing.assert_close(out, torch.tensor([6.0, -5.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="element-wise and has no scalar weights"):
        basis.weights([0, 1], 2, 2)


def test_pade_is_bounded_by_the_window():
    generator = torch.Generator().manual_seed(0)
    forecaster = hicache.forecaster("pade")
    values = [torch.randn(500, generator=generator) for _ in range(6)]
    for step, value in enumerate(values):
        forecaster.observe(step, value)
    found = forecaster.predict(9)
    assert (found.abs() <= 2 * torch.stack(values).abs().amax(0) + 1e-6).all()


# -- shared ------------------------------------------------------------------------------------------------------


def test_uniform_tail():
    cases = {(3,): 1, (3, 9): 2, (0, 1, 2, 9, 16, 23): 4, (0, 5, 6): 2, (0, 2, 4, 6): 4}
    assert {times: uniform_tail(times) for times in cases} == cases


@pytest.mark.parametrize("lead", [1, 2])
def test_gram_grows_by_rows(lead, monkeypatch):
    monkeypatch.setattr("hicache.forecast.pieces.CPU_PIECE", 7)
    frames = [torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    gram = None
    for n in range(1, 5):
        gram = extend_gram(gram, frames[:n], lead)
    flat = torch.stack(frames).double().flatten(1 + lead)
    torch.testing.assert_close(gram, torch.einsum("i...d,j...d->...ij", flat, flat), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gram_of_large_frames_is_nearly_exact(dtype):
    """Beyond what is summed in float64: 2e-8 of |F|^2 (float64 frames: rounding), in several pieces with a rest."""
    frames = [torch.randn(1, 2, 600_001, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(3)]
    flat = torch.stack(frames).double().flatten(3)
    exact = torch.einsum("i...d,j...d->...ij", flat, flat)
    error = (extend_gram(extend_gram(extend_gram(None, frames[:1], 2), frames[:2], 2), frames, 2) - exact).abs()
    assert error.max() <= (1e-13 if dtype == torch.float64 else 2e-8) * exact.max()


WRONG = [
    ("foca", {"variant": "heun"}, "variant: must be one of variable, paper, util, anchored, got 'heun'"),
    ("foca", {"history": 1}, "history: must be an integer >= 2, got 1"),
    ("foca", {"varient": "paper"}, "basis_options: must be one of .*did you mean 'variant'"),
    ("chebyshev", {"ridge": 0}, "ridge: must be a number > 0, got 0"),
    ("chebyshev", {"mix": 2}, "mix: must be between 0 and 1, got 2"),
    ("chebyshev", {"degree": "4"}, "basis_options: degree must be of type int, got '4'"),
    ("pade", {"bound": 0}, "bound: must be > 0, got 0"),
    ("dmd", {"tolerance": 0}, "tolerance: must be between 0 and 1, got 0"),
    ("dmd", {"ridge": "x"}, "basis_options: ridge must be of type float, got 'x'"),
    ("auto", {"holdout": "2step"}, "holdout: must be one of 1step, horizon, got '2step'"),
    ("auto", {"interval": 0}, "interval: must be an integer >= 1, got 0"),
    ("hicache", {"rank": 2}, "basis_options: hermite has none, got 'rank'"),
    ("dmd", 3, "basis_options: must be names and values, got 3"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_options_are_validated(name, options, message):
    with pytest.raises(ValueError, match=message):
        hicache.method(name, basis_options=options)


@pytest.mark.parametrize("name", ["foca", "chebyshev", "pade", "dmd", "auto"])
def test_snapshot_bases_have_no_ladder(name):
    with pytest.raises(ValueError, match=f"history: {name} has no ladder of differences"):
        hicache.method(name, history="differences")


def test_policy_options_are_validated():
    with pytest.raises(ValueError, match="policy_options: interval has none, got 'alpha'"):
        hicache.method("fora", policy_options={"alpha": 1})
    with pytest.raises(
        ValueError, match="policy_options: must be one of window, alpha, got 'windw'.*did you mean 'window'"
    ):
        hicache.method("fora", policy="growing", policy_options={"windw": 1})
    with pytest.raises(ValueError, match="window: must be a number >= 1, got 0"):
        hicache.method("fora", policy="growing", policy_options={"window": 0})
