"""How models are taken over and given back: copies, pickles, compilation, other caches, memory."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

import hicache

from .pipelines import flux, method, run

CHOSEN = {"interval": 2, "warmup_steps": 1}


@pytest.fixture(scope="module")
def pipe():
    return flux()


def zeroed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def test_copies_and_pickles_are_plain(pipe):
    """They neither drive the original nor are driven by it, and have no trace of the method."""
    plain = run(pipe)
    with hicache.cached(pipe, method("fora", **CHOSEN)) as cache:
        ours = run(pipe)
        report = cache.report
        twin = copy.deepcopy(pipe)
        assert torch.equal(run(twin), plain) and cache.report is report
        zeroed(twin.transformer)
        assert not torch.equal(run(twin), plain)
        scheduler = copy.copy(pipe.scheduler)
        scheduler.set_timesteps(5, mu=1.0)
        assert len(pipe.scheduler.timesteps) == 8 and cache.report is report
        loaded = pickle.loads(pickle.dumps(pipe.transformer))  # noqa: S301
        assert "_compiled_call_impl" not in vars(loaded) and "forward" not in vars(loaded)
        pickle.loads(pickle.dumps(pipe.scheduler)).set_timesteps(5, mu=1.0)  # noqa: S301
        assert cache.report is report
        assert torch.equal(run(pipe), ours)
    assert torch.equal(run(pipe), plain)


def test_classes_are_left_as_they_were(pipe):
    kinds = [type(pipe.scheduler), type(pipe), type(pipe.transformer)]
    before = [dict(vars(base)) for kind in kinds for base in kind.__mro__]
    first, second = hicache.enable(pipe, method()), hicache.enable(flux(), "hicache")
    first.disable()
    second.disable()
    assert [dict(vars(base)) for kind in kinds for base in kind.__mro__] == before
    for owner in (pipe.scheduler, pipe, pipe.transformer):
        assert not [name for name in vars(owner) if "hicache" in name or name in ("forward", "_compiled_call_impl")]


def test_a_finished_cache_holds_nothing():
    pipe = flux()
    with hicache.cached(pipe, method()) as cache:
        run(pipe)
    model = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert model() is None and cache.report.full_steps == [0, 1, 4, 7]


def test_nested_caches_are_restored(pipe):
    plain = run(pipe)
    with hicache.cached(pipe, method("fora", **CHOSEN)) as outer:
        ours = run(pipe)
        with hicache.cached(pipe, method("hicache")):
            inner = run(pipe)
        assert torch.equal(run(pipe), ours) and outer.report.full_steps == [0, 2, 4, 6]
    assert not torch.equal(inner, ours) and torch.equal(run(pipe), plain)


def test_a_cache_of_diffusers_is_refused(pipe):
    transformer = pipe.transformer
    with hicache.cached(pipe, method()):
        ours = run(pipe)
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
        try:
            with pytest.raises(ValueError, match=r"model: has a cache of diffusers \(FirstBlockCacheConfig\) already"):
                run(pipe)
        finally:
            transformer.disable_cache()
        assert torch.equal(run(pipe), ours)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    try:
        with pytest.raises(ValueError, match=r"call disable_cache\(\) first"):
            hicache.enable(pipe, method())
    finally:
        transformer.disable_cache()


def test_names_and_numbers_of_numpy(pipe):
    with hicache.cached(pipe, "fora") as cache:
        run(pipe)
        assert cache.report.method == "fora"
    knobs = {"interval": np.int64(3), "order": np.int32(1), "sigma": np.float64(0.5), "warmup_steps": np.int64(2)}
    with hicache.cached(pipe, hicache.method("hicache", **knobs)) as cache:
        run(pipe)
        assert cache.report.full_steps == [0, 1, 4, 7]


@pytest.mark.slow
def test_models_compiled_as_a_whole():
    """They have the output, and say what leaves them the rest."""
    for compiled in ("before", "wrapped", "after"):
        pipe = flux()
        plain = run(pipe)
        with hicache.cached(pipe, method(scope="output")):
            wanted = run(pipe)
        if compiled == "before":
            pipe.transformer.compile(backend="eager")
        elif compiled == "wrapped":
            pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        if compiled != "after":
            with pytest.raises(ValueError, match=r"compiled as a whole and has output \(compile_repeated_blocks\(\)"):
                hicache.enable(pipe, method(scope="stack"))
        with hicache.cached(pipe, method(scope="output")) as cache:
            if compiled == "after":
                pipe.transformer.compile(backend="eager")
            assert (run(pipe) - wanted).abs().max() < 1e-5, compiled
            assert cache.report.full_steps == [0, 1, 4, 7]
        assert (run(pipe) - plain).abs().max() < 1e-5
        torch._dynamo.reset()


def test_what_is_enabled_inside_of_a_block_ends_with_it(pipe):
    plain = run(pipe)
    with hicache.cached(pipe, method("fora", **CHOSEN)) as outer:
        ours = run(pipe)
        with hicache.cached(pipe, method("taylorseer")) as between:
            inside = hicache.enable(pipe, method("hicache"))
            run(pipe)
        assert not inside.enabled and not between.enabled and outer.enabled
        assert torch.equal(run(pipe), ours)
        with hicache.cached(pipe, method("hicache")):
            outer.disable()
    assert not outer.enabled and torch.equal(run(pipe), plain)


def test_what_does_not_fit_leaves_what_was_enabled(pipe):
    with hicache.cached(pipe, method("fora", **CHOSEN)) as first:
        ours = run(pipe)
        with pytest.raises(ValueError, match="scope: .* got 'deep'"):
            hicache.enable(pipe, method("fora", scope="deep"))
        assert first.enabled and torch.equal(run(pipe), ours)


def test_a_pipeline_may_lose_its_model_inside_of_a_block():
    """As those do that free memory before decoding: what the block raises is what comes out of it."""
    pipe = flux()
    model = pipe.transformer
    with pytest.raises(MemoryError, match="decode"), hicache.cached(pipe, method()) as cache:
        pipe.transformer = None
        raise MemoryError("decode")
    assert not cache.enabled and "_compiled_call_impl" not in vars(model)
