"""The clock of a generation: what a sampler does, not what the model is told.

A step is the number of `scheduler.step` calls since `set_timesteps` (or `set_begin_index`, which starts in the
middle of the timesteps). So nothing is read of the timesteps, which would make a GPU wait, rise in some pipelines and
differ from token to token in others; and a model that is called several times within one step is in a different branch
each time. A scheduler without `step` announces generations only; then every call of a branch is a step.

Schedulers are watched through their classes (`watch`): the objects themselves keep nothing but a mark, of which a
copy or a pickle is None, so that a copied scheduler, model or pipeline is a plain, independent one.

Some pipelines copy their scheduler and let the copies make the steps, one for every frame of a film (diffusion
forcing). A copy that is made during a generation tells the clock of its original what it does (`Heir`). Where the
original makes no step, a step is over when the model is called after copies have stepped. Copies may begin one after
the other, as frames that wait for those before them (the clock is `split`): then a step is a round of the pipeline's
loop, of which there are more than timesteps, and the pipeline must say how many.

A loop need not make all timesteps: less noise leaves out the first ones, an early end the last. How many it makes, and
which is the first, is known when the model is first called (`measure`). A scheduler that is not told where a loop
begins must be asked once in a generation which timestep that is.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from hicache.typed import tolist

__all__ = ["Listener", "SamplerClock", "follow", "unfollow", "unwatch", "watch"]

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Given a bound method and the arguments of a call, makes the call."""


class Mark:
    """What an object that is watched carries: what to do at its methods. Of a copy nothing is watched."""

    name = "_hicache_mark"

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.around: dict[str, list[Around]] = {}
        self.busy: set[str] = set()
        self.heir: Callable[[], Heir | None] | None = None

    def __deepcopy__(self, memo: Any) -> Heir | None:
        del memo
        return None if self.heir is None else self.heir()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class Heir:
    """What the copy of a scheduler carries that was made during a generation: whom it tells of its calls."""

    def __init__(self, clock: SamplerClock) -> None:
        self.clock = weakref.ref(clock)
        self.begun = False

    def tell(self, name: str) -> None:
        """A method of the copy was called."""
        clock = self.clock()
        if clock is not None and clock.present:
            clock.hear(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


_WATCHED: dict[tuple[type, str], tuple[Callable[..., Any], int]] = {}
"""Methods that were replaced in their classes: the originals, and how many objects are watched."""

_LOCK = threading.RLock()
"""Objects of several threads share what was replaced in their class."""


def carried(owner: object) -> Mark | Heir | None:
    """What an object carries: a mark, or what became of it in a copy."""
    return vars(owner).get(Mark.name)


def mark_of(owner: object) -> Mark | None:
    """What an object carries that is watched."""
    found = carried(owner)
    return found if isinstance(found, Mark) else None


def defining(owner: object, name: str) -> type | None:
    """The class from which an object has a method."""
    return next((kind for kind in type(owner).__mro__ if name in vars(kind)), None)


def watch(owner: object, name: str, around: Around) -> bool:
    """Let `around` make the calls of a method of one object; whether its class has such a method."""
    kind = defining(owner, name)
    if kind is None:
        return False
    with _LOCK:
        original, count = _WATCHED.get((kind, name), (vars(kind)[name], 0))
        if count == 0:
            setattr(kind, name, watched(name, original))
        _WATCHED[kind, name] = (original, count + 1)
        mark = mark_of(owner)
        if mark is None or mark.owner() is not owner:
            mark = vars(owner)[Mark.name] = Mark(owner)
        mark.around.setdefault(name, []).append(around)
    return True


def unwatch(owner: object, name: str, around: Around) -> None:
    """The opposite of `watch`; the class has its own method back when the last object is not watched any more."""
    mark, kind = mark_of(owner), defining(owner, name)
    if mark is None or kind is None or around not in mark.around.get(name, []):
        return
    with _LOCK:
        mark.around[name].remove(around)
        if not any(mark.around.values()):
            vars(owner).pop(Mark.name)
        original, count = _WATCHED[kind, name]
        _WATCHED[kind, name] = (original, count - 1)
        if count == 1:
            del _WATCHED[kind, name]
            setattr(kind, name, original)


def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A class's method that asks the mark of the object it is called on."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        mark, heir = mark_of(self), carried(self)
        call = functools.partial(original, self)
        if isinstance(heir, Heir):
            result = call(*args, **kwargs)
            heir.tell(name)
            return result
        if mark is None or mark.owner() is not self or name in mark.busy:
            return call(*args, **kwargs)
        mark.busy.add(name)
        try:
            for around in mark.around.get(name, []):
                call = functools.partial(surround, around, call)
            return call(*args, **kwargs)
        finally:
            mark.busy.discard(name)

    return method


def surround(around: Around, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call that `around` makes."""
    return around(call, args, kwargs)


class Listener(Protocol):
    """Is told when a generation begins."""

    def announce(self, num_steps: int | None, clock: SamplerClock | None = None) -> None: ...


class SamplerClock:
    """The steps of one scheduler.

    Attributes:
        step: calls of `scheduler.step` since the generation began.
        num_steps: steps that were announced.
        begin_index: the first of them among the scheduler's timesteps.
        turn: the step at which another model takes over; 0: none does, or the pipeline does not say.
        measured: whether that is what the loop makes, and not what the scheduler has.
        active: whether a generation is under way.
        counts: whether the scheduler has a `step` that is counted.
        thread: the thread that announced it; calls from others are none of its own.
        own: whether the scheduler itself has made a step of the generation.
        due: whether copies of it have, since the model was called last.
        copied: whether copies were made in the generation.
        split: whether these have no step in common.
        lengthened: whether its steps are rounds of a loop that is longer than the timesteps.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = weakref.ref(scheduler)
        self.listeners: list[Listener] = []
        self.step = 0
        self.num_steps = self.begin_index = self.turn = 0
        self.measured = False
        self.active = False
        self.thread = 0
        self.own = self.due = self.split = self.copied = self.lengthened = False
        self._first: Any = None
        self._around: dict[str, Around] = {
            "set_timesteps": self._set_timesteps,
            "set_begin_index": self._set_begin_index,
            "scale_model_input": self._scale_model_input,
            "step": self._step,
        }
        self.counts = {name: watch(scheduler, name, around) for name, around in self._around.items()}["step"]
        mark = mark_of(scheduler)
        if mark is not None:
            mark.heir = self.heir

    @property
    def stage(self) -> int:
        """Which stage of a two-stage solver comes next: 0 or 1."""
        return 0 if getattr(self.scheduler(), "state_in_first_order", True) else 1

    @property
    def stages(self) -> int:
        """How many stages a step of the solver has."""
        scheduler: object = self.scheduler()
        return 2 if hasattr(type(scheduler), "state_in_first_order") else 1

    @property
    def present(self) -> bool:
        """Whether this thread is in a generation."""
        return self.active and self.thread == threading.get_ident()

    @property
    def drives(self) -> bool:
        """Whether a call of this thread belongs to the generation under way."""
        return self.present and self.step < self.num_steps

    @property
    def end(self) -> int:
        """The first step that the model which is called now does not make."""
        return self.turn if self.step < self.turn else self.num_steps

    @property
    def passed(self) -> bool:
        """Whether the loop has made the steps that its pipeline spoke of, which are not all that the scheduler has."""
        return self.step >= self.num_steps < len(getattr(self.scheduler(), "timesteps", ())) - self.begin_index

    def start(self, begin_index: int = 0) -> None:
        """A generation begins with timestep `begin_index`."""
        timesteps = getattr(self.scheduler(), "timesteps", ())
        self.step = self.turn = 0
        self.active, self.thread = True, threading.get_ident()
        self.own = self.due = self.split = self.copied = self.lengthened = self.measured = False
        self._first = None
        self._announce(begin_index, len(timesteps) - begin_index)

    def _announce(self, begin_index: int, num_steps: int) -> None:
        """Tell of so many steps from timestep `begin_index` on."""
        self.begin_index, self.num_steps = begin_index, num_steps
        for listener in list(self.listeners):
            listener.announce(num_steps, self)

    def stop(self) -> None:
        """The generation is over."""
        self.active = False

    def heir(self) -> Heir | None:
        """What a copy of the scheduler carries that is made now."""
        self.copied = self.copied or self.present
        return Heir(self) if self.present else None

    def hear(self, copy: Heir, name: str) -> None:
        """A copy has made a step, or its timesteps were set: anew after steps, for the next part of a film."""
        if self.own:
            return
        if name == "step":
            self.split = self.split or (not copy.begun and self.step > 0)
            copy.begun = self.due = True
        elif name == "set_timesteps" and (self.step or self.due):
            self.start()
            self.copied = True

    def measure(self, rounds: int | None = None, boundary: float | None = None) -> None:
        """Before the first step: which timesteps the loop makes. It is announced again if they are not all of them.

        Args:
            rounds: of the loop, if the pipeline says; more than timesteps where copies make the steps.
            boundary: the timestep below which another model is called.
        """
        if self.measured or self.step or self.due:
            return
        self.measured = True
        timesteps = torch.as_tensor(getattr(self.scheduler(), "timesteps", ()))
        begin = self._begin(timesteps, rounds)
        rest = len(timesteps) - begin
        num_steps = rest if rounds is None or (rounds > rest and not self.copied) else rounds
        self.lengthened = num_steps > rest
        if (begin, num_steps) != (self.begin_index, self.num_steps):
            self._announce(begin, num_steps)
        if boundary is not None and not self.lengthened:
            self.turn = sum(t >= boundary for t in tolist(timesteps[begin : begin + num_steps]))

    def _begin(self, timesteps: Tensor, rounds: int | None) -> int:
        """Which timestep is the first of the loop: as the scheduler says, or as it was asked for.

        Where it was asked for none, or for one that occurs twice, the loop leaves out the first timesteps.
        """
        for name in ("begin_index", "step_index"):
            known: object = getattr(self.scheduler(), name, None)
            if isinstance(known, int):
                return known
        left_out = 0 if rounds is None else max(len(timesteps) - rounds, 0)
        if self._first is None or rounds == len(timesteps):
            return left_out
        first = float(torch.as_tensor(self._first).flatten()[0])
        places = [place for place, t in enumerate(tolist(timesteps)) if t == first]
        return left_out if left_out in places or not places else places[0]

    def settle(self) -> None:
        """Before a call of the model: a step that copies have made is over."""
        if self.due:
            self.step, self.due = self.step + 1, False

    def release(self) -> None:
        """Watch the scheduler no more."""
        scheduler = self.scheduler()
        if scheduler is not None:
            for name, around in self._around.items():
                unwatch(scheduler, name, around)

    def _set_timesteps(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        self.start()
        return result

    def _set_begin_index(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        self.start(int(getattr(self.scheduler(), "begin_index", 0) or 0))
        return result

    def _scale_model_input(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's input at a timestep; of the loop's first one nothing is read yet, which would make a GPU wait."""
        if self._first is None and self.present:
            self._first = args[1] if len(args) > 1 else kwargs.get("timestep")
        return call(*args, **kwargs)

    def _step(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        self.step += 1
        self.own, self.due = True, False
        return result


_CLOCKS: weakref.WeakKeyDictionary[Any, weakref.ref[SamplerClock]] = weakref.WeakKeyDictionary()
"""The clock of every scheduler that is followed; listeners keep it alive."""


def follow(scheduler: Any, listener: Listener) -> SamplerClock:
    """The clock of a scheduler, which tells `listener` of every generation from now on."""
    found = _CLOCKS.get(scheduler)
    clock = None if found is None else found()
    if clock is None or not clock.listeners:
        clock = SamplerClock(scheduler)
        _CLOCKS[scheduler] = weakref.ref(clock)
    clock.listeners.append(listener)
    return clock


def unfollow(clock: SamplerClock, listener: Listener) -> None:
    """Tell `listener` no more; the scheduler is plain again when nobody is told."""
    if listener in clock.listeners:
        clock.listeners.remove(listener)
        if not clock.listeners:
            clock.release()
