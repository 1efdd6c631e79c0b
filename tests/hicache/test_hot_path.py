"""What an estimated call does not do again, and that it makes no difference."""

import importlib
import inspect

import pytest
import torch
from torch import nn

import hicache
from hicache.adapters import adapter_for
from hicache.adapters.base import Adapter
from hicache.calls import binder
from hicache.forecast.combine import gated_sum

from .models import build, denoise, inputs

arithmetic = importlib.import_module("hicache.forecast.combine")


class Denoiser(nn.Module):
    """A signature with everything in it."""

    def forward(self, x, timestep=None, *, scale=1.0, flag=False):
        return x


CALLS = [((1,), {}), ((1, 2), {}), ((), {"flag": True, "x": 1}), ((1,), {"scale": 2.0, "timestep": 3})]
WRONG = [((), {}), ((1,), {"x": 1}), ((1, 2, 3), {}), ((1,), {"other": 1})]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_arguments_are_bound_as_python_does(args, kwargs):
    bound = inspect.signature(Denoiser.forward).bind(None, *args, **kwargs)
    bound.apply_defaults()
    found = binder(Denoiser())(args, kwargs)
    assert list(found.items()) == list(bound.arguments.items())[1:]


@pytest.mark.parametrize(("args", "kwargs"), WRONG)
def test_wrong_arguments_are_refused_as_python_does(args, kwargs):
    with pytest.raises(TypeError):
        binder(Denoiser())(args, kwargs)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_many_sites_at_a_time_give_the_same_sum(monkeypatch, per_sample, dtype):
    """Frames of weight zero are not read: here they are not finite."""
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(5, 2, 3, 4, generator=generator).to(dtype) for _ in range(3)]
    base, gates = torch.randn(2, 4, 3, generator=generator).mT.to(dtype), torch.randn(5, 2, 4, generator=generator)
    weights = [torch.randn(5, 2, generator=generator) if per_sample else 0.7, 0.0, -1.3]
    frames[1].fill_(torch.nan)
    small = gated_sum(base, gates.to(dtype), weights, frames)
    monkeypatch.setattr(arithmetic, "MANY", 2 * frames[0][0].numel())
    parts = gated_sum(base, gates.to(dtype), weights, frames)
    monkeypatch.setattr(arithmetic, "SMALL", 0)
    large = gated_sum(base, gates.to(dtype), weights, frames)
    assert large.dtype == dtype
    for found in (small, parts):
        torch.testing.assert_close(found, large, rtol=1e-5 if dtype != torch.bfloat16 else 8e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["flux", "dit"])
def test_gates_are_looked_up_once_between_computed_steps(monkeypatch, name):
    looked, gated = [], Adapter.gated
    monkeypatch.setattr(Adapter, "gated", lambda self: looked.append(1) or gated(self))
    model = build(name)
    with hicache.cached(model, hicache.method("hicache", interval=5, warmup_steps=1)) as cache:
        looked.clear()
        cache.begin(10)
        denoise(model, inputs(model, name), 10)
        assert cache.report.full_steps == [0, 5]
    assert len(looked) == 3  # for the proof too


def test_gates_follow_a_layer_that_is_exchanged():
    model = build("flux")
    adapter, call = adapter_for(model), inputs(model, "flux")
    with torch.no_grad():
        hidden = adapter.embed(adapter.bind((), call))
        before = adapter.gates(adapter.bind((), call), hidden)
        model.transformer_blocks[0].norm1.linear = nn.Linear(32, 6 * 32)
        adapter.renew()
        after = adapter.gates(adapter.bind((), call), hidden)
        fresh = adapter_for(model)
        assert torch.equal(after, fresh.gates(fresh.bind((), call), hidden))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[2:], after[2:])
