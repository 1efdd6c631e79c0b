"""What is hung on a model's blocks and modules to read the values of a scope, or to put a forecast in their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hicache.adapters.base import Adapter, Sink, Streams
from hicache.adapters.modules import Module, compiled
from hicache.tree import Site
from hicache.typed import never_compiled

__all__ = ["attach_modules", "attach_scope", "eager", "guarded", "see_hooks"]


def ignored(*args: Any, **kwargs: Any) -> None:
    """A hook that does nothing."""


def ignoring() -> Callable[..., None]:
    """What a hook of ours is in a copy or a pickle of the model."""
    return ignored


class Eager:
    """See `eager`."""

    def __init__(self, hook: Callable[..., None]) -> None:
        self.hook = hook

    @never_compiled
    def __call__(self, *args: Any) -> None:
        self.hook(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return ignoring, ()


def eager(hook: Callable[..., None]) -> Callable[..., Any]:
    """A hook that runs outside compiled graphs, and does nothing in a copy or a pickle of the model."""
    return Eager(hook)  # type: ignore[return-value]


def see_hooks() -> None:
    """Make compiled blocks notice hooks: by default a graph compiled before a hook was added never calls it."""
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


def attach_modules(
    adapter: Adapter, modules: Sequence[Module], sink: Callable[[Site, Tensor], None]
) -> list[RemovableHandle]:
    """Hooks that give the value of every module that runs to `sink`."""

    def observer(module: Module) -> Callable[..., None]:
        @eager
        def observe(_: Any, args: tuple[Any, ...], output: Any) -> None:
            sink(module.site, adapter.module_value(module, output))

        return observe

    if any(compiled(block) for block in adapter.blocks()):
        see_hooks()
    return [module.module.register_forward_hook(observer(module)) for module in modules]


def always() -> bool:
    """Every step is wanted."""
    return True


def attach_scope(
    adapter: Adapter,
    scope: str,
    spans: Sequence[tuple[int, int]],
    sink: Sink,
    wanted: Callable[[], bool] = always,
) -> list[RemovableHandle]:
    """Hooks that give the value of every site of `scope` to `sink` where it is `wanted`; none for scope `output`."""
    blocks = adapter.blocks()
    if any(compiled(block) for block in blocks):
        see_hooks()
    own = adapter.attach(scope, sink)
    if own is not None:
        return own
    if scope == "modules":
        return [
            module.module.register_forward_hook(image_observer(adapter, module, index, sink))
            for index, module in enumerate(adapter.gated())
        ]
    if scope == "final_hidden":

        @eager
        def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            sink(0, adapter.unpack(result)[0])

        return [blocks[-1].register_forward_hook(leave)]
    ranges, text = {
        "blocks": ([(i, i + 1) for i in range(len(blocks))], False),
        "span": (spans, True),
        "front_back": (spans, True),
        "stack": ([(0, len(blocks))], False),
    }.get(scope, ((), False))
    return [
        hook for index, span in enumerate(ranges) for hook in residual_hooks(adapter, span, index, sink, text, wanted)
    ]


def image_observer(adapter: Adapter, module: Module, index: int, sink: Sink) -> Callable[..., None]:
    """A hook that gives the image rows of a module's value to `sink`."""

    @eager
    def observe(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        sink(index, adapter.image_value(module, output))

    return observe


def residual_hooks(
    adapter: Adapter, span: tuple[int, int], index: int, sink: Sink, text: bool, wanted: Callable[[], bool]
) -> list[RemovableHandle]:
    """Hooks that report out - in of blocks [start, stop), with the text rows in front if `text`."""
    entry: list[Streams] = []

    @eager
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entry[:] = [adapter.streams(args, kwargs)]

    @eager
    def leave(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        before = entry.pop()
        if not wanted():
            return
        residual = join(adapter.unpack(result), text) - join(before, text)
        valid = adapter.valid("txt") if text else None
        if valid is not None:
            residual[:, : valid.shape[1]].masked_fill_(~valid[..., None], 0)
        sink(index, residual)

    blocks = adapter.blocks()
    return [
        blocks[span[0]].register_forward_pre_hook(enter, with_kwargs=True),
        blocks[span[1] - 1].register_forward_hook(leave),
    ]


@contextmanager
def guarded(adapter: Adapter, span: tuple[int, int], choose: Callable[[Streams], Tensor | None]) -> Generator[None]:
    """Inside, `choose` decides at the entry of blocks [start, stop) what they do.

    It is given the hidden states there and returns None, and the blocks run (uncompiled), or their residual with
    the text rows in front, which is added instead.
    """
    running: list[bool] = [True]
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def guard(block: nn.Module, first: bool) -> Callable[..., Any]:
        original = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            streams = adapter.streams(args, kwargs)
            residual = choose(streams) if first else None
            if first:
                running[0] = residual is None
            if running[0]:
                return original(*args, **kwargs)
            return adapter.pack(streams if residual is None else shifted(streams, residual))

        return forward

    try:
        for position, block in enumerate(adapter.blocks()[slice(*span)]):
            slots = vars(block)
            forward = guard(block, position == 0)
            saved.append((slots, {k: slots[k] for k in ("forward", "_compiled_call_impl") if k in slots}))
            slots["forward"], slots["_compiled_call_impl"] = forward, None
        yield
    finally:
        for slots, before in saved:
            slots.pop("forward", None)
            slots.pop("_compiled_call_impl", None)
            slots.update(before)


def shifted(streams: Streams, residual: Tensor) -> Streams:
    """Hidden states plus a residual whose first rows belong to the text."""
    image, text = streams
    tokens = 0 if text is None else text.shape[1]
    return image + residual[:, tokens:], None if text is None else text + residual[:, :tokens]


def join(streams: Streams, text: bool) -> Tensor:
    """Image rows, with the text rows in front of them if asked for and there are any."""
    image, words = streams
    return image if words is None or not text else torch.cat([words, image], dim=1)
