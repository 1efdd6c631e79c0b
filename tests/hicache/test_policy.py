"""Schedules: the published lists, the count formula, and the range of the arguments."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hicache
from hicache.policy import (
    Algorithm1,
    Clock,
    Eased,
    Even,
    Late,
    LayerMask,
    Mask,
    Modulated,
    Placed,
    Power,
    Stages,
    Verify,
)
from hicache.tree import Action

PUBLISHED = {  # model: (warm-up, {interval: number of full steps})
    "FLUX": (3, {5: 12, 6: 10, 7: 9, 9: 8, 10: 7, 12: 6, 13: 6}),
    "Qwen-Image": (3, {3: 18, 6: 10, 7: 9, 8: 8}),
    "DiT-XL/2": (2, {3: 18, 4: 14, 5: 11, 6: 10, 8: 8, 9: 7}),
    "HunyuanVideo": (1, {5: 10, 6: 9, 7: 8}),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_counts(model):
    warmup, counts = PUBLISHED[model]
    assert {n: len(hicache.full_steps(50, n, warmup)) for n in counts} == counts


def test_published_lists():
    assert hicache.full_steps(num_steps=50, interval=7, warmup_steps=3) == [0, 1, 2, 9, 16, 23, 30, 37, 44]
    assert hicache.full_steps(num_steps=50, interval=9, warmup_steps=3) == [0, 1, 2, 11, 20, 29, 38, 47]
    assert hicache.full_steps(num_steps=50, interval=6, warmup_steps=2) == [
        0,
        1,
        7,
        13,
        19,
        25,
        31,
        37,
        43,
        49,
    ]
    assert hicache.full_steps(num_steps=50, interval=6, warmup_steps=1) == [0, 6, 12, 18, 24, 30, 36, 42, 48]
    infdit = [len(hicache.full_steps(39, n, 1)) for n in range(2, 9)]
    assert infdit == [20, 13, 10, 8, 7, 6, 5]


@given(steps=st.integers(1, 100), interval=st.integers(1, 20), warmup=st.integers(1, 10))
def test_count_formula(steps, interval, warmup):
    full = hicache.full_steps(steps, interval, warmup)
    expected = warmup + (steps - warmup) // interval if steps >= warmup else steps
    assert len(full) == expected
    assert full[0] == 0


def test_algorithm1_counts_from_the_end():
    assert Algorithm1(interval=7).plan(50) == [0, 1, 8, 15, 22, 29, 36, 43]


def test_even_steps_of_fifty():
    assert Even(budget=6).plan(50) == [0, 10, 20, 29, 39, 49]
    assert Even(budget=8).plan(50) == [0, 7, 14, 21, 28, 35, 42, 49]
    assert Even(budget=10).plan(50) == [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]
    assert Even(budget=3).plan(50) == [0, 25, 49]  # 24.5 is rounded up
    assert Even(budget=1).plan(50) == [0]


@given(data=st.data(), steps=st.integers(2, 100))
def test_even_steps_are_so_many_the_ends_among_them_and_gaps_differ_by_one(data, steps):
    budget = data.draw(st.integers(2, steps))
    full = Even(budget=budget).plan(steps)
    gaps = {b - a for a, b in itertools.pairwise(full)}
    assert len(full) == budget and (full[0], full[-1]) == (0, steps - 1)
    assert gaps <= {(steps - 1) // (budget - 1), -(-(steps - 1) // (budget - 1))}


@given(data=st.data(), steps=st.integers(2, 100))
def test_late_steps_are_so_many_the_ends_among_them_and_later_than_even_ones(data, steps):
    budget = data.draw(st.integers(2, steps))
    full, even = Late(budget=budget).plan(steps), Even(budget=budget).plan(steps)
    assert len(full) == budget and (full[0], full[-1]) == (0, steps - 1) and full == sorted(set(full))
    assert budget > steps // 3 or all(a >= b for a, b in zip(full, even, strict=True))


@given(data=st.data(), steps=st.integers(2, 100))
def test_eased_steps_are_so_many_with_shorter_gaps_at_both_ends_and_a_step_after_them(data, steps):
    budget = data.draw(st.integers(2, steps))
    full = Eased(budget=budget).plan(steps)
    assert len(full) == budget and full[0] == 0 and full == sorted(set(full))
    assert full[-1] == steps - 1 - (budget < steps)
    gaps = [b - a for a, b in itertools.pairwise(full)]
    if budget > 3 and steps > 6 * budget:
        assert gaps[0] < gaps[1] > gaps[-1] and gaps[1] >= max(gaps) - 1


@given(data=st.data(), steps=st.integers(2, 100), kind=st.sampled_from([Even, Late, Eased]))
def test_a_tail_is_left_out_as_if_the_run_were_shorter(data, steps, kind):
    budget, tail = data.draw(st.integers(1, steps)), data.draw(st.integers(0, 5))
    shorter = steps - min(tail, steps - budget)
    assert kind(budget=budget, tail=tail).plan(steps) == kind(budget=budget, tail=0).plan(shorter)
    assert (Even(budget=budget).tail, Late(budget=budget).tail, Eased(budget=budget).tail) == (0, 0, 1)
    with pytest.raises(ValueError, match="tail: must be 0 for places"):
        Placed(budget=2, places=(0, 1), tail=1)


def test_even_refuses_what_cannot_be_and_has_no_warm_up():
    with pytest.raises(ValueError, match="budget: must be at most the 6 steps, got 7"):
        Even(budget=7).plan(6)
    with pytest.raises(ValueError, match="budget: must be an integer >= 1, got 0"):
        hicache.method("hicache", policy="even", budget=0)
    with pytest.raises(ValueError, match="gate: must be left open for policy even"):
        hicache.method("hicache", policy="even", gate=True)
    with pytest.raises(ValueError, match="num_steps: full steps are spread"):
        Even(budget=3).decide(Clock(step=0))
    assert hicache.reads("hicache", policy="even") == {"budget", "order", "sigma", "sigma_schedule", "time", "scope"}
    made = hicache.forecaster("taylorseer", policy="even", order=1, warmup_steps=9)
    made.observe(0, torch.tensor([0.0]))
    made.observe(5, torch.tensor([5.0]))
    assert made.predict(7).tolist() == [7.0]  # a line through both, whatever the warm-up of other policies


def test_mask():
    assert Mask(steps=[0, 3, 4]).plan(6) == [0, 3, 4]
    for bad in ([], [1, 2], [0, 0], [0, 5, 3]):
        with pytest.raises(ValueError, match="mask: must be increasing"):
            Mask(steps=bad)


@pytest.mark.parametrize("bad", [{"num_steps": 0}, {"interval": 0}, {"warmup_steps": 0}, {"interval": 2.5}])
def test_bad_values(bad):
    key, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{key}: must be an integer >= 1, got {value}"):
        hicache.full_steps(**{"num_steps": 50, "interval": 6, **bad})


def test_late_eased_and_non_uniform_steps_by_hand():
    """19 (x + sin(pi x / 2)) / 2 at x = 0, 1/4, .. 1; 27 (3 x + sin(pi x / 2)) / 4 at 7/27, 17/27 and 1; a power that must be lowered, 1.4 to 1.28, to leave 10 of 20 steps."""
    assert Late(budget=5).plan(20) == [0, 6, 11, 16, 19]
    assert Late(budget=5, tail=1).plan(20) == [0, 6, 11, 15, 18]
    assert Late(budget=4).plan(4) == Eased(budget=4).plan(4) == [0, 1, 2, 3]
    assert Eased(budget=4, tail=0).plan(28) == [0, 8, 18, 27]
    assert Power(interval=2, center=6, power=1.4).plan(20) == [0, 2, 4, 6, 7, 8, 10, 12, 15, 17]
    assert Power(interval=1).plan(6) == list(range(6))
    assert len(Power(interval=2, center=6).plan(20)) == 10


def test_layers_of_a_router_are_those_of_its_pair_of_steps():
    """Pairs 0 and 2 leave the module out, pair 1 does not; behind the router's end all is computed."""
    policy = LayerMask(sites=("a",), logits=((-9.0,), (9.0,), (-9.0,)), threshold=0.5)
    found = [policy.decide(Clock(step=step, num_steps=10)) for step in range(10)]
    assert [action is Action.MIXED for action in found] == [step in (1, 5) for step in range(10)]


def test_modulated_intervals_of_2_end_in_steps_that_are_all_full():
    """With left < 5 of 50: round(2 / (1.4 - .8 left / 50)) = 1."""
    policy, clock, full = Modulated(interval=2), Clock(num_steps=50), []
    for clock.step in range(50):
        full += [clock.step] if policy.decide(clock) is Action.COMPUTE else []
    assert full[-6:] == [43, 45, 46, 47, 48, 49]


def test_schedules_of_options_that_cannot_be_are_refused():
    for make, message in (
        (lambda: Algorithm1(interval=0), "interval: must be an integer >= 1, got 0"),
        (lambda: Even(budget=2, tail=-1), "tail: must be an integer >= 0, got -1"),
        (lambda: Power(interval=2, center=3).plan(6), "center: must leave 3 distinct steps of 6, got 3"),
        (lambda: Placed(budget=1, places=()), "places: must be 1 increasing"),
        (lambda: Placed(budget=2, places=(0, 5, 6)), "places: must be 2 increasing"),
        (lambda: Placed(budget=3, places=(0, 6, 5)), "places: must be 3 increasing"),
        (lambda: Placed(budget=2, places=(1, 5)), "places: must be 2 increasing"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_what_is_true_without_an_option():
    assert hicache.full_steps(50, 6) == hicache.full_steps(50, 6, 1) == list(range(0, 49, 6))
    assert Stages(interval=2, switch=1.0).stage(Clock(step=1)) == 1  # of a run of unknown length no step is early
    assert Verify(max_drafts=0).plan(4) == [0, 1, 2, 3] and Verify(max_drafts=1).plan(4) is None
    assert LayerMask(threshold=0.0).keeps(0, "0.attn.img") and not LayerMask(threshold=0.5).keeps(0, "0.attn.img")


def decided(policy, num_steps, until):
    """The actions of the first steps of a run."""
    clock, found = Clock(step=0, num_steps=num_steps), []
    for clock.step in range(until):
        found.append(policy.decide(clock))
        if found[-1] is not Action.ESTIMATE:
            clock.anchors.append(clock.step)
    return found


@pytest.mark.parametrize("until", [1, 7, 22])
def test_a_run_after_one_that_was_broken_off_begins_anew(until):
    policy, fresh = Modulated(interval=4), Modulated(interval=4)
    decided(policy, 23, until)
    assert decided(policy, 23, 23) == decided(fresh, 23, 23)


def test_edges_of_drafts_gates_and_places():
    """A draft is verified beyond its least distance; a gate of 0 is a half; a place may not be the step after the last."""
    assert Verify(max_drafts=0).decide(Clock(step=1, num_steps=4, anchors=[0])) is Action.COMPUTE
    free, least = Verify(), Verify(min_drafts=3)
    assert [free.verifies(Clock(step=s, anchors=[4])) for s in (5, 6)] == [False, True]
    assert [least.verifies(Clock(step=s, anchors=[4])) for s in (7, 8)] == [False, True]
    kept = {t: LayerMask(sites=["a"], logits=[[0.0]], threshold=t).keeps(0, "a") for t in (0.4, 0.5, 0.6)}
    assert kept == {0.4: True, 0.5: True, 0.6: False}
    assert Placed(budget=2, places=(0, 5)).plan(6) == [0, 5]
    with pytest.raises(ValueError, match="places: must be steps of the run, below 6, got 6"):
        Placed(budget=2, places=(0, 6)).plan(6)
