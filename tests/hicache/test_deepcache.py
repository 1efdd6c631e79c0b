"""DeepCache: its steps, and a U-Net that is split by depth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import hicache
from hicache.generic import Tap, scopes_of
from hicache.policy import Power
from tests.hicache.denoisers import build, inputs_of

STEPS = 20
LAYERS = 3
"""Layers on the way up in a level of the U-Net here."""

PUBLISHED = {
    (50, 5, 15, 1.4): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 3, 15, 1.4): [0, 3, 6, 8, 11, 13, 15, 17, 20, 22, 25, 28, 32, 35, 38, 42, 46],
    (50, 10, 15, 1.4): [0, 9, 17, 26, 37],
    (50, 5, 0, 1.2): [0, 3, 7, 11, 16, 21, 27, 32, 38, 44],
    (20, 3, 6, 1.4): [0, 3, 5, 7, 10, 13, 16],
    (20, 4, 5, 1.3): [0, 4, 6, 10, 15],
    (30, 5, 10, 1.8): [0, 4, 9, 12, 17, 23],
}
"""Steps, interval, center, power -> what the package of the authors (DeepCache 0.1.1) computes."""


@pytest.mark.parametrize(("setting", "steps"), PUBLISHED.items())
def test_the_non_uniform_steps_are_those_of_the_package(setting, steps):
    num_steps, interval, center, power = setting
    assert Power(interval=interval, center=center, power=power).plan(num_steps) == steps


def test_power_of_interval_1_computes_everything():
    assert Power(interval=1).plan(6) == list(range(6))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"center": -1}, "center: must be an integer >= 0"),
        ({"power": 1.0}, "power: must be a number > 1"),
        ({"interval": 0}, "interval: must be"),
    ],
)
def test_power_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        Power(**{"interval": 5, **options})
    with pytest.raises(ValueError, match="center: must be below the 10 steps, got 15"):
        Power(interval=5).plan(10)


def uniform_and_not():
    return [("interval", n) for n in range(1, 6)] + [("power", 4)]


def denoise(model, call):
    """A generation of DDIM; `call` runs the model's forward at a step."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    inputs = inputs_of("UNet2DConditionModel")
    x = inputs["sample"]
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            arguments = {**inputs, "sample": x, "timestep": t, "return_dict": False}
            x = scheduler.step(call(step, lambda a=arguments: model(**a))[0], t, x).prev_sample
    return x


def left_out(model, depth):
    """The modules that DeepCache leaves out: (level, layer) inside of (depth // layers, depth % layers)."""
    level, layer = divmod(depth, LAYERS)
    found = [model.mid_block]
    for i, block in enumerate(model.down_blocks):
        if i > level:
            found.append(block)
        if i == level:
            for j, resnet in enumerate(block.resnets):
                found += [resnet, *list(getattr(block, "attentions", None) or [])[j : j + 1]] if j >= layer else []
            found += list(block.downsamplers or [])
    for i, block in enumerate(reversed(model.up_blocks)):
        if i > level:
            found.append(block)
        if i == level:
            for j, resnet in enumerate(reversed(block.resnets)):
                attentions = list(getattr(block, "attentions", None) or [])[::-1]
                found += [resnet, *attentions[j : j + 1]] if j > layer else []
    return found


class Oracle:
    """Every module runs at every step; those that are left out give what they gave at the last full one."""

    def __init__(self, modules):
        self.kept, self.full = {}, True
        self.hooks = [module.register_forward_hook(self.hook(i)) for i, module in enumerate(modules)]

    def hook(self, i):
        def leave(module, args, result):
            if self.full:
                self.kept[i] = result
            return self.kept[i]

        return leave


@pytest.fixture(scope="module")
def unet():
    return build("UNet2DConditionModel")


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("depth", "policy", "interval"),
    [(3, p, n) for p, n in uniform_and_not()] + [(depth, "power", 4) for depth in (0, 1, 2, 5, 8)],
)
def test_a_generation_is_deepcache_s(unet, depth, policy, interval):
    model = unet
    options = {"policy_options": {"center": 6, "power": 1.4}} if policy == "power" else {}
    plan = hicache.method("deepcache", interval=interval, policy=policy, **options).policy.plan(STEPS)
    tap, kept, calls = Tap(model, "deep", depth=depth), [], []
    count = model.mid_block.resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def ours(step, call):
        if step in plan:
            result, kept[:] = tap.compute(call)
            return result
        return tap.replay(call, kept)

    found = denoise(model, ours)
    count.remove()
    assert len(calls) == len(plan) == (-(-STEPS // interval))
    oracle = Oracle(left_out(model, depth))

    def theirs(step, call):
        oracle.full = step in plan
        return call()

    expected = denoise(model, theirs)
    for hook in oracle.hooks:
        hook.remove()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("interval", range(1, 6))
def test_beside_the_package(interval):
    package = pytest.importorskip("DeepCache")
    model = build("UNet2DConditionModel")
    tap, kept = Tap(model, "deep", depth=1), []

    def ours(step, call):
        if step % interval:
            return tap.replay(call, kept)
        result, kept[:] = tap.compute(call)
        return result

    found = denoise(model, ours)
    from diffusers import DDIMScheduler

    helper = package.DeepCacheSDHelper(pipe=SimpleNamespace(unet=model, scheduler=DDIMScheduler()))
    helper.set_params(cache_interval=interval, cache_branch_id=1)
    helper.pipe.scheduler.set_timesteps(STEPS)
    helper.enable()
    try:
        expected = denoise(model, lambda step, call: call())
    finally:
        helper.disable()
    assert torch.equal(found, expected)


def test_what_has_no_levels_and_a_depth_that_is_not_there():
    assert "deep" not in scopes_of(build("StableCascadeUNet"))
    with pytest.raises(ValueError, match="depth: must be an integer from 0 to 8, got 9"):
        Tap(build("UNet2DConditionModel"), "deep", depth=9)
    with pytest.raises(ValueError, match="has output, deep, got 'stack'"):
        Tap(build("UNet2DConditionModel"), "stack")


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "knobs"), [("deepcache", {}), ("hicache", {"scope": "deep", "warmup_steps": 2})])
def test_through_enable(name, knobs):
    """DeepCache, and its split with HiCache's basis: the inner levels run at full steps only."""
    model, calls = build("UNet2DConditionModel"), []
    plain = denoise(model, lambda step, call: call())
    count = model.mid_block.register_forward_pre_hook(lambda *_: calls.append(1))
    found = {}
    for interval in (1, 4):
        method = hicache.method(name, interval=interval, depth=1, **knobs)
        with hicache.cached(model, method) as cache:
            cache.begin(STEPS)

            def step(index, call, cache=cache):
                result = call()
                cache.step()
                return result

            calls.clear()
            found[interval] = denoise(model, step)
        assert cache.report.full_steps == method.policy.plan(STEPS)
        assert len(calls) == len(cache.report.full_steps)
    count.remove()
    assert torch.equal(found[1], plain)
    assert torch.isfinite(found[4]).all() and not torch.equal(found[4], plain)
    if name == "deepcache":
        tap, kept = Tap(model, "deep", depth=1), []

        def reuse(index, call):
            if index % 4:
                return tap.replay(call, kept)
            result, kept[:] = tap.compute(call)
            return result

        assert torch.equal(found[4], denoise(model, reuse))
