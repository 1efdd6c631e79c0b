"""Models that change tensors in place, inside of their blocks or between them, give what their plain twins give."""

import pytest
import torch
from torch import nn

import hicache
from hicache.generic import Tap

SCOPES = ("final_hidden", "stack", "blocks", "span", "front_back")


class Block(nn.Module):
    def __init__(self, seed, in_place):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.in_place = nn.Linear(4, 4), in_place

    def forward(self, hidden, scale):
        if not self.in_place:
            return hidden + scale * self.inner(hidden)
        hidden += scale * self.inner(hidden)
        return hidden


class Own(nn.Module):
    """Blocks with a residual of a control between them; `embeds`: the first block is given the sample itself."""

    def __init__(self, in_place=False, between=False, embeds=True):
        super().__init__()
        self.blocks = nn.ModuleList([Block(seed, in_place) for seed in range(4)])
        self.between, self.embeds = between, embeds

    def forward(self, x, timestep, control=0.0):
        hidden = 2 * x if self.embeds else x
        for block in self.blocks:
            hidden = block(hidden, 0.3 + timestep / 2000)
            if control and self.between:
                hidden[:, 1:] += control
            elif control:
                hidden = torch.cat([hidden[:, :1], hidden[:, 1:] + control], 1)
        return 3 * hidden


def x():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def replayed(model, scope, control):
    """A step that is estimated from the features of another: with its own sample, time and control."""
    tap = Tap(model, scope, front=1 if scope == "span" else 0)
    _, features = tap.compute(lambda: model(x(), 900.0, control))
    given = x().flip(0)
    before = given.clone()
    result = tap.replay(lambda: model(given, 500.0, 2 * control), features)
    assert torch.equal(given, before)
    return result


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("in_place", "between"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("control", [0.0, 0.5])
def test_features_are_those_of_the_plain_twin(scope, in_place, between, control):
    torch.testing.assert_close(replayed(Own(in_place, between), scope, control), replayed(Own(), scope, control))


def test_a_sample_stays_as_it_is():
    torch.testing.assert_close(
        replayed(Own(between=True, embeds=False), "final_hidden", 0.5), replayed(Own(embeds=False), "final_hidden", 0.5)
    )


@torch.no_grad()
def sampled(model, method, in_place=False):
    """The full steps of twelve steps of Euler, and their end."""
    sample = x()
    with hicache.cached(model, method) as handle:
        handle.begin(12)
        for step in range(12):
            velocity = 0.1 * model(sample, 1000.0 - 80 * step)
            sample = sample.sub_(velocity) if in_place else sample - velocity
        handle.finish()
    return handle.report.full_steps, sample


@pytest.mark.parametrize("name", ["fbcache", "dbcache"])
def test_a_probe_sees_how_far_blocks_have_moved_in_place(name):
    method = hicache.method(name, policy_options={"threshold": 0.4})
    steps, end = sampled(Own(), method)
    assert 1 < len(steps) < 12
    found, other = sampled(Own(in_place=True), method)
    assert found == steps
    torch.testing.assert_close(other, end)


def test_teacache_sees_a_sample_move_that_a_loop_changes_in_place():
    method = hicache.method("teacache", policy_options={"threshold": 0.5})
    steps, end = sampled(Own(embeds=False), method)
    assert 2 < len(steps) < 12
    found, other = sampled(Own(embeds=False), method, in_place=True)
    assert found == steps
    assert torch.equal(other, end)
