"""Forecasters over whole trajectories: histories, warm-up gate, numerics, agreement with hicache-pp."""

import math

import pytest
import torch

import hicache
from hicache.forecast import combine, gated_sum
from hicache.forecast.frames import FeatureForecaster
from hicache.forecast.table import StepWeights
from hicache.methods import METHODS

CACHING = [name for name, spec in METHODS.items() if spec.caches]


def trajectory(steps=50, shape=(2, 3, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rate, phase = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return [torch.sin(rate * s / 7 + 6 * phase).to(dtype) for s in range(steps)]


def forecasts(forecaster, series, full):
    found = {}
    for step, value in enumerate(series):
        if step in full:
            forecaster.observe(step, value)
        else:
            found[step] = forecaster.predict(step)
    return found


@pytest.mark.parametrize(
    ("interval", "warmup", "order", "sigma"),
    [(7, 3, 2, 0.5), (9, 3, 2, 0.5), (5, 1, 1, 0.5), (6, 2, 4, 0.75)],
)
@pytest.mark.parametrize("history", ["snapshots", "differences"])
def test_hermite_equals_hicache_pp(interval, warmup, order, sigma, history):
    pp = pytest.importorskip("hicache_pp")
    series = trajectory()
    state = pp.hicache_init(50, interval=interval, max_order=order, first_enhance=warmup, sigma=sigma)
    ours = hicache.forecaster("hicache", order=order, sigma=sigma, warmup_steps=warmup, gate=False, history=history)
    for step, value in enumerate(series):
        if pp.hicache_decide(state) == "full":
            pp.hicache_update_derivatives(state, value)
            ours.observe(step, value)
        else:
            theirs = pp.hicache_forecast(state)
            assert (ours.predict(step) - theirs).abs().max() < 1e-12 * max(1, theirs.abs().max())
        state["step"] += 1


def test_gate_differs_only_in_the_first_window():
    series, full = trajectory(), set(hicache.full_steps(50, 7, 3))
    gated = forecasts(hicache.forecaster("hicache", order=2, sigma=0.5, warmup_steps=3), series, full)
    free = forecasts(hicache.forecaster("hicache", order=2, sigma=0.5, warmup_steps=3, gate=False), series, full)
    different = [s for s in gated if not torch.equal(gated[s], free[s])]
    assert different == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["fora", "taylorseer", "hi_taylor", "hicache", "hicache_adaptive"])
def test_both_histories_agree(name):
    series, full = trajectory(), set(hicache.full_steps(50, 6, 2))
    knobs = {"order": 4, "sigma": 0.75, "warmup_steps": 2}
    one = forecasts(hicache.forecaster(name, history="snapshots", **knobs), series, full)
    two = forecasts(hicache.forecaster(name, history="differences", **knobs), series, full)
    for step in one:
        torch.testing.assert_close(one[step], two[step], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CACHING if name != "spectrum"])  # its ridge shrinks constants too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_features_are_exact_and_reset_forgets(name, dtype):
    forecaster = hicache.forecaster(name, order=3, sigma=0.5, warmup_steps=2)
    value = torch.full((2, 4, 8), 0.75, dtype=dtype)
    for step in (0, 1, 6, 11):
        forecaster.observe(step, value)
    assert forecaster.predict(14).dtype == dtype
    torch.testing.assert_close(forecaster.predict(14), value)
    forecaster.reset()
    assert not forecaster.ready
    with pytest.raises(ValueError, match="nothing observed"):
        forecaster.predict(1)
    forecaster.observe(0, value * 2)
    torch.testing.assert_close(forecaster.predict(3), value * 2)


@pytest.mark.parametrize("name", CACHING)
def test_observed_values_are_copied_and_memory_is_bounded(name):
    forecaster = hicache.forecaster(name, order=2, sigma=0.5, warmup_steps=1)
    value = torch.ones(1, 2, 4)
    forecaster.observe(0, value)
    before = forecaster.predict(1).clone()
    value.mul_(100)
    torch.testing.assert_close(forecaster.predict(1), before)
    sizes = set()
    for generation in range(2):
        forecaster.reset()
        for step in range(0, 30, 3):
            forecaster.observe(step, torch.randn(1, 2, 4))
        sizes.add(forecaster.history.bytes)
    assert len(sizes) == 1
    history = forecaster.history
    assert sizes.pop() <= (history.basis.anchors(history.order) + 1) * 8 * 4


@pytest.mark.parametrize("history", ["snapshots", "differences"])
def test_the_mode_of_autograd_may_change_at_any_anchor(history):
    forecaster = hicache.forecaster("hicache_adaptive", order=1, warmup_steps=1, history=history)
    found = []
    for modes in ([torch.inference_mode, torch.no_grad] * 2, [torch.inference_mode] * 4, [torch.no_grad] * 4):
        forecaster.reset()
        for step, mode in enumerate(modes):
            with mode():
                forecaster.observe(step, torch.full((1, 2), float(step)))
        found.append(forecaster.predict(6))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_clean_numerics_beat_the_published_arithmetic_in_bf16():
    series, full = trajectory(), set(hicache.full_steps(50, 7, 3))
    exact = forecasts(hicache.forecaster("hicache", order=2, sigma=0.5), series, full)
    low = [v.to(torch.bfloat16) for v in series]
    clean = forecasts(hicache.forecaster("hicache", order=2, sigma=0.5), low, full)
    reference = forecasts(
        hicache.forecaster("hicache", order=2, sigma=0.5, history="differences", numerics="reference"),
        low,
        full,
    )

    def error(found):
        return sum((found[s].double() - exact[s]).abs().mean().item() for s in exact) / len(exact)

    assert error(clean) < error(reference) < 0.01


def test_steps_must_grow():
    forecaster = hicache.forecaster("hicache")
    forecaster.observe(4, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="must be later than the last anchor 4, got 4"):
        forecaster.predict(4)
    with pytest.raises(ValueError, match="step: must grow, got 3 after 4"):
        forecaster.observe(3, torch.zeros(1, 1, 1))


def test_adaptive_sigma_of_unit_differences():
    """D = 1 keeps q at 1: sigma = min(sigma_max, alpha / sqrt(2))."""
    for alpha, bound, expected in ((1.40, 1.0, 0.98995), (0.70, 0.7, 0.49497)):
        forecaster = hicache.forecaster(
            "hicache_adaptive",
            sigma=bound,
            order=2,
            warmup_steps=1,
            sigma_options={"alpha": alpha, "beta": 0.5},
        )
        for step in range(3):
            forecaster.observe(step, torch.full((2, 5, 4), step / 2))
        assert forecaster.sigma.at(3, 1, None).tolist() == pytest.approx([expected] * 2, abs=1e-4)


def test_adaptive_sigma_is_per_sample():
    values = [torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    knobs = {"sigma": 1.0, "order": 2, "warmup_steps": 1, "sigma_options": {"beta": 0.9}}
    together = hicache.forecaster("hicache_adaptive", **knobs)
    alone = hicache.forecaster("hicache_adaptive", **knobs)
    for step, value in enumerate(values):
        together.observe(step, value)
        alone.observe(step, value[1:2])
    torch.testing.assert_close(together.predict(5)[1:2], alone.predict(5))
    assert len(set(together.sigma.at(5, 1, None).tolist())) == 3


def test_sigma_schedules():
    horizon = hicache.forecaster("hicache", sigma=0.5, sigma_schedule="horizon").sigma
    assert [horizon.at(0, k, None) for k in (1, 2, 4)] == pytest.approx(
        [0.5, 1 / (2 * math.sqrt(2)), 1 / (4 * math.sqrt(2))]
    )
    linear = hicache.forecaster("hicache", sigma=0.9, sigma_schedule="linear", sigma_options={"sigma_end": 0.3}).sigma
    assert [linear.at(s, 1, 11) for s in (0, 5, 10)] == pytest.approx([0.9, 0.6, 0.3])
    with pytest.raises(ValueError, match="num_steps"):
        linear.at(3, 1, None)


def test_combine_and_gated_sum_agree_with_einsum():
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(3, 2, 5, 4, generator=generator) for _ in range(3)]
    base, gates = torch.randn(2, 5, 4, generator=generator), torch.randn(3, 2, 4, generator=generator)
    for weights in ([0.5, -1.0, 1.5], [torch.rand(3, 2, generator=generator) for _ in range(3)]):
        full = [w if isinstance(w, torch.Tensor) else torch.full((3, 2), w) for w in weights]
        expected = torch.einsum("ksb,ksbnd->sbnd", torch.stack(full), torch.stack(frames))
        torch.testing.assert_close(combine(weights, frames), expected)
        total = base + torch.einsum("sbd,sbnd->bnd", gates, expected)
        torch.testing.assert_close(gated_sum(base, gates, weights, frames), total)


def test_combined_values_have_the_dtype_of_the_values_or_the_one_that_is_asked_for():
    frames = [torch.full((2, 3), x, dtype=torch.bfloat16) for x in (1.0, 3.0)]
    for weights in ([1.0], [0.5, 0.25], [0.0, 0.0], [torch.tensor([0.5, 1.0]), 0.25]):
        assert combine(weights, frames[: len(weights)]).dtype == torch.bfloat16
        assert combine(weights, frames[: len(weights)], torch.float64).dtype == torch.float64


def test_a_step_between_two_anchors_is_no_forecast():
    forecaster = hicache.forecaster("taylorseer", order=1, warmup_steps=1)
    for step in (0, 6):
        forecaster.observe(step, torch.ones(1))
    with pytest.raises(ValueError, match="step: must be later than the last anchor 6, got 3"):
        forecaster.predict(3)
    assert forecaster.last_anchor == 6


def test_an_estimate_by_elements_has_a_slope_from_two_anchors_on():
    forecaster = hicache.forecaster("pade", warmup_steps=1)
    forecaster.observe(0, torch.tensor([1.0]))
    assert forecaster.history.slope() is None
    forecaster.observe(3, torch.tensor([7.0]))
    newer, older, gap = forecaster.history.slope()
    assert (newer.item(), older.item(), gap) == (7.0, 1.0, 3.0)


def test_gated_sums_of_large_and_small_values_are_one():
    """Site by site above 2^15 elements, together below."""
    generator = torch.Generator().manual_seed(1)
    base, gates = torch.randn(2, 130, 128, generator=generator), torch.randn(3, 2, 128, generator=generator)
    frames = [torch.randn(3, 2, 130, 128, generator=generator) for _ in range(2)]
    for weights in ([0.5, -2.0], [torch.rand(3, 2, generator=generator), 0.0]):
        found = gated_sum(base, gates, weights, frames)
        part = gated_sum(base[:, :9], gates, weights, [frame[:, :, :9] for frame in frames])
        torch.testing.assert_close(found[:, :9], part)
        full = torch.stack([w if isinstance(w, torch.Tensor) else torch.full((3, 2), w) for w in weights])
        expected = base + torch.einsum("sbd,ksb,ksbnd->bnd", gates, full, torch.stack(frames))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_weights_per_site_of_features_of_two_shapes():
    """By hand: each feature has its own weights, whichever history it is in; weights of other sites are refused."""
    shapes, values = [(2, 3), (1, 5), (2, 3), (1, 5)], torch.Generator().manual_seed(0)
    anchors = [[torch.randn(shape, generator=values) for shape in shapes] for _ in range(2)]
    rows = torch.randn(2, 4, generator=values)

    def forecast(count):
        row = StepWeights(anchors=(0, 1), weights=tuple(tuple(each[:count].tolist()) for each in rows))
        chosen = hicache.method(
            "calibrated", policy="mask", mask=[0, 1], basis_options={"rows": {2: row}, "memory": 2}, scope="modules"
        )
        frames = FeatureForecaster(lambda shape: chosen.build_forecaster(lead=2))
        frames.reset(3)
        for step, features in enumerate(anchors):
            frames.observe(step, features)
        return frames.predict(2)

    for index, found in enumerate(forecast(4)):
        torch.testing.assert_close(found, rows[0, index] * anchors[0][index] + rows[1, index] * anchors[1][index])
    with pytest.raises(ValueError, match="weights: must be one for each of 2 sites, got 3"):
        forecast(3)


def test_features_of_other_shapes_begin_a_new_history():
    """A shape that was there before and comes again among others is forecast from its newest value alone."""
    chosen = hicache.method("taylorseer", order=1, warmup_steps=1)
    frames = FeatureForecaster(lambda shape: chosen.build_forecaster(lead=2))
    frames.reset(9)
    for step in (0, 1):
        frames.observe(step, [torch.full((1, 2, 3), float(step))])
    assert frames.predict(2)[0].unique().item() == 2.0
    both = [torch.full((1, 2, 3), 7.0), torch.full((1, 4, 3), 5.0), torch.full((1, 2, 3), 8.0)]
    frames.observe(3, both)
    ahead = frames.ahead(4)
    for index, (found, wanted) in enumerate(zip(frames.predict(4), both, strict=True)):
        assert torch.equal(found, wanted) and torch.equal(ahead.of(index), wanted)


@pytest.mark.parametrize("name", ["taylorseer", "foca", "dmd", "pade"])
def test_anchors_of_another_shape_are_refused_until_reset(name):
    forecaster = hicache.forecaster(name, warmup_steps=1)
    forecaster.observe(0, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"value: must have the shape \[2, 3\] of the anchors .*, got \[1, 3\]"):
        forecaster.observe(1, torch.ones(1, 3))
    forecaster.observe(1, 2 * torch.ones(2, 3))
    assert forecaster.predict(2).shape == (2, 3)
    forecaster.reset()
    forecaster.observe(0, torch.ones(1, 3))
    assert forecaster.predict(1).shape == (1, 3)
