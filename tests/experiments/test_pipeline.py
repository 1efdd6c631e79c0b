"""The pixel DiT pipeline against its definition, and its solvers against each other."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

from experiments.backends.digits.data import NULL_CLASS
from experiments.backends.digits.pipeline import SCHEDULERS, PixelDiTPipeline, scheduler


@pytest.fixture
def pipe(tiny):
    pipe = PixelDiTPipeline(DiTTransformer2DModel.from_pretrained(tiny / "transformer").eval(), scheduler("ddim"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_one_ddim_step_by_hand(pipe):
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    images = pipe([3, 8], guidance_scale=1.5, num_inference_steps=1, latents=noise, output_type="pt").images
    with torch.no_grad():
        time = torch.full((2,), 999)
        cond = pipe.transformer(noise, timestep=time, class_labels=torch.tensor([3, 8])).sample
        null = pipe.transformer(noise, timestep=time, class_labels=torch.tensor([NULL_CLASS] * 2)).sample
    epsilon = null + 1.5 * (cond - null)
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[999]
    clean = (noise - (1 - abar).sqrt() * epsilon) / abar.sqrt()
    torch.testing.assert_close(images, (clean / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_guidance_one_calls_the_conditional_branch_only(pipe):
    batches = []
    pipe.transformer.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    pipe([1, 2, 3], guidance_scale=1.0, num_inference_steps=2, output_type="pt")
    pipe([1, 2, 3], guidance_scale=1.5, num_inference_steps=1, output_type="pt")
    assert batches == [3, 3, 6]


def test_the_chain_of_ddim_steps_from_pure_noise_to_the_image():
    solver = scheduler("ddim")
    solver.set_timesteps(50)
    assert solver.timesteps.tolist() == list(range(999, 0, -20))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [7, 8, 10, 50])
def test_every_solver_starts_at_pure_noise_and_makes_one_call_per_step(pipe, name, steps):
    pipe.scheduler = scheduler(name)
    calls = []
    pipe.transformer.register_forward_hook(lambda module, args, out: calls.append(1))
    pipe([0], num_inference_steps=steps, output_type="pt")
    assert len(calls) == steps
    assert int(pipe.scheduler.timesteps[0]) == 999


@pytest.mark.slow
def test_solvers_agree_in_the_limit_of_many_steps(pipe):
    images = {}
    for name in SCHEDULERS:
        pipe.scheduler = scheduler(name)
        images[name] = pipe([4], num_inference_steps=250, generator=generators(0), output_type="pt").images
    assert (images["dpmpp"] - images["unipc"]).abs().max() < 0.01
    assert (images["dpmpp"] - images["ddim"]).abs().mean() < 0.02


def test_an_image_depends_on_its_own_generator_only(pipe):
    alone = pipe([7], num_inference_steps=3, generator=generators(2), output_type="pt").images[0]
    among = pipe([1, 7, 7], num_inference_steps=3, generator=generators(1, 2, 3), output_type="pt").images
    torch.testing.assert_close(among[1], alone, atol=1e-4, rtol=0)
    assert (among[2] - alone).abs().max() > 0.01


def test_output_types(pipe):
    assert pipe([1], num_inference_steps=1, output_type="pt").images.shape == (1, 1, 16, 16)
    assert pipe([1], num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 1)
    assert pipe([1], num_inference_steps=1).images[0].size == (16, 16)
    assert len(pipe([1], num_inference_steps=1, return_dict=False)) == 1


def test_latents_of_another_shape_are_refused(pipe):
    with pytest.raises(ValueError, match="latents: must have shape"):
        pipe([1, 2], latents=torch.zeros(1, 1, 16, 16))


def test_it_survives_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = PixelDiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    first, second = (
        p([5], num_inference_steps=2, generator=generators(1), output_type="pt").images for p in (pipe, again)
    )
    assert torch.equal(first, second)
