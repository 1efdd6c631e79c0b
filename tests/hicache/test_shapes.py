"""The loops of examples/shapes.py on stand-ins that have the same interface."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hicache

STEPS = 20


@pytest.fixture(scope="module")
def shapes():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("shapes", Path(__file__).parents[2] / "examples" / "shapes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["shapes"] = module
    spec.loader.exec_module(module)
    return module


class Denoiser(nn.Module):
    """A small smooth velocity that counts its calls."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.out, self.calls = nn.Linear(width, 16), nn.Linear(16, width), 0

    def forward(self, x, t, cond):
        self.calls += 1
        shift = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.out(torch.tanh(self.mix(x) + shift)) * 0.3 + cond


class SparseTensor:
    """The interface of TRELLIS' sparse tensor."""

    def __init__(self, feats, coords):
        self.feats, self.coords = feats, coords

    def replace(self, feats):
        return SparseTensor(feats, self.coords)

    def __mul__(self, other):
        return self.replace(self.feats * other)

    __rmul__ = __mul__

    def __sub__(self, other):
        return self.replace(self.feats - other.feats)


hicache.register(SparseTensor, lambda x: x.feats, lambda x, feats: x.replace(feats))


def method(interval):
    return hicache.method("hicache", interval=interval, order=2, sigma=0.5, warmup_steps=3, gate=False)


def near(found, plain):
    return float((found - plain).norm() / plain.norm())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_hunyuan3d(shapes):
    from diffusers import FlowMatchEulerDiscreteScheduler

    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
    cond = torch.tensor([[[0.1]], [[-0.1]]])

    def run(interval):
        model, scheduler = Denoiser(4), FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(STEPS)
        found, report = shapes.hunyuan3d(model, scheduler, x, cond, STEPS, method(interval))
        assert model.calls == len(report.full_steps)
        return found, report

    plain, report = run(1)
    assert report.full_steps == list(range(STEPS))
    found, report = run(4)
    assert report.full_steps == hicache.full_steps(STEPS, 4, 3)
    assert 0 < near(found, plain) < 0.02


@pytest.mark.parametrize("sparse", [False, True])
def test_trellis(shapes, sparse):
    feats = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    noise = SparseTensor(feats, torch.arange(30)) if sparse else feats
    times = [1 - i / STEPS for i in range(STEPS + 1)]

    def run(interval):
        model = Denoiser(4)

        def predict(x, t, cond):
            return x.replace(model(x.feats, t, cond)) if sparse else model(x, t, cond)

        found, report = shapes.trellis(predict, noise, 0.2, -0.2, times, method(interval), strength=3.0)
        return (found.feats if sparse else found), report, model.calls

    plain, report, calls = run(1)
    assert calls == 11 * 2 + 9, "guidance ends at t = .5"
    found, report, calls = run(4)
    assert 0 < near(found, plain) < 0.05
    assert 11 in report.full_steps, "the first step without guidance is computed"
    assert report.branches["uncond"] == [0, 1, 2, 6, 10]
    assert calls == len(report.branches["cond"]) + 5


def test_sam3d(shapes):
    noise = {"shape": torch.randn(1, 6, 4), "pose": torch.randn(1, 4)}
    times = [i / STEPS for i in range(STEPS + 1)]

    def run(interval):
        model = Denoiser(4)
        found, report = shapes.sam3d(
            lambda x, t: {name: model(value, t, 0.1) for name, value in x.items()}, noise, times, method(interval)
        )
        assert model.calls == 2 * len(report.full_steps)
        return found

    plain, found = run(1), run(4)
    assert list(found) == ["shape", "pose"]
    for name in found:
        assert 0 < near(found[name], plain[name]) < 0.02
