"""Inf-DiT's network, sampler and checkpoint against tensors of the official program, and block rows against the whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.backends.inf_dit.checkpoint import ENCODER, NETWORK, convert, official_names, rename_weights
from experiments.backends.inf_dit.edm import EDMScheduler, Preconditioning, noise_levels
from experiments.backends.inf_dit.images import channel_statistics, crop, downscale, upscale
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from experiments.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "inf_dit_tiny.safetensors"
TINY = {"num_layers": 3, "hidden_size": 64, "num_heads": 2, "block_size": 32, "vector_size": 8}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def model(golden):
    network = InfDiTTransformer2DModel(**TINY).eval()
    official = {k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")}
    network.load_state_dict(rename_weights(official, network), strict=True)
    return network


def denoiser(model, golden, calls):
    edm, up = Preconditioning(), golden["in_upsampled"]

    @torch.no_grad()
    def denoise(x, sigma, stage):
        calls.append(float(sigma))
        condition = (sigma.log() / 4).expand(1), golden["in_vector"], golden["in_lr"]
        return edm.denoise(model(edm.inputs(x, sigma, up), *condition).sample, x, sigma, up)

    return denoise


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("sigma", ["40", "2", "0.01"])
def test_one_evaluation_is_the_official_one(model, golden, sigma, rows):
    model.block_rows = rows
    found = denoiser(model, golden, [])(golden["in_noisy"], torch.tensor(float(sigma)), 0)
    model.block_rows = None
    assert relative(found, golden[f"denoised_sigma_{sigma}"]) < 1e-5


def test_rows_of_blocks_are_the_whole(model, golden):
    call = golden["in_noisy"].repeat(1, 2, 1, 1), torch.zeros(1), golden["in_vector"], golden["in_lr"]
    with torch.no_grad():
        whole = model(*call).sample
        model.block_rows = 1
        parts = model(*call).sample
    model.block_rows = None
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_a_sampling_is_the_official_one(model, golden):
    scheduler, calls = EDMScheduler(), []
    assert torch.equal(scheduler.sigmas, golden["sigmas"])
    start = golden["in_upsampled"] + golden["sampler_noise"] * scheduler.sigmas[0]
    found = scheduler.sample(denoiser(model, golden, calls), start)
    assert relative(found, golden["sampled"]) < 1e-4
    assert calls == pytest.approx(scheduler.timesteps.tolist()) and len(calls) == 39


def test_names_and_sizes_of_the_checkpoint():
    with torch.device("meta"):
        model = InfDiTTransformer2DModel()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    unused = 28 * 2 * 80 + 256 * 1280
    assert len(official_names(shapes, 28)) == 426
    assert sum(p.numel() for p in model.parameters()) + unused == 753_762_928
    assert shapes["transformer_blocks.27.attn.slots"] == [4, 16, 80]
    assert shapes["transformer_blocks.0.cross.key_position"] == [1, 2304, 16, 80]
    assert shapes["transformer_blocks.5.adaln.weight"] == [5120, 1280]
    assert shapes["patch_embed.weight"] == [1280, 6, 4, 4] and shapes["lr_embed.weight"] == [1280, 3, 2, 2]
    assert shapes["head.linear.weight"] == [48, 1280] and shapes["vector_embed.0.weight"] == [1280, 768]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("time_embed.mlp.0.bias"), "must hold time_embed.mlp.0.bias"),
        (lambda d: d.update({"mixins.other.weight": torch.zeros(1)}), "must hold the names of Inf-DiT only"),
        (lambda d: d.update({"time_embed.mlp.0.bias": torch.zeros(3)}), "time_embed.mlp.0.bias of shape \\[64\\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(model, golden, change, message):
    official = {k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")}
    change(official)
    with pytest.raises(ConfigError, match=message):
        rename_weights(official, model)


def test_a_conversion_reads_tensors_and_nothing_else(model, golden, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.backends.inf_dit.checkpoint.InfDiTTransformer2DModel", lambda: type(model)(**TINY))
    official = {k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")}
    official["image_encoder.model.visual.proj"] = torch.ones(2, 2)
    official["image_encoder.model.logit_scale"] = torch.ones(())
    torch.save({"module": official}, tmp_path / "states.pt")
    convert(tmp_path / "states.pt", tmp_path / "out")
    again = InfDiTTransformer2DModel.from_pretrained(tmp_path / "out" / NETWORK)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert list(load_file(tmp_path / "out" / ENCODER / "model.safetensors")) == ["visual.proj"]
    torch.save({"module": Path("code")}, tmp_path / "code.pt")
    with pytest.raises(ConfigError, match="checkpoint: must be a torch file with `module`"):
        convert(tmp_path / "code.pt", tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("calls", [1, 2, 3, 6, 39, 40])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_a_run_makes_the_calls_it_announces(solver, calls):
    scheduler, seen = EDMScheduler(solver=solver), []
    scheduler.set_timesteps(calls)
    scheduler.sample(lambda x, sigma, stage: seen.append(float(sigma)) or x, torch.ones(1))
    assert len(seen) == calls and seen == pytest.approx(scheduler.timesteps.tolist())
    assert scheduler.sigmas[-1] == 0 and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_the_ideal_denoiser_of_one_image_gives_that_image(solver):
    scheduler, clean = EDMScheduler(solver=solver), torch.randn(1, 3, 8, 8)
    found = scheduler.sample(lambda x, sigma, stage: clean, clean + 40 * torch.randn_like(clean))
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_the_target_is_what_the_denoiser_inverts(residual):
    edm = Preconditioning(0.3, residual)
    clean, up = torch.randn(2, 1, 3, 4, 4)
    for sigma in noise_levels(20)[:-1]:
        x = clean + sigma * torch.randn_like(clean)
        target = edm.target(clean, x, sigma, up)
        torch.testing.assert_close(edm.denoise(target, x, sigma, up), clean, rtol=1e-4, atol=1e-3)


def test_low_resolution_images_are_bicubic_and_eight_bit():
    image = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    low = downscale(image, 4)
    assert low.shape == (1, 3, 16, 16)
    assert torch.allclose((low + 1) * 127.5, ((low + 1) * 127.5).round(), atol=1e-4)
    torch.testing.assert_close(upscale(low, 4)[..., 8:-8], image[..., 8:-8], atol=0.02, rtol=0)
    assert crop(torch.zeros(1, 3, 70, 40), 32).shape == (1, 3, 64, 32)
    assert channel_statistics(low).shape == (1, 6)


@pytest.mark.parametrize("size", [(16, 32), (40, 64), (0, 32)])
def test_images_are_made_of_whole_blocks(model, size):
    with pytest.raises(ValueError, match="image: must have sides that are multiples of 32"):
        model.grid(*size)
