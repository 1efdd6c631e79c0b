"""Intervals and tests against scipy, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.statistics import (
    Bootstrap,
    bootstrap_mean,
    friedman_nemenyi,
    holm,
    paired_difference,
    rank_biserial,
    tied_with_best,
    wilcoxon_holm,
)


def test_bootstrap_agrees_with_scipy_at_the_expanded_level():
    values = np.random.default_rng(3).gamma(2.0, size=30)
    t = stats.t.ppf(0.975, 29)
    tail = stats.norm.cdf(-math.sqrt(30 / 29) * t)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", confidence_level=1 - 2 * tail, rng=1
    ).confidence_interval
    mean, low, high = bootstrap_mean(values, resamples=20000)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(expected.low, abs=0.02)
    assert high == pytest.approx(expected.high, abs=0.02)
    plain = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert high - low > plain.high - plain.low


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "n"), [("normal", 20), ("normal", 80), ("exponential", 80)])
def test_bootstrap_covers_the_mean_as_often_as_it_says(name, n):
    rng = np.random.default_rng(7)
    draw, truth = {"normal": (rng.standard_normal, 0.0), "exponential": (rng.standard_exponential, 1.0)}[name]
    hits = 0
    for trial in range(1200):
        _, low, high = bootstrap_mean(draw(n), resamples=800, seed=trial)
        hits += low <= truth <= high
    assert 0.93 <= hits / 1200 <= 0.97


def test_bootstrap_is_reproducible_and_depends_on_the_seed():
    values = [1.0, 4.0, 2.0, 8.0]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1, resamples=50) != bootstrap_mean(values, seed=2, resamples=50)


def test_one_value_has_no_interval():
    mean, low, high = bootstrap_mean([2.5])
    assert mean == 2.5
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "non-empty"), ([1.0, math.inf], "index 1"), ([[1.0]], "shape"), ([math.nan], "finite")],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values)


def test_paired_difference_removes_what_items_share():
    rng = np.random.default_rng(0)
    difficulty = 10 * rng.standard_normal(50)
    a, b = difficulty + 0.5 + 0.1 * rng.standard_normal(50), difficulty
    difference = paired_difference(a, b)
    assert 0.45 < difference.low < 0.5 < difference.high < 0.55
    _, low, high = bootstrap_mean(a)
    assert high - low > 20 * (difference.high - difference.low)
    with pytest.raises(ValueError, match="50 and 49"):
        paired_difference(a, b[:-1])


def test_holm_by_hand():
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.5 * 1; the third is raised to the second
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_wilcoxon_agrees_with_scipy_and_holm_is_applied():
    rng = np.random.default_rng(5)
    base = rng.standard_normal(40)
    methods = {"base": base, "a": base + 0.3 + 0.4 * rng.standard_normal(40), "b": base + rng.standard_normal(40)}
    tests = wilcoxon_holm(methods, "base")
    raw = [stats.wilcoxon(methods[name], base).pvalue for name in ("a", "b")]
    assert [tests[name].p for name in ("a", "b")] == pytest.approx(raw)
    assert tests["a"].statistic == stats.wilcoxon(methods["a"], base).statistic
    assert [tests[name].p_holm for name in ("a", "b")] == pytest.approx(holm(raw))
    assert tests["a"].significant
    assert not tests["b"].significant


@pytest.mark.parametrize("n", [9, 40, 60])
def test_tests_of_many_methods_are_those_of_each_alone(n):
    """Untied, with equal sizes, with zeros, and equal everywhere: each as scipy says of it by itself."""
    rng = np.random.default_rng(n)
    base = np.arange(float(n))
    methods = {f"untied {i}": base + 0.2 + rng.standard_normal(n) for i in range(4)}
    methods |= {"tied": base + rng.choice([-1.0, 2.0], n), "zeros": base + np.arange(n) % 3, "equal": base}
    tests = wilcoxon_holm({"base": base, **methods}, "base")
    assert list(tests) == list(methods) and (tests["equal"].statistic, tests["equal"].p) == (0.0, 1.0)
    for name in list(methods)[:-1]:
        alone = stats.wilcoxon(methods[name], base)
        assert (tests[name].statistic, tests[name].p) == (alone.statistic, alone.pvalue), name


def test_rank_biserial_by_hand():
    # |d| = 1, 2, 3, 4 with one below zero of rank 2: (1 + 3 + 4 - 2) / 10
    assert rank_biserial([1.0, -2.0, 3.0, 4.0]) == pytest.approx(0.6)
    assert rank_biserial([0.0, 0.0]) == 0.0 and rank_biserial([-1.0, -5.0]) == -1.0
    assert wilcoxon_holm({"a": [1.0, 2.0], "b": [2.0, 4.0]}, "a")["b"].effect == 1.0


def test_friedman_and_nemenyi_by_hand():
    """Three methods in the same order on every item; q of Demsar's Table 5 is 2.343 for three methods."""
    items = np.arange(10.0)
    found = friedman_nemenyi({"a": items, "b": items + 1, "c": items + 2})
    assert found.ranks == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert found.statistic == pytest.approx(20.0) and found.p == pytest.approx(math.exp(-10))
    assert found.distance == pytest.approx(2.343 * math.sqrt(12 / 60), abs=1e-3)
    assert friedman_nemenyi({name: items for name in "abc"}).p == 1.0
    with pytest.raises(ValueError, match="methods: must be three or more"):
        friedman_nemenyi({"a": items, "b": items})


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 60, 200])
def test_intervals_cover_as_often_as_they_say(n):
    """Values as PSNR in dB over items: normal with a spread of 3 dB. Means and paired differences, 93 to 97 %."""
    rng, trials = np.random.default_rng(n), 1500
    hits = {"mean": 0, "difference": 0}
    for trial in range(trials):
        item, own = 30 + 3 * rng.standard_normal(n), 0.5 + 0.4 * rng.standard_normal(n)
        _, low, high = bootstrap_mean(item, resamples=1000, seed=trial)
        hits["mean"] += low <= 30 <= high
        shift = paired_difference(item + own, item, resamples=1000, seed=trial)
        hits["difference"] += shift.low <= 0.5 <= shift.high
    assert all(0.93 <= count / trials <= 0.97 for count in hits.values()), hits


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 60])
def test_equal_rows_are_rarely_told_apart(n):
    """Eight methods that differ by chance alone: the best is bold alone, or with fewer than all, in 5 % at most."""
    rng, trials = np.random.default_rng(n), 400
    false = 0
    for _ in range(trials):
        rows = {str(i): rng.standard_normal(n) for i in range(8)}
        best = max(rows, key=lambda name: rows[name].mean())
        false += len(tied_with_best(rows, best)) < len(rows)
    assert false / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_equal_methods_differ_with_p_one():
    assert wilcoxon_holm({"a": [1.0, 2.0], "b": [1.0, 2.0]}, "a")["b"].p == 1.0


@pytest.mark.slow
def test_family_wise_error_stays_below_its_level():
    rng = np.random.default_rng(11)
    false = 0
    for _ in range(400):
        sample = {str(index): rng.standard_normal(25) for index in range(4)}
        false += any(test.significant for test in wilcoxon_holm(sample, "0").values())
    assert false / 400 <= 0.07


def test_wilcoxon_names_what_does_not_pair():
    with pytest.raises(ValueError, match="b: must pair with a"):
        wilcoxon_holm({"a": [1.0, 2.0], "b": [1.0]}, "a")
    with pytest.raises(ValueError, match="baseline: must be one of"):
        wilcoxon_holm({"a": [1.0]}, "c")


@pytest.mark.matrix
@pytest.mark.parametrize(("n", "methods"), [(16, 2), (16, 6), (60, 3)])
def test_equal_methods_are_rarely_told_apart(n, methods):
    """At 95 % at most 5 % of tables of equal methods may name a best one (here with the noise of 400 draws)."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        shared = 3 * rng.normal(size=n)
        values = {str(k): shared + rng.normal(size=n) for k in range(methods)}
        wrong += len(tied_with_best(values, max(values, key=lambda k: values[k].mean()))) < methods
    assert wrong / 400 < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_methods_that_differ_are_told_apart():
    rng = np.random.default_rng(1)
    shared = 3 * rng.normal(size=40)
    values = {name: shared + shift + 0.3 * rng.normal(size=40) for name, shift in {"a": 0, "b": 2, "c": 2.05}.items()}
    assert tied_with_best(values, "c") == {"b", "c"}
    assert tied_with_best({"a": shared, "b": shared}, "a") == {"a", "b"}
    with pytest.raises(ValueError, match="best: must be one of"):
        tied_with_best(values, "d")


def test_a_seed_that_is_not_given_is_0():
    left, right = np.random.default_rng(0).random((2, 12))
    assert paired_difference(left, right) == paired_difference(left, right, 0.95, 5000, 0)
    assert bootstrap_mean(left) == bootstrap_mean(left, 0.95, 5000, 0) == Bootstrap().mean(left)
    assert paired_difference(left, right) != paired_difference(left, right, seed=1)


def test_equal_values_have_no_statistic_and_no_effect():
    test = wilcoxon_holm({"base": [1.0, 2.0, 3.0], "same": [1.0, 2.0, 3.0]}, "base")["same"]
    assert (test.statistic, test.p, test.p_holm, test.significant, test.n, test.effect) == (
        0.0,
        1.0,
        1.0,
        False,
        3,
        0.0,
    )


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_level_lies_between_0_and_1(level):
    methods = {"base": [1.0, 2.0, 3.0], "other": [2.0, 1.0, 5.0], "third": [0.0, 0.0, 1.0]}
    for test in (lambda: bootstrap_mean([1.0, 2.0], level), lambda: wilcoxon_holm(methods, "base", level)):
        with pytest.raises(ValueError, match="level: must lie strictly between 0 and 1"):
            test()


def test_friedman_decides_before_pairs_do():
    """Eight methods that differ by luck: one pair alone looks significant, all of them together do not."""
    generator = np.random.default_rng(0)
    values = {name: generator.normal(size=12) for name in "abcdefgh"}
    values["b"], values["a"] = values["b"] - 0.55, values["a"] + 0.45
    assert tied_with_best(values, "d") == set(values)
    few = {name: values[name] for name in "bd"}
    assert tied_with_best(few, "d") == {"d"}
