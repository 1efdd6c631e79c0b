"""LESA: the recursion on weights is the recursion on features; stages, windows, and the forecaster around it."""

import pytest
import torch

import hicache
from hicache.forecast.lesa import Lesa, Predictor, window

T, CHANNELS = 30, 5


def predictor(seed=0, **knobs):
    torch.manual_seed(seed)
    made = Predictor(CHANNELS, T, **{"memories": (3, 4, 5), **knobs}).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def trajectory(shape=(1, 2, 6, CHANNELS)):
    generator = torch.Generator().manual_seed(3)
    rate, phase = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return [torch.sin(rate * s / 5 + 6 * phase) for s in range(T)]


def by_hand(model, series, times, target):
    """Forecast step by step on the features themselves: h_0 + alpha z, pushed onto the window."""
    seen = [(t, series[t]) for t in times]
    for step in range(times[-1] + 1, target + 1):
        expert = model.experts[sum(step >= cut for cut in model.cuts)]
        newest = seen[::-1][: expert.memory]
        newest += [newest[-1]] * (expert.memory - len(newest))
        offsets = torch.tensor([(t - step) / T for t, _ in newest], dtype=torch.float64)
        alpha = expert.temporal(offsets)
        z = expert.bias + sum(w * h for w, (_, h) in zip(expert.weights, newest))
        seen.append((step, newest[0][1] + alpha * z))
    return seen[-1][1]


@pytest.mark.parametrize("mixing", ["channel", "scalar"])
@pytest.mark.parametrize("temporal", ["kan", "mlp"])
@pytest.mark.parametrize(("times", "target"), [([0], 4), ([0, 1, 2, 3], 9), ([3, 8, 13, 18], 22), ([2, 9, 16, 23], 29)])
def test_weights_unroll_as_features_do(temporal, mixing, times, target):
    torch.set_default_dtype(torch.float64)
    try:
        model, series = predictor(temporal=temporal, mixing=mixing), trajectory()
        expected = by_hand(model, series, times, target)
        weights = model.unrolled(times, target)[target]
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights.shape == (len(times) + 1, CHANNELS)
    found = sum(w * series[t] for w, t in zip(weights, times)) + weights[-1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_forecaster_gives_the_same_and_needs_no_order_of_calls():
    model, series = predictor(), [value.float() for value in trajectory()]
    model.float()
    method = {"basis_options": {"predictor": model}, "warmup_steps": 4}
    forecaster = hicache.forecaster("lesa", **method)
    full, found = hicache.full_steps(T, 6, 4), {}
    for generation in range(2):
        forecaster.reset(T)
        for step in range(T):
            if step in full:
                forecaster.observe(step, series[step])
            elif generation == 0 or step % 3 == 0:  # the second time most forecasts are not asked for
                value = forecaster.predict(step)
                torch.testing.assert_close(value, found.setdefault(step, value), rtol=0, atol=0)
                times = [s for s in full if s < step][-5:]
                expected = model.unrolled(times, step)[step]
                by_weights = sum(w * series[t] for w, t in zip(expected, times)) + expected[-1]
                torch.testing.assert_close(value, by_weights, rtol=1e-4, atol=1e-5)
    assert forecaster.bytes == (5 + 1) * series[0].numel() * 4


def test_the_feature_axis_may_be_any():
    model, last = predictor().float(), predictor(axis=-3).float()
    frames = [torch.randn(1, 2, 4, 3, CHANNELS) for _ in range(3)]
    one, two = torch.empty_like(frames[0]), torch.empty_like(frames[0].movedim(-1, -3))
    Lesa(predictor=model).evaluate([0, 1, 2], frames, 5, one)
    Lesa(predictor=last).evaluate([0, 1, 2], [f.movedim(-1, -3) for f in frames], 5, two)
    torch.testing.assert_close(two, one.movedim(-1, -3))


def test_low_precision_is_accumulated_wide():
    model = predictor().float()
    frames = [torch.randn(1, 2, 4, CHANNELS).bfloat16() for _ in range(4)]
    wide, low = torch.empty(1, 2, 4, CHANNELS), torch.empty(1, 2, 4, CHANNELS, dtype=torch.bfloat16)
    Lesa(predictor=model).evaluate([0, 1, 2, 3], [f.float() for f in frames], 6, wide)
    Lesa(predictor=model).evaluate([0, 1, 2, 3], frames, 6, low)
    assert torch.equal(low, wide.bfloat16())


def test_stages_have_their_own_expert():
    model = Predictor(CHANNELS, 50)
    assert model.cuts == [17, 33] and model.memories == [4, 6, 8]
    assert [model.stage(s) for s in (0, 16, 17, 32, 33, 49, 70)] == [0, 0, 1, 1, 2, 2, 2]
    assert Predictor(CHANNELS, 50, memories=(6,)).stage(49) == 0
    assert Predictor(CHANNELS, 50, memories=(1, 1)).memories == [1, 1]
    assert Lesa(predictor=model).anchors(2) == 8


def test_a_window_holds_the_newest_and_repeats_the_oldest():
    assert window([0, 4, 8, 9, 10], 3) == [10, 9, 8]
    assert window([0, 4], 4) == [4, 0, 0, 0]
    windows = Predictor(CHANNELS, 50, memories=(4,)).windows([0, 5, 10], 12)
    assert windows == {11: [10, 5, 0, 0], 12: [11, 10, 5, 0]}


def test_a_new_expert_is_near_reuse():
    for seed in range(5):
        torch.manual_seed(seed)
        weights = Predictor(CHANNELS, 50).unrolled([0, 5, 10], 11)[11]
        assert (weights[2] - 1).abs().max() < 0.5 and weights[:2].abs().max() < 0.5 and weights[3].abs().max() == 0


def test_without_a_predictor_it_reuses():
    forecaster = hicache.forecaster("lesa")
    forecaster.observe(0, torch.ones(1, 2, 3))
    forecaster.observe(1, torch.full((1, 2, 3), 2.0))
    assert torch.equal(forecaster.predict(4), torch.full((1, 2, 3), 2.0))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"memories": ()}, "memories: must be integers >= 1, one per stage, got"),
        ({"memories": (4, 0, 2)}, "memories: must be"),
        ({"cuts": (10,)}, "cuts: must be 2 growing steps between 0 and 30"),
        ({"cuts": (20, 10)}, "cuts: must be 2 growing"),
        ({"temporal": "rnn"}, "temporal: must be one of kan, mlp, got 'rnn'"),
        ({"mixing": "dense"}, "mixing: must be one of channel, scalar"),
        ({"splines": 2}, "splines: must be"),
    ],
)
def test_errors_name_the_knob(knobs, message):
    with pytest.raises(ValueError, match=message):
        predictor(**knobs)


def test_only_predictors_are_taken():
    with pytest.raises(ValueError, match="predictor: must be a Predictor or None, got dict"):
        hicache.method("lesa", basis_options={"predictor": {}})
