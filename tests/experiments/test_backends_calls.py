"""The calls that the backends make: samplers, shapes, batches, compiled blocks, and one whole run."""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline

import hicache
from experiments.backends import backend_class, load_backend
from experiments.backends.base import Backend
from experiments.backends.dit_sampler import ChainDDIM, guide, scheduler
from experiments.config.backend import BackendConfig
from experiments.config.compose import compose
from experiments.runs import runner
from experiments.runs.runner import execute, folder_of, items_of
from experiments.settings.cost import count_flops
from experiments.settings.resolve import resolve
from tests.programs import Program

ROOT = Path(__file__).parents[2]


def settings(*overrides: str):
    return resolve(compose(list(overrides)))


def checked(tmp_path, *overrides: str):
    made = settings(f"results={tmp_path / 'results'}", *overrides)
    runner.check(made)
    return made


# Samplers


def test_the_official_chain_of_fifty_steps():
    solver = ChainDDIM()
    solver.set_timesteps(50)
    chain = solver.timesteps.tolist()
    assert chain[:3] == [999, 979, 958] and chain[-4:] == [61, 41, 20, 0] and len(set(chain)) == 50
    solver.set_timesteps(1)
    assert solver.timesteps.tolist() == [0]


@pytest.mark.parametrize("steps", [8, 20, 50])
def test_the_chain_ends_at_the_clean_sample_when_the_noise_is_known(steps):
    """Every step lands on the marginal of the *next* time step; diffusers' DDIM with this spacing does not."""
    solver = ChainDDIM()
    solver.set_timesteps(steps)
    clean, noise = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alphas = solver.alphas_cumprod
    times = solver.timesteps.tolist()
    sample = alphas[times[0]].sqrt() * clean + (1 - alphas[times[0]]).sqrt() * noise
    for t, following in zip(times, [*times[1:], None], strict=True):
        (sample,) = solver.step(noise, t, sample)
        alpha = alphas[following] if following is not None else torch.tensor(1.0)
        torch.testing.assert_close(sample, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, atol=1e-9, rtol=0)
    theirs = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", beta_start=1e-4)
    theirs.set_timesteps(50)
    at = alphas[999].sqrt() * clean + (1 - alphas[999]).sqrt() * noise
    landed = theirs.step(noise, 999, at).prev_sample
    mine = alphas[979].sqrt() * clean + (1 - alphas[979]).sqrt() * noise
    assert theirs.timesteps[1] == 979 and float((landed - mine).abs().max()) < 1e-2


def test_guidance_moves_three_channels_only():
    conditional, unconditional = torch.randn(2, 1, 4, 2, 2)
    guided = guide(conditional, unconditional, 1.5, 3)
    assert torch.equal(guided[:, 3:], conditional[:, 3:])
    torch.testing.assert_close(guided[:, :3], (1.5 * conditional - 0.5 * unconditional)[:, :3])


def test_the_diffusers_sampler_is_diffusers_own_pipeline(tmp_path):
    of = checked(
        tmp_path, "backend=dit", "backend.size=tiny", "backend.sampler=diffusers", "num_items=2", "num_steps=5"
    )
    backend, items = load_backend(of.backend), items_of(of)
    (ours, facts) = runner.generate_batch(backend, settings("backend=dit", "method=none", "num_steps=5"), items)
    assert facts["full_steps"] == [0, 1, 2, 3, 4]
    theirs = DiTPipeline(backend.pipe.transformer, backend.pipe.vae, scheduler("diffusers", "ddim"))
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        [item.inputs["class_labels"] for item in items],
        guidance_scale=1.5,
        num_inference_steps=5,
        generator=[torch.Generator().manual_seed(item.seed) for item in items],
        output_type="pt",
    ).images
    torch.testing.assert_close(torch.stack(ours), expected, atol=1e-6, rtol=0)


@pytest.mark.matrix
@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc"])
def test_dit_has_fewer_steps_with_every_solver(solver, tmp_path):
    brief = ["backend=dit", "backend.size=tiny", "num_items=1", "metrics.latency_repeats=1", "num_steps=8"]
    of = checked(tmp_path, *brief, "method=steps", "method.steps=4", f"method.solver={solver}")
    assert execute(of).metrics["flops_speedup"] == pytest.approx(2)


def test_classes_are_independent_of_how_many_there_are_or_cycle_through_a_list():
    many = [i.inputs["class_labels"] for i in items_of(settings("backend=dit", "num_items=300"))]
    few = [i.inputs["class_labels"] for i in items_of(settings("backend=dit", "num_items=5"))]
    assert few == many[:5] and len(set(many)) > 200 and max(many) > 900 and min(many) < 100
    listed = items_of(settings("backend=dit", "num_items=5", "backend.classes=[207,360]"))
    assert [i.inputs["class_labels"] for i in listed] == [207, 360, 207, 360, 207]


# Calls


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("backend", "more", "calls"),
    [
        ("flux", [], 3),
        ("flux", ["backend.true_cfg=2"], 6),
        ("flux_schnell", [], 3),
        ("dit", [], 3),
        ("hunyuan_video", [], 3),
        ("qwen_image", [], 6),
        ("qwen_image", ["backend.true_cfg=1"], 3),
        ("qwen_image_edit", [], 6),
        ("qwen_image_edit", ["backend.plus=true"], 6),
    ],
)
def test_calls_per_step_and_the_shape_that_is_counted(backend, more, calls, tmp_path):
    """The FLOPs of a run are counted for the tokens that its calls really have."""
    of = checked(
        tmp_path, f"backend={backend}", "backend.size=tiny", "num_items=1", "num_steps=3", "method=none", *more
    )
    loaded, seen = load_backend(of.backend), []

    def note(module, args, kwargs):
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        seen.append(tuple(hidden.shape))

    hook = loaded.transformer.register_forward_pre_hook(note, with_kwargs=True)
    runner.generate_batch(loaded, of, items_of(of))
    hook.remove()
    assert len(seen) == calls
    adapter = hicache.adapters.adapter_for(loaded.transformer)
    example = adapter.example(seen[0][0], torch.device("meta"), **loaded.shape())
    assert tuple(example["hidden_states"].shape) == seen[0]
    assert count_flops(loaded, of).total > 0
    assert loaded.model_batch(1) * 3 == calls * seen[0][0]


def test_batches_and_prompts_reach_the_pictures(tmp_path):
    """In a batch an item has the noise and the prompt that it has alone."""
    of = checked(tmp_path, "backend=qwen_image", "backend.size=tiny", "num_items=2", "num_steps=3", "method=none")
    backend, items = load_backend(of.backend), items_of(of)
    together, _ = runner.generate_batch(backend, of, items)
    for item, image in zip(items, together, strict=True):
        (alone,), _ = runner.generate_batch(backend, of, [item])
        torch.testing.assert_close(alone, image, atol=1e-4, rtol=0)
    swapped = [type(i)(name=i.name, title=i.title, seed=items[0].seed, inputs=i.inputs) for i in items]
    same_noise, _ = runner.generate_batch(backend, of, swapped)
    assert not torch.equal(same_noise[0], same_noise[1])


def test_compiled_blocks_only(tmp_path):
    of = settings("backend=flux", "backend.size=tiny", "backend.compile=true")
    transformer = load_backend(of.backend).transformer
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert transformer._compiled_call_impl is None


@pytest.mark.slow
def test_a_cache_sees_inside_blocks_that_were_compiled_without_it(tmp_path, monkeypatch):
    """Traced by the compiler; code is not generated, which takes minutes."""
    traced = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    brief = ["num_items=1", "num_steps=5", "interval=2", "metrics.latency_repeats=1", "metrics.latency_warmup=0"]
    of = checked(tmp_path, "backend=flux", "backend.size=tiny", "backend.compile=true", "method=hicache", *brief)
    plain = dataclasses.replace(of, backend=dataclasses.replace(of.backend, compile=False))
    compiled, eager = execute(of), execute(plain)  # the reference runs first, without observers
    assert compiled.metrics["full_steps"] == hicache.full_steps(5, 2, 3)
    media = [type(load_backend(of.backend)).load_media(o.folder.media, items_of(of)[0]) for o in (compiled, eager)]
    torch.testing.assert_close(*media, atol=3 / 255, rtol=0)


@pytest.mark.slow
def test_one_run_from_the_command_line(tmp_path):
    words = ["backend=hunyuan_video", "backend.size=tiny", "num_items=1", "num_steps=4", "interval=2"]
    words.append(f"results={tmp_path}")
    done = Program("run.py", *words, "metrics.latency_repeats=1")
    assert done.wait() == 0, done.err
    folder = Path(done.out.strip().splitlines()[-1].removeprefix("run: "))
    assert list(folder.glob("media/00000.mp4")) and (folder / "metrics.json").is_file()
    assert folder_of(settings(*words)).path == folder


def test_the_gpu_of_a_backend_is_the_current_one(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    for device in ("cpu", "auto", "cuda", "cuda:3"):
        backend = object.__new__(backend_class("digits"))
        Backend.__init__(backend, BackendConfig(name="digits", device=device))
    assert seen == ["cuda:3"]
