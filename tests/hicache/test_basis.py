"""Bases against hand-computed vectors, exactness and the sign of the horizon."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hicache.forecast import BASES, ElementwiseBasis, ladder
from hicache.forecast.basis import LadderBasis
from hicache.forecast.dmd import Dmd
from hicache.forecast.foca import Foca
from hicache.forecast.scale import mean_length
from hicache.forecast.table import Table

VECTORS = [  # basis, anchors, k, sigma, weights oldest first (computed by hand)
    ("taylor", (2, 9, 16), 6, 1.0, [0.3673, -1.5918, 2.2245]),
    ("hermite", (2, 9, 16), 6, 0.5, [0.0867, -0.6020, 1.5153]),
    ("scaled_taylor", (2, 9, 16), 6, 0.5, [0.0230, -0.2602, 1.2372]),
    ("taylor", (1, 2), 3, 1.0, [-3, 4]),
    ("hermite", (1, 2), 3, 0.5, [-1.5, 2.5]),
    ("scaled_taylor", (1, 2), 3, 0.5, [-0.75, 1.75]),
    ("reuse", (2, 9, 16), 6, 0.5, [0, 0, 1]),
]
EXPLICIT = {  # sigma -> the scaled Hermite polynomials of orders 1..4
    0.5: [
        lambda x: 0.5 * x,
        lambda x: 0.25 * x**2 - 0.5,
        lambda x: 0.125 * x**3 - 0.75 * x,
        lambda x: 0.0625 * x**4 - 0.75 * x**2 + 0.75,
    ],
    0.75: [
        lambda x: 1.125 * x,
        lambda x: 1.265625 * x**2 - 1.125,
        lambda x: 1.423828125 * x**3 - 3.796875 * x,
        lambda x: 1.601806640625 * x**4 - 8.54296875 * x**2 + 3.796875,
    ],
}


@pytest.mark.parametrize(("name", "times", "k", "sigma", "expected"), VECTORS)
def test_weights_by_hand(name, times, k, sigma, expected):
    assert BASES[name].weights(times, times[-1] + k, 2, sigma) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("sigma", EXPLICIT)
@pytest.mark.parametrize("i", [1, 2, 3, 4])
def test_hermite_polynomials(sigma, i):
    for k in range(1, 9):
        assert BASES["hermite"].phi(i, k, sigma) == pytest.approx(EXPLICIT[sigma][i - 1](k), rel=1e-12)
    assert BASES["hermite"].phi(2, 0, sigma) == pytest.approx(-2 * sigma**2)


AFFINE = [n for n, basis in BASES.items() if not (basis.uses_gram or isinstance(basis, ElementwiseBasis))]
anchors = st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted)


@pytest.mark.parametrize("name", AFFINE)
@given(times=anchors, k=st.integers(1, 12), order=st.integers(0, 5), sigma=st.floats(0.1, 1.2))
def test_weights_sum_to_one(name, times, k, order, sigma):
    weights = BASES[name].weights(times, times[-1] + k, order, sigma)
    assert len(weights) == len(times)
    scale = max(1.0, max(abs(w) for w in weights))
    assert sum(weights) == pytest.approx(1.0, abs=1e-9 * scale)


@given(times=anchors, k=st.integers(1, 12))
def test_hermite_at_sqrt_half_is_taylor(times, k):
    target = times[-1] + k
    hermite = BASES["hermite"].weights(times, target, 1, math.sqrt(0.5))
    assert hermite == pytest.approx(BASES["taylor"].weights(times, target, 1), rel=1e-12)


@pytest.mark.parametrize(("name", "sigma"), [("taylor", 1.0), ("hermite", math.sqrt(0.5)), ("newton", 1.0)])
@given(times=anchors.filter(lambda t: len(t) > 1), k=st.integers(1, 12))
def test_a_line_is_forecast_exactly(name, sigma, times, k):
    """The sign test: with x = -k the forecast would lie behind the last anchor."""
    weights = BASES[name].weights(times, times[-1] + k, 1, sigma)
    assert sum(w * (3 - 2 * t) for w, t in zip(weights, times)) == pytest.approx(3 - 2 * (times[-1] + k), abs=1e-7)


def test_the_wrong_sign_is_caught():
    series = [2.0 * t for t in (0, 5)]
    right = BASES["hermite"].weights((0, 5), 9, 1, math.sqrt(0.5))
    slope = BASES["hermite"].phi(1, -4, math.sqrt(0.5)) / 5
    wrong = [-slope, 1 + slope]
    assert sum(w * f for w, f in zip(right, series)) == pytest.approx(18)
    assert sum(w * f for w, f in zip(wrong, series)) == pytest.approx(2)


@pytest.mark.parametrize("interval", [3, 6])
def test_published_ladder_is_biased_on_quadratics(interval):
    """Order 2 of the one-sided ladder is (s + k)^2 - kN on F = s^2; Newton is exact."""
    times, k = [0, interval, 2 * interval], 2
    target = times[-1] + k
    taylor = BASES["taylor"].weights(times, target, 2)
    assert sum(w * t * t for w, t in zip(taylor, times)) == pytest.approx(target**2 - k * interval)


@given(times=anchors, k=st.integers(1, 12), order=st.integers(0, 4))
def test_newton_is_exact_on_polynomials(times, k, order):
    target, degree = times[-1] + k, min(order, len(times) - 1)
    weights = BASES["newton"].weights(times, target, order)
    value = sum(w * (t / 50) ** degree for w, t in zip(weights, times))
    assert value == pytest.approx((target / 50) ** degree, rel=1e-6, abs=1e-6)


def test_ladder_divides_by_the_last_gap():
    rows = ladder((1, 2, 9), 2)
    assert rows[1] == pytest.approx([0, -1 / 7, 1 / 7])
    assert rows[2] == pytest.approx([1 / 7, -1 / 7 - 1 / 49, 1 / 49])
    assert len(ladder((1, 2), 4)) == 2


def test_sigma_may_be_a_tensor():
    sigma = torch.tensor([0.4, 0.8], dtype=torch.float64)
    both = BASES["hermite"].weights((2, 9, 16), 20, 2, sigma)
    for i, value in enumerate(sigma.tolist()):
        alone = BASES["hermite"].weights((2, 9, 16), 20, 2, value)
        assert [float(w[i]) for w in both] == pytest.approx(alone, rel=1e-12)


def test_foca_keeps_what_its_variants_look_at():
    kept = {name: Foca(variant=name).anchors(9) for name in ("variable", "paper", "util", "anchored")}
    assert kept == {"variable": 3, "paper": 2, "util": 2, "anchored": 100}


def test_the_mean_length_of_a_difference():
    """Tokens (3, 4) and (6, 8) in front of (0, 0): lengths 5 and 10."""
    newer = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    assert (
        mean_length(newer, None, 1, -1).tolist() == mean_length(newer + 1, torch.ones(1, 2, 2), 1, -1).tolist() == [7.5]
    )


def test_what_bases_keep_and_count():
    assert Dmd(history=2).anchors(4) == 5 and Dmd(history=9).anchors(4) == 9
    assert Table().counts_steps() and not Foca().counts_steps()


def test_a_basis_may_be_a_dataclass_whose_options_change():
    """Such a one has no hash, and its weights follow its options."""

    @dataclasses.dataclass
    class Damped(LadderBasis):
        damping: float

        def phi(self, i, k, sigma):
            return self.damping * k**i

    basis = Damped(0.5)
    assert basis.weights([1, 2], 5, 1) == [-1.5, 2.5]
    basis.damping = 1.0
    assert basis.weights([1, 2], 5, 1) == [-3.0, 4.0]
