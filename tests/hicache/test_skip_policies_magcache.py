"""MagCache: the published curves, and the full steps that they make."""

import math
from dataclasses import replace

import pytest
import torch

from hicache.policy import MagCache
from hicache.policy.accumulate import resampled
from hicache.policy.magnitudes import LIMITS, MAGNITUDES, Limits
from tests.hicache.test_skip_policies import executed

FINGERPRINTS = {
    "flat": (1, 1.0, 1.0),
    "flux": (28, 28.38278, 401.53837),
    "flux_kontext": (28, 28.20309, 401.87848),
    "hunyuan_video": (50, 50.72147, 1262.59478),
    "hunyuan_video_720p": (50, 50.73865, 1263.11265),
    "qwen_image": (50, 51.39845, 1218.52796),
    "qwen_image_edit": (50, 50.25001, 1191.57485),
}


def test_magcache_curves_are_the_published_ones():
    assert FINGERPRINTS.keys() == MAGNITUDES.keys()
    for name, (length, total, moment) in FINGERPRINTS.items():
        curve = MAGNITUDES[name]
        assert len(curve) == length
        assert sum(curve) == pytest.approx(total, abs=1e-9)
        assert sum(place * value for place, value in enumerate(curve, 1)) == pytest.approx(moment, abs=1e-9)
    flux = MAGNITUDES["flux"]
    assert (flux[0], flux[1], flux[11], flux[27]) == (1.0, 1.21094, 0.98047, 0.89062)


def test_magcache_curves_are_resampled_to_the_nearest_index():
    """27/49 s: 0.55, 4.96, 5.51, 10.47, 11.02, 13.78; and 27/9 s, 49/9 s = 5.44, 10.89."""
    curve = list(range(28))
    assert [resampled(curve, s, 50) for s in (0, 1, 9, 10, 19, 20, 25, 49)] == [0, 1, 5, 6, 10, 11, 14, 27]
    assert [resampled(curve, s, 28) for s in (0, 13, 27)] == [0, 13, 27]
    assert [resampled(curve, s, 10) for s in (1, 4, 9)] == [3, 12, 27]
    assert [resampled(list(range(50)), s, 10) for s in (1, 2)] == [5, 11]
    assert resampled(curve, 0, 1) == 0


def expected_magcache(curve, steps, threshold, max_skips, retention, forced=(), rounding=0.5, inclusive=True):
    """The rule over a resampled curve, written as a search for the end of every run of skipped steps."""
    index = torch.linspace(0, len(curve) - 1, steps, dtype=torch.float64).round().long()
    gamma = torch.tensor(curve, dtype=torch.float64)[index]
    full = list(range(max(1, int(retention * steps + rounding))))
    while full[-1] < steps - 1:
        error = (1 - gamma[full[-1] + 1 :].cumprod(0)).abs().cumsum(0)
        small = error <= threshold if inclusive else error < threshold
        skipped = min(int(small.sum()), max_skips, len(error))
        skipped = min([skipped, *[step - full[-1] - 1 for step in forced if step > full[-1]]])
        full.append(full[-1] + skipped + 1)
    return [step for step in full if step < steps]


MAGCACHE = [  # family, curve, steps, published limits, steps that are forced, full steps
    ("flux", "auto", 28, (0.24, 5, 0.1), [11], 9),
    ("flux", "auto", 50, (0.24, 5, 0.1), [20], 15),
    ("flux", "auto", 100, (0.24, 5, 0.1), [39, 40, 41, 42], 33),
    ("flux", "auto", 10, (0.24, 5, 0.1), [], 3),
    ("flux", "flux_kontext", 28, (0.05, 4, 0.2), [11], 14),
    ("hunyuan_video", "auto", 50, (0.24, 6, 0.2), [], 18),
    ("hunyuan_video", "hunyuan_video_720p", 50, (0.24, 6, 0.2), [], 19),
    ("hunyuan_video", "auto", 28, (0.24, 6, 0.2), [], 10),
    ("qwen_image", "auto", 50, (0.06, 2, 0.2), [], 37),
    ("qwen_image", "qwen_image_edit", 50, (0.06, 2, 0.2), [], 35),
    ("dit", "auto", 50, (0.24, 5, 0.1), [], 12),
]


@pytest.mark.parametrize(("family", "curve", "steps", "limits", "forced", "count"), MAGCACHE)
def test_magcache_as_published_for_the_family(family, curve, steps, limits, forced, count):
    policy = MagCache(curve=curve)
    policy.prepare(family, 4)
    name = family if curve == "auto" else curve
    flux = name in ("flux", "flux_kontext", "dit")
    assert (policy.limits.threshold, policy.limits.max_skips, policy.limits.retention) == limits
    rule = {"rounding": 0.5 if flux else 0.0, "inclusive": not name.startswith("qwen")}
    assert policy.limits == replace(LIMITS.get(name, Limits()))
    plan = policy.plan(steps)
    assert plan == expected_magcache(MAGNITUDES.get(name, (1.0,)), steps, *limits, forced, **rule)
    assert len(plan) == count
    own = MagCache(threshold=math.inf, max_skips=100, retention=0.0, curve=curve)
    own.prepare(family)
    assert own.plan(steps) == [0, *forced] == executed(own, steps, None)
    own = replace(own, forced=False)
    own.prepare(family)
    assert own.plan(steps) == [0]


def test_magcache_an_error_of_exactly_the_threshold():
    """FLUX's script skips it (`<=`), Qwen-Image's does not (`<`)."""
    for family, plan in (("flux", [0, 3]), ("qwen_image", [0, 1])):
        policy = MagCache(threshold=0.25, max_skips=2, retention=0.0, curve=[1.0, 1.25, 0.8, 1.25], forced=False)
        policy.prepare(family)
        assert policy.plan(4) == plan


def test_magcache_decides_by_the_curve_that_is_given():
    curve = [1.0, 1.1, 0.9, 1.05, 1.2, 0.8, 1.0, 0.7, 1.3, 0.95, 1.0]
    plans = set()
    for steps in (11, 17, 40):
        for threshold in (0.1, 0.3, 1.0):
            own = MagCache(threshold=threshold, max_skips=6, retention=0.1, curve=curve)
            plans.add(tuple(plan := own.plan(steps)))
            assert plan == expected_magcache(curve, steps, threshold, 6, 0.1)
    assert len(plans) == 9


def test_magcache_flat_curve_skips_k_then_computes():
    assert executed(MagCache(max_skips=3, retention=0.1), 20, None) == [0, 1, 5, 9, 13, 17]
    assert executed(MagCache(max_skips=0), 20, None) == list(range(20))
    by_error = executed(MagCache(threshold=0.24, max_skips=5, retention=0.1, curve="flux"), 28, None)
    assert by_error[:3] == [0, 1, 2]
    assert len(by_error) < 15
