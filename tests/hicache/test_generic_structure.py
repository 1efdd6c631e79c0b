"""`hicache.scopes`, and what a tap refuses."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hicache
from hicache.generic import Tap, TapError, scopes_of
from hicache.generic.blocks import block_lists, flat_blocks
from hicache.generic.modules_tap import ModulesTap
from hicache.steps.tapped_modules import TappedModules
from tests.hicache.denoisers import build, inputs_of


class Block(nn.Module):
    """Two streams of one shape, handed on crosswise to a block that names them differently."""

    def __init__(self, seed, cross=False):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, text, image, scale=1.0):
        return image + self.a(text) * scale, text + self.b(image)


class Crossed(Block):
    def forward(self, left, right):
        return super().forward(right, left)[::-1]


class Own(nn.Module):
    """A user's own denoiser: nobody has declared anything of it."""

    def __init__(self, control=False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(0), Block(1), Block(2)])
        self.more_layers = nn.ModuleList([Crossed(3), Crossed(4)])
        self.control = control

    def forward(self, x, t):
        image, text = x + t, 2 * x - t
        for i, block in enumerate(self.blocks):
            image, text = block(text=text, image=image, scale=0.5)
            if self.control and i == 1:
                image = image + 0.3 * t
        for block in self.more_layers:
            image, text = block(image, text)
        return {"sample": image - 0.1 * text, "t": float(t)}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def x():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scope", ["output", "final_hidden", "stack", "blocks", "span", "front_back"])
@pytest.mark.parametrize("control", [False, True])
def test_an_own_module_has_every_scope_of_blocks(scope, control):
    model = Own(control)
    tap = Tap(model, scope, front=1 if scope == "span" else 0)
    result, features = tap.compute(lambda: model(x(), 0.7))
    plain = model(x(), 0.7)
    assert torch.equal(result["sample"], plain["sample"])
    replayed = tap.replay(lambda: model(x(), 0.7), features)
    torch.testing.assert_close(replayed, plain)
    if scope == "stack":
        assert len(features) == (4 if control else 2)
        assert tap.layout.how == ({"identity": 2, "class": 3} if control else {"identity": 3, "class": 2})


def test_scopes_says_how_streams_are_known():
    found = hicache.scopes(Own())
    assert list(found) == ["model"]
    assert found["model"].lists[0].how == {"Block": "found at the first call"}
    called = hicache.scopes(Own(), example={"x": x(), "t": 0.7})["model"]
    assert [blocks.how for blocks in called.lists] == [{"Block": "identity"}, {"Crossed": "identity"}]
    flux = hicache.scopes(SimpleNamespace(transformer=build("FluxTransformer2DModel"), unet=None))
    text = str(flux)
    assert "transformer: FluxTransformer2DModel" in text
    assert "2 in transformer_blocks, FluxTransformerBlock: registry" in text
    assert "modules" in flux["transformer"].scopes
    assert hicache.scopes(build("HiDreamImageTransformer2DModel"))["model"].lists[0].how == {"HiDreamBlock": "declared"}
    with pytest.raises(ValueError, match="target: must be a module or have one of transformer"):
        hicache.scopes(SimpleNamespace(vae=nn.Linear(1, 1)))


def test_a_model_without_blocks_has_output_only():
    assert scopes_of(nn.Linear(2, 2)) == ("output",)
    with pytest.raises(ValueError, match="scope: Linear has output, got 'stack'"):
        Tap(nn.Linear(2, 2), "stack")


def test_a_model_compiled_as_a_whole_has_output_only():
    model = Own()
    assert scopes_of(torch.compile(model, backend="eager")) == ("output",)
    model.compile(backend="eager")
    assert scopes_of(model) == ("output",)


@pytest.mark.slow
def test_compiled_blocks_are_not_entered_at_a_replay_and_not_compiled_again():
    torch._dynamo.reset()
    model = build("FluxTransformer2DModel")
    model = copy.deepcopy(model)
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        block.compile(backend=counter, fullgraph=True)
    inputs = inputs_of("FluxTransformer2DModel")
    plain = model(**inputs, return_dict=False)[0]
    graphs = counter.frame_count
    assert graphs > 0
    before = [block._compiled_call_impl for block in model.transformer_blocks]
    for scope in ("stack", "blocks", "final_hidden"):
        tap = Tap(model, scope)
        for _ in range(2):
            (result,), features = tap.compute(lambda: model(**inputs, return_dict=False))
            assert torch.equal(result, plain)
            torch.testing.assert_close(tap.replay(lambda: model(**inputs, return_dict=False), features)[0], plain)
    assert counter.frame_count == graphs
    assert [block._compiled_call_impl for block in model.transformer_blocks] == before
    tap = Tap(model, "modules")
    _, features = tap.compute(lambda: model(**inputs, return_dict=False))
    torch.testing.assert_close(tap.replay(lambda: model(**inputs, return_dict=False), features)[0], plain)
    assert [block._compiled_call_impl for block in model.transformer_blocks] == before


def test_hooks_on_the_forward_of_a_block_are_not_bypassed_at_a_computed_step_and_rest_at_a_replay():
    model, calls = Own(), []
    block = model.blocks[1]
    inner = block.forward

    def offloaded(*args, **kwargs):
        calls.append("loaded")
        return inner(*args, **kwargs)

    block.forward = offloaded
    tap = Tap(model, "stack")
    _, features = tap.compute(lambda: model(x(), 0.7))
    assert calls == ["loaded"]
    tap.replay(lambda: model(x(), 0.7), features)
    assert calls == ["loaded"]
    assert block.forward is offloaded


def test_between_calls_a_model_carries_nothing():
    model = Own()
    tap = Tap(model, "blocks")
    _, features = tap.compute(lambda: model(x(), 0.7))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301
    torch.testing.assert_close(twin(x(), 0.7), model(x(), 0.7))
    with pytest.raises(RuntimeError, match="interrupted"):
        tap.replay(lambda: (_ for _ in ()).throw(RuntimeError("interrupted")), features)
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


def test_decide_asks_once_the_front_has_run():
    model = Own()
    tap = Tap(model, "span", front=1)
    call = lambda: model(x(), 0.7)  # noqa: E731
    asked = []

    def compute(probe):
        asked.append(probe)

    result, features = tap.decide(call, compute)
    plain = call()
    torch.testing.assert_close(result, plain)
    entered = 2 * x() - 0.7
    left = model.blocks[0](entered, x() + 0.7, 0.5)[1]
    torch.testing.assert_close(asked[0], left - entered)
    replayed, none = tap.decide(call, lambda probe: features)
    assert none is None
    torch.testing.assert_close(replayed, plain)


@pytest.mark.parametrize("scope", ["stack", "blocks", "span"])
def test_other_shapes_or_other_blocks_are_an_error_and_no_broadcast(scope):
    model = Own()
    tap = Tap(model, scope, front=1 if scope == "span" else 0)
    _, features = tap.compute(lambda: model(x(), 0.7))
    with pytest.raises(TapError, match=r"must have the shape \[2, 3, 4\] of the anchor, got \[1, 3, 4\]"):
        tap.replay(lambda: model(x()[:1], 0.7), features)
    with pytest.raises(TapError, match="features: must be"):
        tap.replay(lambda: model(x(), 0.7), features[1:])
    with pytest.raises(TapError, match="did not run at this step"):
        tap.replay(lambda: model.blocks[1](x(), x()), features)
    with pytest.raises(TapError, match="runs at this step and did not"):
        tap.replay(lambda: [model(x(), 0.7), model(x(), 0.7)], features)


def test_a_model_that_calls_none_of_its_blocks_is_named():
    model = Own()
    with pytest.raises(TapError, match="Own called none of its 5 blocks, use scope 'output'"):
        Tap(model, "stack").compute(lambda: x())


def test_a_text_result_is_no_feature():
    with pytest.raises(TapError, match="Own returns no tensor to forecast, got str"):
        Tap(Own(), "output").compute(lambda: "text")


def test_a_span_leaves_a_block():
    with pytest.raises(ValueError, match="front: front [+] back must be from 0 to below the 5 blocks"):
        Tap(Own(), "span", front=3, back=2)


@pytest.mark.parametrize("name", ["ZImageTransformer2DModel", "Lumina2Transformer2DModel", "WanVACETransformer3DModel"])
def test_the_probe_is_of_the_stack_behind_refiners_and_controls(name):
    """The front is the first block of the stack, which runs with all before it at every step."""
    model = build(name)
    lists, counts = block_lists(model), []
    stack = list(lists.values())[-1]
    ahead = [block for blocks in list(lists.values())[:-1] for block in blocks]
    for i, block in enumerate([*ahead, *stack]):
        block.register_forward_hook(lambda m, x, o, i=i: counts.append(i))
    entered, behind = [], []
    for block, found in zip(stack[:2], (entered, behind)):
        block.register_forward_pre_hook(lambda m, a, k, f=found: f.append((*a, *k.values())[0]), with_kwargs=True)
    options = {"threshold": math.inf, "max_continuous": 1}
    with hicache.cached(model, hicache.method("fbcache", policy_options=options)) as cache, torch.no_grad():
        cache.begin(4)
        for step in range(4):
            model(**inputs_of(name, step))
            cache.step()
        assert cache.report.full_steps == [0, 2]
        (branch,) = cache.executor.generation.branches.values()
        torch.testing.assert_close(branch.watched, behind[1] - entered[2])
    front = len(ahead) + 1
    assert [counts.count(i) for i in range(front + len(stack) - 1)] == [*[4] * front, *[2] * (len(stack) - 1)]


def test_a_tapped_probe_needs_a_block_in_front():
    with pytest.raises(ValueError, match="front: must be >= 1 for a policy that probes, got 0"):
        hicache.enable(build("SD3Transformer2DModel"), hicache.method("fbcache", front=0))


@pytest.mark.parametrize("name", ["ZImageTransformer2DModel", "Lumina2Transformer2DModel"])
def test_a_norm_behind_a_module_stands_for_it(name):
    """Module and norm are one site: they are computed and estimated together, and no projection joins two of them."""
    model = build(name)
    found = TappedModules(model, hicache.method("pab"))
    blocks = flat_blocks(model)
    assert found.feeds == [False, False, True, True] * len(blocks)
    assert [(site.layer, site.module) for site in found.sites] == [
        (layer, kind) for layer in range(len(blocks)) for kind in ("attn", "mlp") * 2
    ]
    assert not any(ModulesTap.joint(block) for block in blocks)
    assert any(ModulesTap.joint(block) for block in flat_blocks(build("ChromaTransformer2DModel")))
