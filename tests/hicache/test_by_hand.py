"""Small cases worked out on paper, for what a wrong axis, sign or bound would leave unnoticed elsewhere."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hicache
from evaluation.statistics import bootstrap_mean
from hicache.fitting.calibrated_plan import solve
from hicache.fitting.gaussian import carry
from hicache.forecast.module_histories import ModuleHistories
from hicache.forecast.pade import Pade
from hicache.forecast.scale import Adaptive
from hicache.generation import Branch
from hicache.generation_report import Report
from hicache.patch import TokenPatch
from hicache.policy import Clock, Stages
from hicache.policy.broadcast import Broadcast
from hicache.tree import Action, Site
from tests.hicache.models import build, denoise, inputs, method

CPU = torch.device("cpu")


def test_adaptive_sigma_by_hand():
    """Channels on axis 1, anchors 6 and 2 apart: D = mean(|(18, 24)|, |(0, 0)|, |(36, 0)|) / 6 = 11/3, then 5/2 / 3."""
    first, moved = torch.zeros(1, 2, 3), torch.tensor([[[18.0, 0.0, 36.0], [24.0, 0.0, 0.0]]])
    last = moved + torch.tensor([[[0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]])
    schedule = Adaptive(sigma=10.0, alpha=1.28, beta=0.25)
    forecaster = method("hicache_adaptive", order=1, warmup_steps=1).build_forecaster(channel=1)
    forecaster.sigma = schedule
    forecaster.observe(0, first)
    assert schedule.at(1, 1, None) == pytest.approx(1.28 / (math.sqrt(2) + 1e-6))
    forecaster.observe(6, moved)
    q = math.sqrt(0.75 + 0.25 * (11 / 3) ** 2)
    assert float(schedule.q) == pytest.approx(q)
    assert float(schedule.at(7, 1, None)) == pytest.approx(1.28 / (math.sqrt(2) * q + 1e-6))
    forecaster.observe(8, last)
    q = math.sqrt(0.75 * q**2 + 0.25 * (5 / 2 / 3) ** 2)
    assert float(schedule.q) == pytest.approx(q)


def test_the_ridge_is_relative_to_the_trace():
    """(G + 0.1 tr(G) I) w = g, whatever the unit: G = diag(1, 3), g = (1, 1), tr = 4."""
    gram, against = torch.diag(torch.tensor([1.0, 3.0])).double(), torch.ones(2).double()
    for scale in (1.0, 1e-12, 1e9):
        found = solve(scale * gram, scale * against, 0.1)
        torch.testing.assert_close(found, torch.tensor([1 / 1.4, 1 / 3.4]).double())


def test_carry_reaches_the_end_through_the_next_noise_level():
    """Three steps at noise (2, 1, 0.5) and signal 1, one variance 4: factors sqrt(4 / (4 + s'^2)) with s' = 1, .5, 0."""
    alpha, sigma = torch.ones(3).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    factors = torch.tensor([4 / 5, 4 / 4.25, 1.0]).double().sqrt()
    factors = factors / factors.norm()
    torch.testing.assert_close(carry(alpha, sigma, torch.tensor([4.0]).double()), torch.outer(factors, factors))
    alpha = torch.tensor([0.5, 0.8, 0.9]).double()
    factors = torch.tensor([4 / (4 * 0.64 + 1), 4 / (4 * 0.81 + 0.25), 1.0]).double().sqrt()
    factors = factors / factors.norm()
    torch.testing.assert_close(carry(alpha, sigma, torch.tensor([4.0]).double()), torch.outer(factors, factors))


def test_a_report_of_two_branches_is_printed():
    times = {"full_times": [0.25], "mixed_times": [0.004, 0.006], "estimated_times": [0.002]}
    report = Report(method="toca", num_steps=4, full_steps=[0], mixed_steps=[1, 2], estimated_steps=[3])
    report.branches = {"cond": [0], "uncond": [0, 2]}
    for key, seconds in times.items():
        setattr(report, key, [SimpleNamespace(seconds=s) for s in seconds])
    assert (report.seconds_full, report.seconds_mixed, report.seconds_estimated) == tuple(times.values())
    said = str(report)
    numbers = {kind: [float(x) for x in re.findall(rf"{kind}[^\n]*?([\d.]+) ms", said)] for kind in ("full", "mixed")}
    assert numbers["full"] == [250.0] and numbers["mixed"] == [5.0]
    assert re.search(r"estimated[^\n]*?2(\.0*)? ms", said)


@torch.no_grad()
def test_the_memory_of_all_branches_counts():
    model = build("flux")
    call, bytes_of = inputs(model, "flux"), {}
    for branches in (["cond"], ["cond", "uncond"]):
        with hicache.cached(model, method("taylorseer")) as handle:
            handle.begin(4)
            for _, branch in itertools.product(range(2), branches):
                with handle.branch(branch):
                    model(**call, return_dict=False)
            bytes_of[len(branches)] = handle.report.cache_bytes
    assert bytes_of[2] == 2 * bytes_of[1] > 0


@pytest.mark.parametrize("name", ["taylorseer", "toca", "dbcache", "teacache"])
def test_frames_do_not_keep_the_graph(name):
    """Inputs that want a gradient: what is remembered does not."""
    model = build("dit")
    call = inputs(model, "dit")
    call["hidden_states"].requires_grad_(True)
    with hicache.cached(model, method(name)) as handle:
        handle.begin(4)
        assert model(**call, return_dict=False)[0].requires_grad
        branch = handle.executor.generation.branches[""]
        histories = [branch.forecaster.history, *(f.history for f in branch.histories.forecasters.values())]
        frames = [frame for history in histories for frame in history.frames]
        assert frames and not any(frame.requires_grad for frame in frames)
    forecaster = hicache.forecaster("fora")
    forecaster.observe(0, torch.ones(2, requires_grad=True))
    assert not forecaster.predict(1).requires_grad


def test_delta_dit_switches_after_the_given_share():
    """Half of 10 steps: step 5 is the last of the outline."""
    policy = Stages(interval=3, switch=0.5)
    assert [policy.stage(Clock(step=step, num_steps=10)) for step in (0, 4, 5, 6, 9)] == [0, 0, 0, 1, 1]
    assert [Stages(interval=3, switch=0.0).stage(Clock(step=step, num_steps=10)) for step in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("timestep", "action"),
    [
        (0.1, Action.COMPUTE),
        (0.8, Action.COMPUTE),
        (0.1001, Action.MIXED),
        (0.7999, Action.MIXED),
        (None, Action.COMPUTE),
    ],
)
def test_pab_s_window_is_without_its_ends(timestep, action):
    policy = Broadcast(range=4, low=0.1, high=0.8)
    assert policy.decide(Clock(step=3, num_steps=10, timestep=timestep, anchors=[0])) is action
    assert policy.decide(Clock(step=4, num_steps=10, timestep=0.5, anchors=[3])) is Action.COMPUTE


@pytest.mark.parametrize(
    ("timesteps", "shares"),
    [
        ([1000.0, 750.0, 1.0], [1.0, 0.75, 0.001]),
        ([1.0, 0.75, 0.125], [1.0, 0.75, 0.125]),
        ([0.5, 0.25], [0.5, 0.25]),
        ([0.0, 0.25, 1.0], [0.0, 0.75, 0.0]),
        ([0.0, 250.0, 999.0], [0.0, 0.75, 0.001]),
        ([0.0, 1.5625, 1000.0], [0.0, 0.9984375, 0.0]),
    ],
)
def test_the_share_of_noise_of_timesteps_of_all_kinds(timesteps, shares):
    branch = Branch(Clock(), None, Broadcast(), None)
    assert [branch.noise_at(t) for t in timesteps] == pytest.approx(shares)


@pytest.mark.parametrize("timesteps", [[1.096], [0.4, 0.1, -0.2], [1095.0]])
def test_timesteps_that_are_logarithms_say_no_share_of_noise(timesteps):
    branch = Branch(Clock(), None, Broadcast(), None)
    with pytest.raises(ValueError, match=f"timestep: must be from 0 to 1, or to 1000, .*, got {timesteps[-1]:g}"):
        [branch.noise_at(t) for t in timesteps]


def test_pade_reuses_where_the_denominator_is_small():
    """1, 2, 4 is geometric: [1/1] has denominator 1 - h/2 there, 1/2 at h = 1, and the guard decides."""
    frames = [torch.tensor([value]) for value in (1.0, 2.0, 4.0)]
    for pole, reused in ((0.0, False), (1e3, True)):
        out = torch.empty(1)
        Pade(pole=pole, bound=1e9).evaluate([0, 1, 2], frames, 2.5, out)
        assert (float(out) == 4.0) == reused


def test_histories_get_an_anchor_only_where_all_their_modules_are_computed():
    sites = [Site(layer, "mlp") for layer in range(2)]
    histories = ModuleHistories(sites, "all", lambda: method("fora").build_forecaster(lead=2))
    for step, actions in ((0, None), (1, {sites[0]: Action.COMPUTE, sites[1]: Action.ESTIMATE})):
        histories.open(actions)
        for site in sites[: 2 - step]:
            histories.record(site, torch.full((1, 2, 3), 10.0 * step + site.layer))
        histories.close(step)
    (forecaster,) = histories.forecasters.values()
    assert forecaster.last_anchor == 0
    assert [float(histories.predict(site, 2).mean()) for site in sites] == [10.0, 1.0]
    histories.open(dict.fromkeys(sites, Action.COMPUTE))
    for site in sites:
        histories.record(site, torch.full((1, 2, 3), 20.0 + site.layer))
    histories.close(2)
    assert forecaster.last_anchor == 2


def test_a_module_computed_at_a_mixed_step_has_fresh_rows(monkeypatch):
    """ToCa per layer: where only the first block is full, its ages start anew and the others' go on."""
    seen, original = {}, TokenPatch.pick

    def spy(self, site, clock, *args):
        seen[clock.step, site.layer] = float(self.ages[site].max()) if site in self.ages else 0.0
        return original(self, site, clock, *args)

    monkeypatch.setattr(TokenPatch, "pick", spy)
    model = build("dit")
    options = {"policy": "modulated", "policy_options": {"per_layer": True}, "interval": 3}
    with hicache.cached(model, method("toca", patch_options={"fraction": 0.2, "profile": "flat"}, **options)) as handle:
        handle.begin(12)
        denoise(model, inputs(model, "dit"), 12)
    partly = [step for step in range(12) if (step, 1) in seen and (step, 0) not in seen]
    assert partly
    for step in partly:
        if (step + 1, 0) in seen:
            assert seen[step + 1, 0] == 0.0 < seen[step + 1, 1]


def test_scores_are_normalised_without_padding():
    """(3, 4) and a padded 12: s1 = (.6, .8), so that two steps of age .15 make row 0 the best, and never row 2."""
    patch = TokenPatch(fraction=0.5, select="attention", age=0.15, spread=0.0, profile="flat", interval=1)
    site = Site(0, "mlp", "txt")
    patch.valid["txt"] = torch.tensor([[True, True, False]])
    patch.see_scores(0, "txt", torch.tensor([[3.0, 4.0, 12.0]]))
    picked = [int(patch.pick(site, Clock(step=5, num_steps=10), 3, 1, CPU)) for _ in range(4)]
    assert picked == [1, 1, 0, 1]  # .6 + .15 < .8, .6 + .3 > .8


@torch.no_grad()
def test_speca_s_error_leaves_padding_out(monkeypatch):
    """What stands in padded text rows does not change the error of the last block."""
    model = build("hunyuan_video")
    call, found = inputs(model, "hunyuan_video"), []
    call["encoder_attention_mask"] = torch.ones_like(call["encoder_attention_mask"])
    call["encoder_attention_mask"][:, -2:] = 0
    options = {"base": 1e9, "floor": 1e9, "min_drafts": 1, "max_drafts": 4, "compare": "modules"}
    for filling in (0.0, 30.0):
        call["encoder_hidden_states"][:, -2:] = filling
        with hicache.cached(
            model, method("speca", basis="reuse", order=0, warmup_steps=1, policy_options=options)
        ) as h:
            h.begin(6)
            errors = []
            decide = type(h.executor.method.policy).decide
            monkeypatch.setattr(
                type(h.executor.method.policy),
                "decide",
                lambda self, clock, e=errors, d=decide: e.append(clock.error) or d(self, clock),
            )
            denoise(model, dict(call), 6)
            monkeypatch.undo()
        found.append([error for error in errors if error is not None])
    assert found[0] and found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_bootstrap_of_five_is_widened():
    """t(.975, 4) = 2.776, tail Phi(-sqrt(5/4) 2.776) = .00096 of the 5^5 means; narrowed it would be .0066."""
    values = [0.0, 1.0, 2.0, 4.0, 8.0]
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=5)])
    mean, low, high = bootstrap_mean(values, resamples=200_000)
    assert mean == 3.0
    assert low == pytest.approx(means[int(0.00096 * 3125)], abs=1e-9)
    assert high == pytest.approx(means[-1 - int(0.00096 * 3125)], abs=1e-9)
    assert low < means[int(0.0066 * 3125)] and high > means[-1 - int(0.0066 * 3125)]
