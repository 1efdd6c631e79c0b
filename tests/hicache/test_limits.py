"""Every option of forecasters, schedules, policies and patches: its default, and the values at and beyond its limits."""

import dataclasses
import inspect
import math

import pytest
import torch

import hicache
from hicache.forecast import pieces
from hicache.forecast.auto import Auto
from hicache.forecast.chebyshev import Chebyshev
from hicache.forecast.dmd import Dmd
from hicache.forecast.foca import Foca
from hicache.forecast.lesa import Predictor
from hicache.forecast.pade import Pade
from hicache.forecast.scale import Adaptive, Constant, Horizon, Linear
from hicache.forecast.table import StepWeights, Table
from hicache.patch import ClusterPatch, TokenPatch
from hicache.policy import POLICIES, Clock
from hicache.policy.magnitudes import LIMITS, Limits

NAN, INF, REQUIRED = math.nan, math.inf, dataclasses.MISSING
NO_COUNT = (True, 1.5)
"""What is no integer though Python would count with it."""

P = POLICIES
OPTIONS = [  # what, other arguments, key, default, accepted, refused
    (Chebyshev, {}, "degree", 4, (0, 1), (-1, *NO_COUNT)),
    (Chebyshev, {}, "span", 50, (1,), (0, *NO_COUNT)),
    (Chebyshev, {}, "history", 16, (1,), (0, *NO_COUNT)),
    (Chebyshev, {}, "ridge", 0.1, (1e-300, 2.0), (0.0, -1.0, NAN, INF)),
    (Chebyshev, {}, "mix", 1.0, (0, 0.5, 1), (-0.1, 1.1, NAN)),
    (Chebyshev, {}, "penalise_constant", False, (True,), ()),
    (Dmd, {}, "history", 6, (1,), (0, *NO_COUNT)),
    (Dmd, {}, "rank", 0, (0, 1), (-1, *NO_COUNT)),
    (Dmd, {}, "tolerance", 1e-4, (1e-9, 0.9), (0, 1, NAN)),
    (Dmd, {}, "ridge", 1e-8, (0, 1.0), (-1e-9, NAN, INF)),
    (Auto, {}, "holdout", "1step", ("horizon",), ("2step",)),
    (Auto, {}, "interval", None, (1, 2), (0, 1.5)),
    (Foca, {}, "variant", "variable", ("paper", "util", "anchored"), ("x",)),
    (Foca, {}, "history", 100, (2,), (1, *NO_COUNT)),
    (Pade, {}, "pole", 1e-3, (0,), (-1e-9, NAN, INF)),
    (Pade, {}, "bound", 2.0, (1e-9, INF), (0, -1, NAN)),
    (Constant, {}, "sigma", REQUIRED, (1e-9, 2.0), (0, -1, NAN, INF, "a")),
    (Horizon, {}, "sigma", REQUIRED, (1e-9,), (0, NAN, INF)),
    (Linear, {}, "sigma", REQUIRED, (1e-9,), (0, NAN, INF)),
    (Adaptive, {}, "sigma", REQUIRED, (1e-9,), (0, NAN, INF)),
    (Horizon, {"sigma": 0.5}, "c", 1.0, (1e-9,), (0, -1, NAN)),
    (Linear, {"sigma": 0.5}, "sigma_end", 0.5, (1e-9,), (0, -1, NAN, INF)),
    (Adaptive, {"sigma": 0.5}, "alpha", 1.28, (1e-9,), (0, -1, NAN)),
    (Adaptive, {"sigma": 0.5}, "beta", 0.01, (0, 1), (-0.1, 1.1, NAN)),
    (Adaptive, {"sigma": 0.5}, "epsilon", 1e-6, (1e-300,), (0, -1, NAN)),
    (Adaptive, {"sigma": 0.5}, "per", "sample", ("batch",), ("step",)),
    (StepWeights, {"weights": ((1.0,), (2.0,))}, "anchors", REQUIRED, ((0, 3),), ((), (3, 0), (0, 0), (0,), (0, 3, 4))),
    (Table, {}, "memory", 1, (1, 2), (0, *NO_COUNT)),
    (P["teacache"], {}, "threshold", 0.25, (0, INF), (-1e-9, NAN)),
    (P["teacache"], {}, "polynomial", "auto", ("flux", (1.0, 0), (2,)), ("sd3", (), (NAN,), ("1",))),
    (P["magcache"], {}, "threshold", None, (0, 1.0), (-1e-9, NAN)),
    (P["magcache"], {}, "max_skips", None, (0, 1), (-1, *NO_COUNT)),
    (P["magcache"], {}, "retention", None, (0, 1), (-0.1, 1.1, NAN)),
    (P["magcache"], {}, "forced", True, (False,), ()),
    (P["broadcast"], {}, "range", 2, (1, 3), (0, *NO_COUNT)),
    (P["broadcast"], {}, "low", 0.1, (0, 0.8), (-0.1, 0.81, NAN)),
    (P["broadcast"], {}, "high", 0.8, (0.1, 1), (0.09, 1.1, NAN)),
    (P["growing"], {}, "warmup_steps", 5, (1,), (0, *NO_COUNT)),
    (P["growing"], {}, "window", 2.0, (1,), (0.99, NAN, INF)),
    (P["growing"], {}, "alpha", 0.75, (0,), (-0.1, NAN, INF)),
    (P["layer_mask"], {}, "threshold", 0.1, (0, 1), (-0.1, 1.1, NAN)),
    (
        P["layer_mask"],
        {"sites": ("a", "b")},
        "logits",
        None,
        (((1, 2),), ()),
        (((1,),), ((1, 2), (1, 2, 3)), ((1, NAN),), None),
    ),
    (P["modulated"], {}, "interval", REQUIRED, (1,), (0, *NO_COUNT)),
    (P["modulated"], {"interval": 3}, "per_layer", False, (True,), ()),
    (P["alternate"], {"interval": 3}, "first", None, ("skip", "patch"), ("x",)),
    (P["alternate"], {"interval": 3}, "warmup_steps", 1, (2,), ()),
    (P["alternate"], {"interval": 3}, "modulated", False, (True,), ()),
    (P["alternate"], {"interval": 3}, "per_layer", False, (), ()),
    (P["probe"], {}, "threshold", 0.08, (0, INF), (-1e-9, NAN)),
    (P["probe"], {}, "warmup_steps", 1, (0, 2), ()),
    (P["probe"], {}, "max_continuous", -1, (-1, 0), (-2, *NO_COUNT)),
    (P["probe"], {}, "max_cached", -1, (-1, 0), (-2, *NO_COUNT)),
    (P["interval"], {"warmup_steps": 1}, "interval", REQUIRED, (1,), (0, *NO_COUNT)),
    (P["interval"], {"interval": 2}, "warmup_steps", 1, (1, 2), (0, *NO_COUNT)),
    (P["uniform"], {}, "interval", REQUIRED, (1,), (0, *NO_COUNT)),
    (P["stages"], {"interval": 2}, "switch", 0.5, (0, 1), (-0.1, 1.1, NAN)),
    (P["power"], {"interval": 5}, "center", 15, (0, 1), (-1, *NO_COUNT)),
    (P["power"], {"interval": 5}, "power", 1.4, (1.01,), (1, INF, NAN)),
    (P["power"], {}, "interval", REQUIRED, (1,), (0, *NO_COUNT)),
    (P["even"], {}, "budget", REQUIRED, (1,), (0, *NO_COUNT)),
    (P["mask"], {}, "steps", REQUIRED, ((0,), (0, 4)), ((), (1, 2), (0, 3, 2), (0, 0), (0, 2.5), (0, "3"))),
    (P["kinds"], {}, "table", REQUIRED, ({"attn.img": (0, 2)},), ({"attn.img": (0, 2.5)}, (1,))),
    (P["verify"], {}, "base", None, (0, 1), (-1e-9, NAN)),
    (P["verify"], {}, "decay", None, (0, 1), (-1e-9, NAN)),
    (P["verify"], {}, "floor", None, (0, 1), (-1e-9, NAN)),
    (P["verify"], {}, "min_drafts", None, (0, 1), (-1, *NO_COUNT)),
    (P["verify"], {}, "max_drafts", 8, (0, 1), (-1, *NO_COUNT)),
    (P["verify"], {}, "warmup_steps", 3, (1,), (0, *NO_COUNT)),
    (P["verify"], {}, "compare", None, ("modules", "hidden"), ("x",)),
    (ClusterPatch, {}, "clusters", None, (1,), (0, *NO_COUNT)),
    (ClusterPatch, {}, "iterations", None, (1,), (0, *NO_COUNT)),
    (ClusterPatch, {}, "gamma", None, (0, 1), (-0.1, 1.1, NAN)),
    (ClusterPatch, {}, "amend", "before", ("after",), ("x",)),
    (TokenPatch, {}, "fraction", None, (0, 1), (-0.1, 1.1, NAN)),
    (TokenPatch, {}, "recipe", "toca", ("duca",), ("x",)),
    (TokenPatch, {}, "select", None, ("attention", "keys", "random"), ("x",)),
    (TokenPatch, {}, "profile", None, ("dit_ddim", "dit_ddpm", "mmdit", "flat"), ("x",)),
    (TokenPatch, {}, "age", None, (0, 2), (-1e-9, NAN)),
    (TokenPatch, {}, "spread", None, (0, 2), (-1e-9, NAN)),
    (TokenPatch, {}, "tile", 2, (1, 3), (0, *NO_COUNT)),
    (TokenPatch, {}, "interval", 1, (2,), ()),
]


@pytest.mark.parametrize(
    ("what", "others", "key", "default", "accepted", "refused"),
    OPTIONS,
    ids=lambda v: getattr(v, "__name__", str(v))[:20],
)
def test_defaults_and_limits(what, others, key, default, accepted, refused):
    field = {field.name: field for field in dataclasses.fields(what)}[key]
    assert field.init and field.default == default
    for value in accepted:
        assert getattr(what(**others, **{key: value}), key) == value
    for value in refused:
        with pytest.raises(ValueError, match="must be"):
            what(**others, **{key: value})


def test_state_is_no_option():
    for what in {row[0] for row in OPTIONS}:
        for field in dataclasses.fields(what):
            state = field.name in {"q", "coefficients", "total", "ratios", "limits", "ratio", "error", "skipped", "last",
                                   "ahead", "current", "partly", "inner", "streak", "cached", "generator", "valid",
                                   "centroids", "labels", "layers", "scores", "ages"}  # fmt: skip
            assert field.init is not state, f"{what.__name__}.{field.name}"


def test_limits_of_magcache_are_the_published_ones():
    assert Limits() == Limits(threshold=0.24, inclusive=True, max_skips=5, retention=0.1, rounding=0.5, forced=None)
    assert LIMITS.keys() >= {"flux", "flux_kontext", "hunyuan_video", "qwen_image"}
    assert LIMITS["flux"].forced == (11, 28)


def test_a_clock_has_not_begun():
    assert Clock() == Clock(branch="", step=-1, num_steps=None, timestep=None, change=None, error=None, anchors=[])


COUNTING = ("algorithm1", "even", "late", "eased", "power", "uniform", "stages", "magcache", "modulated", "verify")


@pytest.mark.parametrize("name", COUNTING)
def test_policies_that_count_from_the_end_need_the_number_of_steps(name):
    kind = P[name]
    needed = {"interval": 3, "budget": 3}
    policy = kind(**{f.name: needed[f.name] for f in dataclasses.fields(kind) if f.name in needed})
    policy.prepare("flux", 4)
    clock = Clock(step=4, anchors=[0], error=0.0)
    with pytest.raises(ValueError, match="num_steps"):
        policy.threshold(clock) if name == "verify" else policy.decide(clock)


def test_an_average_over_the_batch_is_one_sigma_for_each_site():
    """D = 3 and 5 on two samples, averaged 4, at one site, 1 and 3, averaged 2, at the other: q = sqrt(.75 + .25 D^2)."""
    forecaster = hicache.forecaster("hicache_adaptive", order=1, warmup_steps=1)
    forecaster.sigma, forecaster.lead = Adaptive(sigma=10.0, beta=0.25, per="batch"), 2
    forecaster.observe(0, torch.zeros(2, 2, 1, 1))
    forecaster.observe(1, torch.tensor([[3.0, 5.0], [1.0, 3.0]]).reshape(2, 2, 1, 1))
    expected = torch.tensor([[0.75 + 0.25 * 16] * 2, [0.75 + 0.25 * 4] * 2]).sqrt()
    torch.testing.assert_close(forecaster.sigma.q, expected)


def test_defaults_of_a_predictor():
    asked = inspect.signature(Predictor).parameters
    found = {key: asked[key].default for key in ("memories", "cuts", "temporal", "mixing", "width", "splines", "axis")}
    assert list(found.values()) == [(4, 6, 8), None, "kan", "channel", 16, 8, -1]


def test_the_least_change_that_sigma_is_divided_by():
    schedule = Adaptive(sigma=10.0, alpha=2.0, epsilon=0.5)
    assert schedule.at(3, 1, None) == pytest.approx(2 / (math.sqrt(2) + 0.5))
    schedule.q = torch.tensor(3.0)
    assert float(schedule.at(3, 1, None)) == pytest.approx(2 / (3 * math.sqrt(2) + 0.5))


@pytest.mark.parametrize(("unit", "starts"), [(1, [0, 4, 8]), (3, [0, 3, 6, 9]), (7, [0, 7])])
def test_pieces_are_whole_units_and_cover_all(unit, starts, monkeypatch):
    """Two rows of 10 x 2 elements in pieces of at most 8 elements, or of one unit."""
    monkeypatch.setattr(pieces, "CPU_PIECE", 8)
    values = torch.arange(40.0).reshape(2, 10, 2)
    found = list(pieces.pieces([values, -values], unit))
    assert [(rows.start, rows.stop) for rows, _ in found] == [(row, row + 1) for row in (0, 1) for _ in starts]
    assert all(torch.equal(a, -b) for _, (a, b) in found)
    ends = [*starts[1:], 10]
    assert [part.shape[1] for _, (part, _) in found] == [b - a for a, b in zip(starts, ends, strict=True)] * 2
    assert torch.equal(torch.cat([part.flatten() for _, (part, _) in found]), torch.arange(40.0))
