"""Stand-ins for modules, for the length of one call of the model.

A stand-in is put into `Module._compiled_call_impl`, which `Module.__call__` asks before anything else: outside of a
block that was compiled (`compile_repeated_blocks`) and of hooks that offload or cast weights, which replace
`forward`, so that a stubbed block loads nothing; and `forward` stays free for them and for LoRA. Where
diffusers' context parallelism splits and gathers tokens around a block, the stand-in goes inside of that hook instead,
since what it splits must be split whatever the block does.

Between calls the model carries nothing: it can be copied, pickled and compiled as if there were no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from hicache.typed import own_call

__all__ = ["Handler", "Run", "stubbed", "uncompiled"]

Run = Callable[..., Any]
"""A module's own call."""

Handler = Callable[[int, Run, tuple[Any, ...], dict[str, Any]], Any]
"""What runs instead: given the module's index, its own call, and the arguments."""

SLOT = "_compiled_call_impl"


def socket(module: nn.Module) -> tuple[dict[str, Any], str, Run]:
    """The attributes, the name in them, and the call that a stand-in of this module takes the place of."""
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    for hook in hooks.values():
        if type(hook).__name__.startswith("ContextParallel"):
            slots: dict[str, Any] = hook.fn_ref.__dict__
            return slots, "forward", slots["forward"]
    slots = vars(module)
    return slots, SLOT, slots.get(SLOT) or own_call(module)


@contextmanager
def stubbed(modules: Sequence[nn.Module], handler: Handler) -> Generator[None]:
    """Inside, `handler` is called instead of each of the modules; a module that is listed twice has its first index."""
    saved: list[tuple[dict[str, Any], str, bool, Any]] = []
    seen: set[int] = set()
    try:
        for index, module in enumerate(modules):
            if id(module) in seen:
                continue
            seen.add(id(module))
            slots, name, run = socket(module)
            saved.append((slots, name, name in slots, slots.get(name)))
            slots[name] = standin(handler, index, run)
        yield
    finally:
        for slots, name, had, before in reversed(saved):
            if had:
                slots[name] = before
            else:
                slots.pop(name, None)


def standin(handler: Handler, index: int, run: Run) -> Run:
    """The call of module `index` with `handler` in its place."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(index, run, args, kwargs)

    return call


@contextmanager
def uncompiled(modules: Sequence[nn.Module]) -> Generator[None]:
    """Inside, modules that were compiled run eagerly: what stands in for a part of them would not be seen."""
    slots = [vars(module) for module in modules if vars(module).get(SLOT) is not None]
    before = [each[SLOT] for each in slots]
    try:
        for each in slots:
            each[SLOT] = None
        yield
    finally:
        for each, value in zip(slots, before, strict=True):
            each[SLOT] = value
