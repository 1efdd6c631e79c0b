"""What an estimated call does not do again, and that it makes no difference."""

import importlib
import inspect

import pytest
import torch
from torch import nn

import hicache
from hicache.adapters import adapter_for, base
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
def test_gates_are_looked_up_once_in_a_generation(monkeypatch, name):
    looked, gate_of = [], base.gate_of
    monkeypatch.setattr(base, "gate_of", lambda module, width: looked.append(1) or gate_of(module, width))
    model = build(name)
    with hicache.cached(model, hicache.method("hicache", interval=5, warmup_steps=1)) as cache:
        cache.begin(11)
        denoise(model, inputs(model, name), 11)
        assert cache.report.full_steps == [0, 5, 10]
    assert len(looked) == len(adapter_for(model).gated())


@pytest.mark.parametrize("name", ["flux", "dit"])
def test_no_weight_is_held_behind_a_generation(name):
    """They may be moved to make room for what decodes the result."""
    model = build(name)
    weights = [layer.weight.untyped_storage() for layer in adapter_for(model).modulations()]
    counts = [torch._C._storage_Use_Count(each._cdata) for each in weights]
    with hicache.cached(model, hicache.method("hicache", interval=5, warmup_steps=1)) as cache:
        cache.begin(8)
        denoise(model, inputs(model, name), 8)
        assert cache.report.estimated_steps[-1] == 7
        assert [torch._C._storage_Use_Count(each._cdata) for each in weights] == counts


def exchange(block):
    block.norm1.linear = nn.Linear(32, 6 * 32)


def exchange_weight(block):
    block.norm1.linear.weight = nn.Parameter(torch.randn(6 * 32, 32))


def move_weight(block):
    block.norm1.linear.weight.data = torch.randn(6 * 32, 32)


def move_bias(block):
    block.norm1.linear.bias.data = torch.randn(6 * 32)


def hook(block):
    layer = block.norm1.linear
    layer._hf_hook, layer.forward = "of an offload", lambda condition: condition.repeat(1, 6)


class Quantised(torch.Tensor):
    """A weight that has no rows of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            raise TypeError("packed")
        if func is torch.Tensor.detach:
            return super().__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def quantise(block):
    block.norm1.linear.weight = nn.Parameter(torch.randn(6 * 32, 32).as_subclass(Quantised))


@pytest.mark.parametrize("change", [exchange, exchange_weight, move_weight, move_bias, hook, quantise])
def test_gates_follow_what_happens_to_a_layer(change):
    model = build("flux")
    adapter, call = adapter_for(model), inputs(model, "flux")
    with torch.no_grad():
        hidden = adapter.embed(adapter.bind((), call))
        before = adapter.gates(adapter.bind((), call), hidden)
        change(model.transformer_blocks[0])
        adapter.renew()
        after = adapter.gates(adapter.bind((), call), hidden)
        fresh = adapter_for(model)
        assert torch.equal(after, fresh.gates(fresh.bind((), call), hidden))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[2:], after[2:])
