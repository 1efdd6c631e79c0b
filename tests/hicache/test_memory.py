"""What is kept is what the report says, and an anchor is made within the memory of what is kept."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hicache
from hicache.methods import METHODS
from hicache.storage import bytes_of

from .models import build, denoise, inputs, method

LADDERS = {"history": "differences"}
CASES = [
    *((name, {}) for name in METHODS if name not in ("none", "steps", "calibrated", "deepcache")),
    *((name, LADDERS) for name in ("fora", "taylorseer", "hicache_adaptive")),
    *(("hicache_adaptive", {"scope": scope}) for scope in ("stack", "output", "blocks")),
]


def alive():
    """Bytes by address of every tensor's memory."""
    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    found = [each for each in found if not isinstance(each, FakeTensor)]  # what other tests have traced
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}


@pytest.fixture(scope="module")
def flux():
    model = build("flux")
    call = inputs(model, "flux")
    denoise(model, call, 2)
    gc.collect()
    gc.freeze()  # what was there before is not looked at again
    yield model, call
    gc.unfreeze()


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_the_report_counts_every_tensor_that_is_kept(flux, name, knobs):
    model, call = flux
    given = [*model.parameters(), *model.buffers(), *tree_leaves(call)]
    before = {each.untyped_storage().data_ptr() for each in given if isinstance(each, torch.Tensor)} | alive().keys()
    with hicache.cached(model, method(name, **knobs)) as cache:
        cache.begin(10)
        kept = denoise(model, call, 10)
        after = alive()
        given = {each.untyped_storage().data_ptr() for each in tree_leaves(kept) if isinstance(each, torch.Tensor)}
        held = {place: size for place, size in after.items() if place not in before and place not in given}
        assert cache.report.cache_bytes == sum(held.values())


class Peak(TorchDispatchMode):
    """The most memory at a time of tensors made inside; views of those that are given do not count."""

    def __init__(self, given):
        super().__init__()
        self.given = {each.untyped_storage().data_ptr() for each in given}
        self.users, self.sizes, self.seen, self.most = Counter(), {}, set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and id(each) not in self.seen:
                self.add(each)
        self.most = max(self.most, sum(self.sizes.values()))
        return result

    def add(self, tensor):
        place = tensor.untyped_storage().data_ptr()
        if place in self.given:
            return
        self.seen.add(id(tensor))
        self.users[place] += 1
        self.sizes[place] = tensor.untyped_storage().nbytes()
        weakref.finalize(tensor, self.drop, id(tensor), place)

    def drop(self, key, place):
        self.seen.discard(key)
        self.users[place] -= 1
        if not self.users[place]:
            self.sizes.pop(place)


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_an_anchor_is_made_in_place(monkeypatch, name, knobs):
    """At most 0.2 frames beside those that are kept."""
    monkeypatch.setattr("hicache.forecast.pieces.CPU_PIECE", 256)
    monkeypatch.setattr("hicache.forecast.window.DOT", 64)
    forecaster = method(name, **knobs).build_forecaster(lead=2)
    values = [torch.randn(6, 1, 128, 16) for _ in range(9)]
    with Peak(values) as peak:
        for step, value in enumerate(values):
            buffer = forecaster.slot(value.shape, value.dtype, value.device)
            for place, part in zip(buffer, value, strict=True):
                place.copy_(part)
            forecaster.commit(step, buffer)
    frame = values[0].numel() * 4
    kept = forecaster.history.bytes
    assert kept >= frame
    assert peak.most <= kept + 0.2 * frame


def test_views_of_one_memory_count_once():
    whole = torch.zeros(4, 6)
    assert bytes_of([whole[:2], {"a": whole[2:]}, (whole.mT,), torch.zeros(3), 1, None]) == 4 * 6 * 4 + 12
