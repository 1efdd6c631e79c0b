"""The clock: what pipelines and own loops do at their steps, whatever they tell the model."""

import copy
import functools
import threading

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from PIL import Image

import hicache
from experiments.backends.tiny.build import RECIPES, build

from .pipelines import PICTURE, flux, method, quiet, run, skyreels, wan


@pytest.fixture(scope="module")
def pipe():
    return flux()


def alone(pipe, chosen, **kwargs):
    with hicache.cached(pipe, chosen) as cache:
        return run(pipe, **kwargs), cache.report


def test_strength_below_1_is_a_shorter_run(pipe):
    """Announced are the steps that will be made; the plan is theirs."""
    image = quiet(FluxImg2ImgPipeline.from_pipe(pipe))
    _, report = alone(image, method(), image=PICTURE, strength=0.6, steps=10)
    assert (report.num_steps, report.executed, report.full_steps) == (6, 6, [0, 1, 4])
    paint = quiet(FluxInpaintPipeline.from_pipe(pipe))
    mask = Image.new("L", (32, 32), 255)
    _, report = alone(paint, method(), image=PICTURE, mask_image=mask, strength=0.6, steps=10)
    assert report.full_steps == [0, 1, 4]


def test_calls_of_guidance_without_names_are_branches(pipe):
    """As if they had been named: a reference that names them by hand gives the same picture."""
    image = quiet(FluxImg2ImgPipeline.from_pipe(pipe))
    call = {"image": PICTURE, "negative_prompt": "ugly", "true_cfg_scale": 4.0, "strength": 0.5, "steps": 10}
    found, report = alone(image, method("fora", interval=2, warmup_steps=1), **call)
    assert report.branches == {"": [0, 2, 4], "#1": [0, 2, 4]}
    count = [0]

    def named_tick(arguments):
        count[0] += 1
        with cache.branch("ab"[count[0] % 2]):
            return tick(arguments)

    with hicache.cached(image, method("fora", interval=2, warmup_steps=1)) as cache:
        tick = cache.executor.tick
        cache.executor.tick = named_tick
        named = run(image, **call)
        assert set(cache.report.branches) == {"a", "b"}
    assert torch.equal(found, named)


def test_kontext_with_true_guidance(pipe):
    kontext = quiet(FluxKontextPipeline(**pipe.components))
    call = {"image": PICTURE, "negative_prompt": "b", "true_cfg_scale": 3.0, "max_area": 1024, "_auto_resize": False}
    plain = run(kontext, **call)
    found, report = alone(kontext, method(interval=1), **call)
    assert torch.equal(found, plain) and report.full_steps == list(range(8))
    _, report = alone(kontext, method(), **call)
    assert report.branches == {"": [0, 1, 4, 7], "#1": [0, 1, 4, 7]}


def interrupted(pipe, at=2):
    def stop(pipe, i, t, kwargs):
        pipe._interrupt = i == at or pipe._interrupt
        return kwargs

    return run(pipe, callback_on_step_end=stop)


def test_an_interrupted_generation_is_reported(pipe):
    """The picture is given, the pipeline's own hooks are freed, and the next generation is a fresh one."""
    fresh, _ = alone(pipe, method())
    freed = []
    original = pipe.maybe_free_model_hooks
    with hicache.cached(pipe, method()) as cache:
        pipe.maybe_free_model_hooks = lambda: (freed.append(1), original())
        try:
            interrupted(pipe)
        finally:
            del pipe.maybe_free_model_hooks
        assert (cache.report.executed, cache.report.num_steps, freed) == (3, 8, [1])
        assert "of 3 (8 were announced)" in str(cache.report)
        assert torch.equal(run(pipe), fresh)


def test_a_model_that_is_never_called_is_named(pipe):
    """The transformer that the method is on is not the one that runs."""
    before = pipe.transformer
    with hicache.cached(pipe, method()):
        pipe.transformer = copy.deepcopy(before)
        try:
            with pytest.raises(hicache.PlanError, match="transformer: never called in a generation of 8 steps"):
                run(pipe)
        finally:
            pipe.transformer = before


def test_a_full_step_that_did_not_run_is_an_error(pipe):
    with hicache.cached(pipe, method()) as cache:

        def spoil(pipe, i, t, kwargs):
            branch = next(iter(cache.executor.generation.branches.values()))
            if i == 4:
                branch.clock.anchors.remove(4)
            return kwargs

        with pytest.raises(hicache.PlanError, match=r"planned full steps not executed \[4\]"):
            run(pipe, callback_on_step_end=spoil)


def test_two_transformers_share_the_steps():
    """Each has a clock that begins at its first call; per-token timesteps of the 5B model are not read."""
    pipe = wan()
    plain = run(pipe)
    with hicache.cached(pipe, method(scope="stack", interval=1)) as cache:
        assert torch.equal(run(pipe), plain)
        assert {name: report.executed for name, report in cache.reports.items()} == {
            "transformer": 4,
            "transformer_2": 4,
        }
    with hicache.cached(pipe, method(scope="stack")) as cache:
        run(pipe)
        first, second = cache.reports.values()
        assert first.branches == second.branches == {"cond": [0, 1], "uncond": [0, 1]} or first.branches
        assert first.executed + second.executed == 8
        assert first.path == "tapped"
    assert torch.equal(run(pipe), plain)


PICTURES = ["StableDiffusion3Pipeline", "ChromaPipeline", "Flux2Pipeline", "ZImagePipeline"]


@pytest.mark.parametrize("name", [*PICTURES, "wan"])
def test_attention_is_broadcast_at_the_noise_levels_of_the_window(name):
    """Whether a model is told 1000 to 0, 1 to 0 or 0 to 1, of the whole or token by token."""
    if name == "wan":
        pipe, call = wan(models=1), functools.partial(run, steps=12)
    else:
        pipe, shared = quiet(build(name)), {**RECIPES[name].call, "prompt": "a cat", "num_inference_steps": 12}
        call = functools.partial(type(pipe).__call__, **shared)
    with hicache.cached(pipe, "pab") as cache:
        call(pipe)
        share = [float(t) / 1000 for t in pipe.scheduler.timesteps]
        assert cache.report.mixed_steps == [s for s, level in enumerate(share) if s % 2 and 0.1 < level < 0.8] != []


def test_per_token_timesteps():
    pipe = wan(models=1)
    plain = run(pipe)
    with hicache.cached(pipe, method(scope="blocks")) as cache:
        found = run(pipe)
        assert cache.report.full_steps == [0, 1, 4, 7]
    assert not torch.equal(found, plain) and torch.equal(run(pipe), plain)


def test_copies_of_the_scheduler_make_the_steps():
    """Diffusion forcing: one for every latent frame."""
    pipe = skyreels()
    plain = run(pipe)
    with hicache.cached(pipe, method(scope="stack", interval=1)):
        assert torch.equal(run(pipe), plain)
    with hicache.cached(pipe, method(scope="modules")) as cache:
        found = run(pipe)
        assert cache.report.branches == {"cond": [0, 1, 4, 7], "uncond": [0, 1, 4, 7]}
        assert cache.report.estimated_steps == [2, 3, 5, 6] and cache.report.path == "fused"
        run(pipe, num_frames=17, base_num_frames=9, overlap_history=5, addnoise_condition=0)
        assert cache.report.full_steps == [0, 1, 4, 7] and cache.report.executed == 8
    assert 0 < (found - plain).abs().max() < 0.2 * plain.abs().max() and torch.equal(run(pipe), plain)


WAVE = {"ar_step": 2, "causal_block_size": 1}
"""Three latent frames, each two rounds behind the one before it: 12 rounds of 8 steps."""


def test_frames_one_after_the_other():
    """A step is a round of the loop: planned, executed and counted over all of them; interval 1 is the plain film."""
    pipe = skyreels()
    plain, whole = run(pipe, **WAVE), run(pipe)
    full = [0, 1, 4, 7, 10]
    with hicache.cached(pipe, method(scope="stack", interval=1)) as cache:
        assert torch.equal(run(pipe, **WAVE), plain) and cache.report.executed == cache.report.num_steps == 12
    with hicache.cached(pipe, method(scope="modules")) as cache:
        found = run(pipe, **WAVE)
        assert (cache.report.num_steps, cache.report.executed) == (12, 12)
        assert cache.report.branches == {"cond": full, "uncond": full} and cache.report.path == "fused"
        run(pipe)
        assert (cache.report.num_steps, cache.report.full_steps) == (8, [0, 1, 4, 7])
        run(pipe, **WAVE, num_frames=17, base_num_frames=9, overlap_history=5, addnoise_condition=0)
        last = cache.report
        assert last.executed == last.num_steps and last.full_steps == hicache.full_steps(last.num_steps, 3, 2)
    assert 0 < (found - plain).abs().max() < 0.2 * plain.abs().max()
    assert torch.equal(run(pipe, **WAVE), plain) and torch.equal(run(pipe), whole)


class Lines:
    """Estimates by hand: every branch goes on in a straight line from its last two computed rounds."""

    def __init__(self, full, branches=2):
        self.full, self.calls = full, 0
        self.past = [[] for _ in range(branches)]

    def __call__(self, value):
        past, now = self.past[self.calls % len(self.past)], self.calls // len(self.past)
        self.calls += 1
        if now in self.full:
            past.append((now, value))
            return value
        (before, first), (last, second) = past[-2:]
        return second + (second - first) * ((now - last) / (last - before))


@pytest.mark.parametrize("scope", ["output", "stack"])
def test_frames_one_after_the_other_by_hand(scope):
    """All real blocks run in the oracle; what they return is overwritten at the rounds that are estimated."""
    pipe, full = skyreels(), [0, 1, 4, 7, 10]
    with hicache.cached(pipe, method("taylorseer", scope=scope, order=1)) as cache:
        found = run(pipe, **WAVE)
        assert cache.report.full_steps == full
    model, line, entered = pipe.transformer, Lines(full), []
    if scope == "output":
        hooks = [model.register_forward_hook(lambda module, args, out: (line(out[0]),))]
    else:
        hooks = [
            model.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0])),
            model.blocks[-1].register_forward_hook(lambda module, args, out: entered[-1] + line(out - entered[-1])),
        ]
    wanted = run(pipe, **WAVE)
    for hook in hooks:
        hook.remove()
    assert line.calls == 24
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_frames_one_after_the_other_where_a_method_cannot_follow(monkeypatch):
    """Without a count of the loop's rounds, and where frames would have to share a timestep."""
    pipe = skyreels()
    with (
        hicache.cached(pipe, method(scope="output", time="sigma")),
        pytest.raises(hicache.PlanError, match="time: must be index where frames are denoised one after the other"),
    ):
        run(pipe, **WAVE)
    with (
        hicache.cached(pipe, hicache.method("pab")),
        pytest.raises(hicache.PlanError, match="method: pab reads the timestep, which frames .* do not share"),
    ):
        run(pipe, **WAVE)
    monkeypatch.setattr(type(pipe), "num_timesteps", None)
    with (
        hicache.cached(pipe, method(scope="stack")),
        pytest.raises(hicache.PlanError, match="scheduler: its copies must step together, got one whose first"),
    ):
        run(pipe, **WAVE)


@pytest.mark.parametrize(
    ("stages", "branches"), [("shared", {"": [0, 1, 4, 7, 10]}), ("separate", {"": [0, 1, 4], "'": [0, 1, 4]})]
)
def test_stages_of_a_two_stage_solver(pipe, stages, branches):
    before = pipe.scheduler
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    pipe.scheduler.config.use_dynamic_shifting = False
    try:
        with hicache.cached(pipe, method(), stages=stages) as cache:
            scheduler, model = pipe.scheduler, pipe.transformer
            scheduler.set_timesteps(6)
            sample, call = torch.randn(1, 64, 16), arguments()
            for t in scheduler.timesteps:
                velocity = model(**call(float(t) / 1000, sample))[0]
                sample = scheduler.step(velocity, t, sample, return_dict=False)[0]
            cache.finish()
            assert cache.report.branches == branches
    finally:
        pipe.scheduler = before


def arguments():
    """Arguments of the tiny FLUX by timestep."""
    generator = torch.Generator().manual_seed(5)
    fixed = {
        "encoder_hidden_states": torch.randn(1, 6, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(6, 3),
        "return_dict": False,
    }
    sample = torch.randn(1, 64, 16, generator=generator)

    def call(t, hidden=sample):
        return {**fixed, "hidden_states": hidden, "timestep": torch.tensor([t])}

    return call


@torch.no_grad()
def test_own_loops(pipe):
    """Steps counted by calls, by `step()`, in either direction; two calls at one time are never mixed up."""
    model, call = pipe.transformer, arguments()
    times = [1 - i / 8 for i in range(8)]
    for order in (times, times[::-1]):
        with hicache.cached(model, method()) as cache:
            for _ in range(2):
                for t in order:
                    model(**call(t))
                assert cache.report.full_steps == [0, 1, 4, 7] and cache.report.executed == 8
    with hicache.cached(model, method()) as cache:
        cache.begin(8)
        for t in times:
            for _ in range(2):
                model(**call(t))
            cache.step()
        cache.finish()
        assert cache.report.branches == {"": [0, 1, 4, 7], "#1": [0, 1, 4, 7]}
    with hicache.cached(model, method()):
        model(**call(0.5))
        with pytest.raises(hicache.PlanError, match=r"two calls at one timestep in an own loop; .*handle.step\(\)"):
            model(**call(0.5))


def test_two_pipelines_over_one_transformer(pipe):
    """The one that the method was not enabled on is an own loop, after the other and in a thread beside it."""
    from experiments.backends.tiny.flux import scheduler

    other = quiet(FluxPipeline(**{**pipe.components, "scheduler": scheduler(True)}))
    chosen = method("fora", interval=2, warmup_steps=1)
    wanted = {steps: alone(other, chosen, steps=steps)[0] for steps in (8, 5)}
    first, _ = alone(pipe, chosen)
    with hicache.cached(pipe, chosen):
        for steps in (8, 5, 8):
            assert torch.equal(run(pipe), first)
            assert torch.equal(run(other, steps), wanted[steps])
        results = {}
        with torch.no_grad():  # before the threads: a fast tokenizer keeps its padding in itself
            embeds, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=16)
        text = {"prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        threads = [
            threading.Thread(target=lambda name=name, each=each: results.update({name: run(each, **text)}))
            for name, each in (("first", pipe), ("other", other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(results["first"], first) and torch.equal(results["other"], wanted[8])


def test_a_gap_and_another_form_of_call_are_computed(pipe):
    """A branch that was left out for a step, or is given another shape, does not go on from what it remembers."""
    model, call = pipe.transformer, arguments()
    with torch.no_grad(), hicache.cached(model, method(interval=6)) as cache:
        cache.begin(10)
        for step in range(10):
            model(**call(1 - step / 10))
            if step != 4:
                model(**call(1 - step / 10))
            cache.step()
        cache.finish()
        assert cache.report.branches == {"": [0, 1, 7], "#1": [0, 1, 5, 7]}
        cache.begin(8)
        for step in range(8):
            hidden = torch.randn(1, 64 if step < 4 else 32, 16)
            arguments_ = call(1 - step / 8, hidden)
            arguments_["img_ids"] = torch.zeros(hidden.shape[1], 3)
            assert torch.isfinite(model(**arguments_)[0]).all()
        assert cache.report.full_steps == [0, 1, 4, 7]
