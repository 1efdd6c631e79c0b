"""How many steps a loop makes, and of which timesteps: as many as it says, whatever the scheduler has."""

import diffusers
import pytest
import torch
from PIL import Image

import hicache
from experiments.backends.tiny.build import build
from hicache.sampler import clock_of

from .pipelines import PICTURE, flux, method, quiet, run, wan

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPREAD = hicache.method("fora", policy="even", budget=3, scope="output")


@pytest.fixture(scope="module")
def pipe():
    return flux()


@pytest.fixture(scope="module")
def sdxl():
    return quiet(build("StableDiffusionXLPipeline"))


def noised(sdxl, scheduler):
    """From a picture with noise."""
    parts = {**sdxl.components, "scheduler": scheduler}
    return quiet(diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False))


def pictures(pipe, chosen, **kwargs):
    """Latents, the report, and the first of the timesteps."""
    if "Img2Img" in type(pipe).__name__:
        kwargs["image"] = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    else:
        kwargs |= {"height": 32, "width": 32}
    with hicache.cached(pipe, chosen) as cache:
        generator = torch.Generator().manual_seed(0)
        found = pipe("a cat", num_inference_steps=10, output_type="latent", generator=generator, **kwargs).images
        return found, cache.report, cache.executor.clocks[0].begin_index


def test_a_film_with_noise():
    """CogVideoX: a scheduler that is not told where the loop begins."""
    pipe = quiet(diffusers.CogVideoXVideoToVideoPipeline(**build("CogVideoXPipeline").components))
    video = [Image.new("RGB", (32, 32), (20 * i, 10, 10)) for i in range(9)]

    def go():
        call = {"strength": 0.5, "num_inference_steps": 20, "height": 32, "width": 32, "max_sequence_length": 16}
        generator = torch.Generator().manual_seed(0)
        return pipe(video, "a cat", output_type="latent", generator=generator, **call).frames

    plain = go()
    with hicache.cached(pipe, method(interval=1)) as cache:
        assert torch.equal(go(), plain) and cache.report.num_steps == 10
    with hicache.cached(pipe, hicache.method("fora", policy="eased", budget=4)) as cache:
        go()
        assert (cache.report.num_steps, cache.report.full_steps) == (10, [0, 2, 5, 8])
    with hicache.cached(pipe, method("taylorseer", scope="output", time="log_snr")) as cache:
        go()
        (branch,) = cache.executor.generation.branches.values()
        times = branch.forecaster.history.clock or next(iter(branch.memory.frames.forecasters.values())).history.clock
        assert cache.report.num_steps == 10 and times == pytest.approx(clock_of(pipe.scheduler, "log_snr")[10:])


@pytest.mark.parametrize(
    ("scheduler", "steps", "first"),
    [
        (diffusers.DDIMScheduler(**BETAS), 5, 5),
        (diffusers.DDPMScheduler(**BETAS), 5, 5),
        (diffusers.EulerDiscreteScheduler(**BETAS), 5, 5),
        (diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True), 6, 5),
    ],
)
def test_less_noise_with_any_scheduler(sdxl, scheduler, steps, first):
    _, report, begin = pictures(noised(sdxl, scheduler), SPREAD, strength=0.5)
    assert (report.num_steps, report.executed, begin) == (steps, steps, first)
    assert report.full_steps == SPREAD.policy.plan(steps)


def test_less_noise_in_a_pipeline_that_shares_the_scheduler(sdxl):
    """The method was enabled on another one, and what that says of its own loop is not asked."""
    base = quiet(diffusers.StableDiffusionXLPipeline(**{**sdxl.components, "scheduler": diffusers.DDIMScheduler()}))
    with hicache.cached(base, SPREAD) as cache:
        base("a cat", num_inference_steps=4, height=32, width=32, output_type="latent")
        image = torch.rand(1, 3, 32, 32)
        for steps in (10, 20):
            noised(base, base.scheduler)(
                "a cat", image=image, strength=0.5, num_inference_steps=steps, output_type="latent"
            )
            assert (cache.report.num_steps, cache.report.executed) == (steps // 2, steps // 2)
            assert cache.executor.clocks[0].begin_index == steps // 2


@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_a_part_of_the_timesteps(sdxl, scheduler):
    """An early end leaves out the last ones; a base model and a refiner share them."""
    base = quiet(diffusers.StableDiffusionXLPipeline(**{**sdxl.components, "scheduler": scheduler(**BETAS)}))
    _, report, begin = pictures(base, SPREAD, denoising_end=0.6)
    assert (report.num_steps, report.executed, begin, report.full_steps) == (6, 6, 0, [0, 3, 5])
    _, report, begin = pictures(noised(sdxl, scheduler(**BETAS)), SPREAD, denoising_start=0.3, denoising_end=0.8)
    assert (report.num_steps, report.executed, begin, report.full_steps) == (5, 5, 3, [0, 2, 4])


def test_another_scheduler_while_enabled(pipe):
    """Its first generation is as long as the next."""
    image = quiet(diffusers.FluxImg2ImgPipeline.from_pipe(pipe))
    with hicache.cached(image, hicache.method("fora", policy="even", budget=3)) as cache:
        for _ in range(3):
            run(image, 12, image=PICTURE, strength=0.5)
            assert (cache.report.num_steps, cache.report.full_steps) == (6, [0, 3, 5])
            image.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(image.scheduler.config)


@pytest.mark.parametrize(
    ("chosen", "full"),
    [(method(), [0, 1, 4]), (method("taylorseer", policy="even", budget=4), [0, 2, 3, 5])],
)
def test_two_transformers_have_plans_of_their_own_steps(chosen, full):
    """The boundary of the pipeline says how many they are; the budget is that of each."""
    pipe = wan()
    with hicache.cached(pipe, chosen) as cache:
        run(pipe, 12)
        for report in cache.reports.values():
            assert (report.num_steps, report.executed) == (6, 6)
            assert report.branches == {"cond": full, "uncond": full}


def test_an_own_loop_after_a_call(sdxl):
    """What the pipeline said of its last loop does not hold for another one."""
    pipe = quiet(diffusers.StableDiffusionXLPipeline(**{**sdxl.components, "scheduler": diffusers.DDIMScheduler()}))
    with (
        torch.no_grad(),
        hicache.cached(pipe, hicache.method("fora", policy="even", budget=3, scope="output")) as cache,
    ):
        pipe("a cat", num_inference_steps=4, height=32, width=32, output_type="latent")
        pipe.scheduler.set_timesteps(8)
        sample, text = torch.randn(1, 4, 16, 16), torch.randn(1, 7, pipe.unet.config.cross_attention_dim)
        added = {"text_embeds": torch.randn(1, pipe.text_encoder_2.config.projection_dim), "time_ids": torch.ones(1, 6)}
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(sample, t, text, added_cond_kwargs=added).sample
            sample = pipe.scheduler.step(noise, t, sample).prev_sample
        cache.finish()
        assert (cache.report.num_steps, cache.report.full_steps) == (8, [0, 4, 7])


def test_a_loop_that_is_longer_than_its_pipeline_says(sdxl, monkeypatch):
    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "num_timesteps", 6)
    with pytest.raises(
        hicache.PlanError, match="must make the 6 steps that StableDiffusionXLPipeline says in num_time"
    ):
        pictures(sdxl, SPREAD)


def test_a_call_that_was_broken_off(pipe):
    """Another pipeline over the same transformer begins anew, and so does the first one."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    other = quiet(diffusers.FluxPipeline(**{**pipe.components, "scheduler": scheduler}))
    own_call = type(pipe).__call__

    def stop(pipe, i, t, kwargs):
        if i == 1:
            raise KeyboardInterrupt
        return kwargs

    with hicache.cached(pipe, method()) as cache:
        first, wanted = run(pipe), run(other, seed=7)
        full = cache.report.branches
        with pytest.raises(KeyboardInterrupt):
            run(pipe, 6, callback_on_step_end=stop)
        assert torch.equal(run(other, seed=7), wanted) and cache.report.branches == full
        assert torch.equal(run(pipe), first)
    assert type(pipe).__call__ is own_call
