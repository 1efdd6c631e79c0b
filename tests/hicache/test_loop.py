"""`hicache.Loop`: plans, nested values, branches, guidance, refusals."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch

import hicache
from hicache.generic import register
from hicache.guidance import AdaptiveGuidance
from hicache.loop import Loop

STEPS = 20
Pair = collections.namedtuple("Pair", "a b")


@dataclasses.dataclass
class Velocity:
    v: torch.Tensor
    scale: float


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    v: torch.Tensor


class Sparse:
    """A stand-in for a sparse tensor: features of voxels at coordinates."""

    def __init__(self, feats, coords):
        self.feats, self.coords = feats, coords

    def replace(self, feats):
        return Sparse(feats, self.coords)


register(Sparse, lambda x: x.feats, lambda x, feats: x.replace(feats))


def at(step, width=6, rows=2):
    """A smooth trajectory."""
    axis = torch.linspace(0.1, 0.5, width)
    return torch.stack([torch.sin(axis * step + row) * 0.95**step for row in range(rows)])


def run(loop, value, steps=STEPS):
    return [loop(i, lambda i=i: value(i)) for i in range(steps)]


def test_the_plan_and_the_forecasts_are_the_method_s():
    method = hicache.method("hicache", interval=4, order=2, sigma=0.5, warmup_steps=3)
    loop = Loop(method, num_steps=STEPS)
    found = run(loop, at)
    full = hicache.full_steps(num_steps=STEPS, interval=4, warmup_steps=3)
    assert loop.report.full_steps == full
    assert loop.report.estimated_steps == [i for i in range(STEPS) if i not in full]
    forecaster = method.build_forecaster()
    for i, value in enumerate(found):
        if i in full:
            forecaster.observe(i, at(i))
            assert torch.equal(value, at(i))
        else:
            assert torch.equal(value, forecaster.predict(i))
    assert loop.report.cache_bytes > 0
    assert len(loop.report.seconds_full) == len(full)


def test_interval_1_computes_every_step():
    loop = Loop(hicache.method("hicache", interval=1))
    assert all(torch.equal(value, at(i)) for i, value in enumerate(run(loop, at)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"v": x, "w": [2 * x, None, 3]},
        lambda x: [x, 2 * x],
        lambda x: (x, "text"),
        lambda x: Pair(x, 3 * x),
        lambda x: Velocity(x, 2.5),
        lambda x: Slotted(x),
        lambda x: collections.OrderedDict(a=x, b=(x, [x])),
    ],
)
@pytest.mark.parametrize("name", ["taylorseer", "dmd"])
def test_nested_values_keep_their_type_and_are_forecast_like_their_leaves(wrap, name):
    made = Loop(hicache.method(name, interval=3, warmup_steps=4, order=1), batch=False)
    alone = Loop(hicache.method(name, interval=3, warmup_steps=4, order=1), batch=False)
    for i in range(STEPS):
        value = made(i, lambda i=i: wrap(at(i)))
        expected = wrap(alone(i, lambda i=i: at(i)))
        assert type(value) is type(expected)
        from hicache.generic import flatten

        got, want = flatten(value), flatten(expected)
        assert got[1] == want[1]
        for a, b in zip(got[0], want[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_no_tensor_is_that_of_the_last_anchor():
    loop = Loop(hicache.method("fora", interval=2, warmup_steps=1))
    found = run(loop, lambda i: Velocity(at(i), float(i)), 4)
    assert [value.scale for value in found] == [0, 0, 2, 2]


def test_a_registered_type_keeps_its_coordinates():
    coords = torch.arange(2)
    loop = Loop(hicache.method("taylorseer", interval=3, order=1, warmup_steps=2), batch=False)
    found = run(loop, lambda i: Sparse(torch.full((2, 3), float(i)), coords))
    assert all(isinstance(value, Sparse) and value.coords is coords for value in found)
    assert torch.allclose(found[-1].feats, torch.full((2, 3), float(STEPS - 1)))
    with pytest.raises(ValueError, match="batch: must be False for Sparse"):
        run(Loop("fora"), lambda i: Sparse(at(i), coords))


def test_a_sample_s_forecast_does_not_depend_on_its_batch():
    method = hicache.method("dmd", interval=2, warmup_steps=4)
    both = run(Loop(method), at)
    one = run(Loop(method), lambda i: at(i)[1:])
    assert all(torch.allclose(a[1:], b, atol=1e-6) for a, b in zip(both, one, strict=True))


def test_branches_have_histories_of_their_own():
    loop = Loop(hicache.method("taylorseer", interval=3, order=1, warmup_steps=2))
    apart = Loop(hicache.method("taylorseer", interval=3, order=1, warmup_steps=2))
    for i in range(STEPS):
        loop(i, lambda i=i: at(i))
        other = loop.branch("uncond")(i, lambda i=i: -3 * at(i) + i)
        assert torch.equal(other, apart(i, lambda i=i: -3 * at(i) + i))
    assert loop.report.branches[""] == loop.report.branches["uncond"] == loop.report.full_steps


def test_refresh_and_last_steps_compute():
    loop = Loop(hicache.method("taylorseer", interval=5, order=1, warmup_steps=2), num_steps=STEPS, last_steps=2)
    for i in range(STEPS):
        if i == 8:
            loop.refresh(forget=True)
        value = loop(i, lambda i=i: at(i))
        if i == 9:
            assert torch.equal(value, at(8)), "what came before the refresh is forgotten"
    assert loop.report.full_steps == [0, 1, 6, 8, 11, 16, 18, 19]


def test_a_second_generation_begins_at_step_0():
    loop = Loop(hicache.method("taylorseer", interval=4, order=1, warmup_steps=2), num_steps=STEPS)
    held = loop.branch("")
    first = [held(i, lambda i=i: at(i)) for i in range(STEPS)]
    second = [held(i, lambda i=i: at(i)) for i in range(STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(loop.report.full_steps) == len(hicache.full_steps(STEPS, 4, 2))


def test_held_branches_begin_a_second_generation_together():
    loop = Loop(hicache.method("taylorseer", interval=4, order=1, warmup_steps=2), num_steps=STEPS)
    held = [loop.branch(name) for name in ("a", "b")]
    for _ in range(3):
        found = [branch(i, lambda i=i: at(i)) for i in range(STEPS) for branch in held]
        assert all(torch.equal(a, b) for a, b in zip(found[::2], found[1::2], strict=True))
        full = hicache.full_steps(STEPS, 4, 2)
        assert list(loop.branches) == ["a", "b"] and loop.report.branches == {"a": full, "b": full}


def test_held_branches_may_join_a_generation_late():
    loop = Loop(hicache.method("taylorseer", interval=4, order=1, warmup_steps=2), num_steps=STEPS)
    first, late = loop.branch("a"), loop.branch("b")
    for _ in range(2):
        for i in range(STEPS):
            first(i, lambda i=i: at(i))
            if i >= 5:
                late(i, lambda i=i: at(i))
        assert loop.report.branches["b"][0] == 5 and list(loop.branches) == ["a", "b"]
    loop.reset()
    assert torch.equal(first(0, lambda: at(0)), at(0)) and loop.report.branches == {"a": [0]}


def test_generations_of_a_single_step():
    loop = Loop("taylorseer", num_steps=1)
    for i in range(3):
        assert torch.equal(loop(0, lambda i=i: at(i)), at(i)) and loop.report.full_steps == [0]


def test_steps_for_those_who_branch_themselves():
    method = hicache.method("hicache", interval=4, order=2, warmup_steps=3)
    expected = run(Loop(method), at)
    for i, step in enumerate(loop := Loop(method, num_steps=STEPS)):
        if step.computes:
            value = at(step.index)
            step.observe(value)
        else:
            value = step.predict()
            with pytest.raises(ValueError, match="was not to be computed"):
                step.observe(value)
        assert torch.equal(value, expected[i])
    assert loop.report.full_steps == hicache.full_steps(STEPS, 4, 3)


def test_a_fractional_step_lies_between_its_neighbours():
    loop = Loop(hicache.method("taylorseer", interval=4, order=1, warmup_steps=2))
    for i in range(3):
        loop(i, lambda i=i: torch.full((1, 2), float(i)))
    assert torch.allclose(loop.branch("").predict(2.5), torch.full((1, 2), 2.5))


def test_a_wrapped_model_counts_its_calls():
    calls = []

    def model(x, step):
        calls.append(step)
        return at(step)

    loop = Loop(hicache.method("fora", interval=4, warmup_steps=1), num_steps=8)
    wrapped = loop.wrap(model)
    for step in [*range(8), *range(8)]:
        wrapped(None, step)
    assert calls == [0, 4, 0, 4]


@pytest.mark.parametrize(("convention", "weights"), [("u+w(c-u)", (3.0, -2.0)), ("1+w", (4.0, -3.0))])
def test_guided_joins_two_branches(convention, weights):
    loop = Loop(hicache.method("hicache", interval=3, order=2, warmup_steps=3))
    branches = {name: Loop(hicache.method("hicache", interval=3, order=2, warmup_steps=3)) for name in "cu"}
    for i in range(STEPS):
        found = loop.guided(i, lambda i=i: at(i), lambda i=i: at(i) ** 2, 3.0, convention)
        c = branches["c"](i, lambda i=i: at(i))
        u = branches["u"](i, lambda i=i: at(i) ** 2)
        torch.testing.assert_close(found, weights[0] * c + weights[1] * u)


def test_adaptive_guidance_leaves_out_what_it_can_forecast():
    guidance = AdaptiveGuidance(threshold=0.9, warmup_steps=3)
    loop = Loop("none", num_steps=10, guidance=guidance)
    calls = []

    def uncond(i):
        calls.append(i)
        return {"v": at(i) - 0.01 * i}

    for i in range(10):
        found = loop.guided(i, lambda i=i: {"v": at(i)}, lambda i=i: uncond(i), 2.0)
        torch.testing.assert_close(found["v"], at(i) + 0.01 * i, atol=1e-5, rtol=1e-5)
    assert calls == [0, 1, 2, 9]
    assert loop.report.skipped_steps == [3, 4, 5, 6, 7, 8]


def test_what_does_not_fit_is_refused_in_one_line():
    loop = Loop(hicache.method("fora", interval=1))
    loop(0, lambda: {"v": at(0)})
    with pytest.raises(ValueError, match=r"value: \['v'\] must be \[2, 6\] .* got \[2, 5\]"):
        loop(1, lambda: {"v": at(1, width=5)})
    with pytest.raises(ValueError, match="value: must have the structure"):
        loop(2, lambda: [at(2)])
    with pytest.raises(ValueError, match=r"\['v'\] must be .*float32.* got .*float64"):
        loop(3, lambda: {"v": at(3).double()})
    with pytest.raises(ValueError, match="step: must grow within a branch, got 3 after 3"):
        loop(3, lambda: {"v": at(3)})
    with pytest.raises(ValueError, match="value: must have a floating-point tensor"):
        Loop("fora")(0, lambda: "text")
    with pytest.raises(ValueError, match="batch: must be False unless"):
        Loop("fora")(0, lambda: torch.ones(3))
    with pytest.raises(ValueError, match="batch: must be False unless"):
        Loop("fora")(0, lambda: [torch.ones(3, 2), torch.ones(4, 2)])
    with pytest.raises(ValueError, match="policy: must decide by the step alone"):
        Loop("teacache")
    with pytest.raises(ValueError, match="last_steps"):
        Loop("fora", last_steps=2)
    with pytest.raises(ValueError, match="convention: must be one of"):
        Loop("fora").guided(0, lambda: at(0), lambda: at(0), 2.0, "cfg")
    with pytest.raises(ValueError, match="step: must be an integer"):
        Loop("fora")(0.5, lambda: at(0))


@pytest.mark.parametrize(
    ("knobs", "times", "message"),
    [
        ({"time": "log_snr"}, None, "time: must be index in a loop without times, got 'log_snr'"),
        ({}, [3.0, 2.0, 1.0], r"times: must grow from step to step, got \[3.0, 2.0, 1.0\]"),
        ({}, [1.0, 2.0, 2.0], "times: must grow from step to step"),
        ({}, [1.0, 2.0], "times: must be one for each of the 3 steps, got 2"),
    ],
)
def test_times_that_are_refused(knobs, times, message):
    with pytest.raises(ValueError, match=message):
        Loop(hicache.method("taylorseer", **knobs), num_steps=3, times=times)


def test_a_forecaster_on_its_own_knows_no_time_but_the_index():
    with pytest.raises(ValueError, match="time: must be index for a forecaster on its own, got 'sigma'"):
        hicache.forecaster("taylorseer", time="sigma")


def test_times_of_the_steps():
    times = [float(i**2) for i in range(STEPS)]
    loop = Loop(hicache.method("taylorseer", interval=3, order=1, warmup_steps=2), times=times)
    found = run(loop, lambda i: torch.full((1, 2), times[i]))
    assert torch.allclose(found[-1], torch.full((1, 2), times[-1]))
