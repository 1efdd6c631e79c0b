"""How a model is taken over for the length of a call, and given back.

Between calls a model carries a dispatcher in `Module._compiled_call_impl` and nothing else: `forward` is its own, a
copy or a pickle of the model has no dispatcher (torch leaves this attribute out), and what is loaded, fused, offloaded
or hooked while a method is enabled meets the plain model.

During a call the executor takes the place of the innermost `forward`: inside of hooks that move or cast weights and of
the user's own hooks, so that they happen at every step. A model that was compiled as a whole is one graph, in which
nothing has a place: there the executor stands outside, and forecasts the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hicache.executor import Executor
from hicache.generation_report import PlanError
from hicache.proof import sharing
from hicache.typed import never_compiled, own_call

__all__ = ["Dispatcher", "dispatcher_of", "is_compiled", "unwrapped"]

SLOT = "_compiled_call_impl"


def unwrapped(model: Any) -> Any:
    """The module inside of what `torch.compile` returned."""
    return getattr(model, "_orig_mod", model)


def dispatcher_of(model: Any) -> Dispatcher | None:
    """What stands in a model, if a method is enabled there."""
    each: object
    for each in (model, unwrapped(model)):
        found = vars(each).get(SLOT)
        if isinstance(found, Dispatcher):
            return found
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether a model was compiled as a whole."""
    found = vars(model).get(SLOT)
    return hasattr(model, "_orig_mod") or (found is not None and not isinstance(found, Dispatcher))


def innermost(model: nn.Module) -> tuple[dict[str, Any], str]:
    """Where the model's own forward is kept: by the first of diffusers' hooks, by accelerate's, or by itself."""
    own = vars(model)
    hooks = getattr(own.get("_diffusers_hook"), "_fn_refs", None)
    if hooks:
        slots: dict[str, Any] = hooks[0].__dict__
        return slots, "forward" if slots.get("original_forward") is None else "original_forward"
    return own, "_old_forward" if "_old_forward" in own else "forward"


class Dispatcher:
    """Calls the executor in the model's place.

    Args:
        model: what is called: the model, or what `torch.compile` returned.
        executor: of the method.
        owner: the handle, found through the model.
    """

    def __init__(self, model: nn.Module, executor: Executor, owner: Any) -> None:
        self.model, self.executor, self.owner = model, executor, owner
        self.whole = is_compiled(model)
        self.before: Callable[..., Any] | None = None
        self.taken = False

    def take(self) -> None:
        """Enter the model."""
        slots = vars(self.model)
        self.before, self.taken = slots.get(SLOT), True
        slots[SLOT] = self

    def give_back(self) -> None:
        """Leave the model; what others put in its place since stays."""
        slots = vars(self.model)
        if slots.get(SLOT) is self:
            del slots[SLOT]
            if self.before is not None:
                slots[SLOT] = self.before
        self.before, self.taken = None, False

    def renew(self) -> None:
        """Enter the model again, if `model.compile()` has taken the place since.

        Raises:
            ValueError: if the method's scope is inside of what was compiled.
        """
        if self.taken and vars(self.model).get(SLOT) is not self:
            self.whole = is_compiled(self.model)
            if self.whole:
                check_whole(self.model, self.executor.method.scope)
            self.take()

    @never_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.before or own_call(self.model)
        check_shared(self.model, self.executor)
        with self.executor.lock:
            try:
                return self._call(own, args, kwargs)
            except PlanError:
                raise
            except BaseException:
                self.executor.session().failed = True
                raise

    def _call(self, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.owner.prepare()
        if self.whole:
            return self.executor.call(own, args, kwargs)
        slots, name = innermost(self.model)
        had, forward = name in slots, slots.get(name) or self.model.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            return self.executor.call(forward, args, kwargs)

        slots[name] = run
        try:
            return own(*args, **kwargs)
        finally:
            if slots.get(name) is run:
                if had:
                    slots[name] = forward
                else:
                    del slots[name]


def check_shared(model: nn.Module, executor: Executor) -> None:
    """Raise a `ValueError` if processes that share a model's tokens could part, or a method picks among tokens.

    Each process of diffusers' context parallelism caches its own part of every value, so a step must be computed by all
    of them or by none.
    """
    method = executor.method
    picks = executor.caches and (method.patch is not None or method.policy.batched)
    if not picks or sharing(unwrapped(model)) is None:
        return
    if method.patch is not None:
        raise ValueError(f"method: must recompute no rows of tokens under context parallelism, got {method.name}")
    raise ValueError(f"method: must not decide from values under context parallelism, got {method.name}")


def check_whole(model: nn.Module, scope: str) -> None:
    """Raise a `ValueError` unless a scope is there in a model that is compiled as a whole."""
    if scope != "output":
        name = type(unwrapped(model)).__name__
        raise ValueError(
            f"scope: {name} is compiled as a whole and has output (compile_repeated_blocks() leaves it the others), "
            f"got {scope!r}"
        )
