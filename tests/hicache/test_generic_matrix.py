"""Every denoiser class of diffusers x every scope that it has.

The oracle knows nothing of stubs: all real blocks run, and hooks overwrite what the closing block of a segment (the
attention, the feed-forward module, the split of a U-Net) returns with a forecast computed by hand, 2 F(1) - F(0).
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from hicache.generic import Tap, scopes_of
from tests.hicache.denoisers import TABLE, build, inputs_of, tensors_of

QUICK = {
    "FluxTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "LatteTransformer3DModel",
    "UNet2DConditionModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "ZImageTransformer2DModel",
}

LEFT_OUT = {
    "ControlNetXSAdapter": "no denoiser: joined to a U-Net by UNetControlNetXSModel",
    "MiniMaxMusic3RVQDepthDecoder": "no denoiser: decodes the codes of one audio frame one after the other",
    "RFD4ProteinaTransformer": "not built here: its input is some thirty features of a protein",
    "SanaWMTransformer3DModel": "not built here: its input is maps of cameras and of chunks of frames",
    "MotionAdapter": "no denoiser: a store of motion modules",
}

CASES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in TABLE]


def where(scope: str) -> dict[str, int]:
    return {"front": 1} if scope == "span" else {}


def distance(a, b) -> float:
    """The greatest difference, relative to the greatest value."""
    pairs = list(zip(tensors_of(a), tensors_of(b), strict=True))
    assert pairs
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-12)) for x, y in pairs)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


class Oracle:
    """Runs the real model; on the way it reads the values of the sites, or overwrites them."""

    def __init__(self, tap: Tap, part: int) -> None:
        self.tap, self.part, self.kind = tap, part, tap._tap
        self.calls = [call for call in tap.layout.calls if getattr(call, "part", 0) == part]
        self.read: list[torch.Tensor] = []
        self.given: list[torch.Tensor] | None = None
        self.position = 0
        self.entered: dict[int, torch.Tensor] = {}
        self.opens = True

    def run(self, call, given=None):
        self.read, self.given, self.position, self.opens = [], given and list(given), 0, True
        modules = self.kind.modules if self.tap.scope == "modules" else self.kind.blocks
        hooks = [
            module.register_forward_hook(self.hook(index), with_kwargs=True) for index, module in enumerate(modules)
        ]
        try:
            return call()
        finally:
            for hook in hooks:
                hook.remove()

    def value(self, real: torch.Tensor) -> torch.Tensor:
        """A value of a site: read, and replaced where values are given."""
        self.read.append(real.clone())
        return real if self.given is None else self.given.pop(0)

    def hook(self, index: int):
        def whole(module, args, kwargs, result):
            site = self.kind.site if self.tap.scope == "deep" else None
            if (index == site) if site is not None else not self.kind.hollow[index]:
                if isinstance(result, torch.Tensor):
                    return self.value(result)
                return type(result)(self.value(x) if isinstance(x, torch.Tensor) else x for x in result)
            return None

        def block(module, args, kwargs, result):
            if self.kind.part(index) != self.part:
                return None
            bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
            call = self.calls[self.position]
            if self.opens or self.tap.scope == "blocks":
                self.entered = {}
            later = self.calls[self.position + 1 :]
            assert call.block == index
            self.position += 1
            self.opens = call.closes
            if self.tap.scope == "final_hidden":
                self.opens = False
                assert call.closes == (not later)
            outs = list(tensors_of(result))
            given = [None if name is None else bound[name] for name in call.streams]
            entries = [None if value is None else self.entered.get(id(value), value) for value in given]
            self.entered = {id(out): entry for out, entry in zip(outs, entries, strict=True) if entry is not None}
            for i, name in enumerate(call.streams):
                if name is None or (call.closes and self.tap.scope == "final_hidden"):
                    outs[i] = self.value(outs[i])
                elif call.closes:
                    outs[i] = entries[i] + self.value(outs[i] - entries[i])
            left = iter(outs)
            if isinstance(result, torch.Tensor):
                return outs[0]
            return type(result)(next(left) if isinstance(x, torch.Tensor) else x for x in result)

        return whole if self.tap.scope in ("modules", "deep") else block


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def check(name: str, model: nn.Module, scope: str, part: int = 0) -> None:
    """One cell of the matrix."""
    call = lambda step: lambda: model(**inputs_of(name, step))  # noqa: E731
    plain = [call(step)() for step in range(3)]
    tap = Tap(model, scope, **where(scope))
    found = [tap.compute(call(step)) for step in range(2)]
    assert all(same(result, before) for (result, _), before in zip(found, plain, strict=False)), "computing differs"
    features = [values for _, values in found]
    assert distance(tap.replay(call(1), features[1], part=part), plain[1]) <= 2e-6, "its own features do not replay"
    forecast = [2 * b - a for a, b in zip(*features, strict=True)]
    counted: list[int] = []
    modules = tap._tap.modules if scope == "modules" else getattr(tap._tap, "blocks", [])
    ours = [m for i, m in enumerate(modules) if scope in ("modules", "deep") or tap._tap.part(i) == part]
    hooks = [module.register_forward_hook(lambda *_: counted.append(1)) for module in ours]
    replayed = tap.replay(call(2), forecast, part=part)
    assert not counted, f"{len(counted)} blocks ran at a replay"
    moved = tap.replay(call(2), [1.5 * value + 0.1 for value in forecast], part=part)
    for hook in hooks:
        hook.remove()
    assert distance(moved, replayed) > 1e-7, "the features do not matter"
    if scope != "output":
        oracle = Oracle(tap, part)
        read = []
        for step in range(2):
            oracle.run(call(step))
            read.append(oracle.read)
        wanted = oracle.run(call(2), [2 * b - a for a, b in zip(*read, strict=True)])
        assert not oracle.given
        assert distance(replayed, wanted) <= 1e-5, f"{distance(replayed, wanted):.1e} from the oracle"
    assert same(call(0)(), plain[0]), "not restored"
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


@pytest.mark.matrix
@pytest.mark.parametrize("name", CASES)
def test_cell(name):
    model = build(name)
    assert not same(model(**inputs_of(name, 0)), model(**inputs_of(name, 1)))
    wrong = {}
    for scope in scopes_of(model):
        for part in (0, 1) if scope == "front_back" else (0,):
            try:
                check(name, model, scope, part)
            except Exception as error:
                wrong[scope, part] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert wrong == {}


def test_classes_of_diffusers():
    """A denoiser class that a newer diffusers brings is named here until it has a row."""
    import diffusers

    rooms = ("diffusers.models.transformers", "diffusers.models.unets", "diffusers.models.controlnets.controlnet_xs")
    found = {
        name
        for name in dir(diffusers)
        if name.endswith(("Model", "UNet", "Transformer", "Adapter", "Decoder"))
        and inspect.isclass(kind := getattr(diffusers, name))
        and kind.__module__.startswith(rooms)
    }
    covered = {name.split("-")[0] for name in TABLE}
    assert len(covered) >= 60
    assert found - covered - LEFT_OUT.keys() == set()
    assert LEFT_OUT.keys() - found == set()
    assert LEFT_OUT.keys() & covered == set()


def generation(name: str, model: nn.Module, handle=None) -> list:
    """Six steps of a class."""
    if handle is not None:
        handle.begin(6)
    found = []
    for step in range(6):
        found.append(model(**inputs_of(name, step)))
        if handle is not None:
            handle.step()
    if handle is not None:
        handle.finish()
    return found


@pytest.mark.matrix
@pytest.mark.parametrize("name", CASES)
def test_through_enable(name):
    """Interval 1 is the model itself; interval 3 computes what is planned; afterwards the model is as it was."""
    import hicache

    model, wrong = build(name), {}
    plain = generation(name, model)
    for scope in scopes_of(model):
        policy = {"policy": "stages"} if scope == "front_back" else {}
        try:
            for interval in (1, 3):
                method = hicache.method("taylorseer", scope=scope, interval=interval, warmup_steps=1, order=1, **policy)
                with hicache.cached(model, method) as cache:
                    found = generation(name, model, cache)
                same_as = [same(a, b) for a, b in zip(found, plain, strict=True)]
                planned = method.policy.plan(6)
                assert cache.report.full_steps == planned, f"computed {cache.report.full_steps}, planned {planned}"
                assert interval == 3 or all(same_as), "interval 1 differs"
                assert all(same_as[step] for step in planned), "a computed step differs"
                assert interval == 1 or not all(same_as), "nothing was estimated"
            assert same(model(**inputs_of(name, 0)), plain[0]), "not restored"
        except Exception as error:
            wrong[scope] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert wrong == {}


@pytest.mark.slow
def test_the_page_of_models_is_what_the_code_finds():
    from tests.hicache.coverage import PAGE, markdown

    pytest.importorskip("cache_dit")
    assert PAGE.read_text() == markdown(), "python -m tests.hicache.coverage"
