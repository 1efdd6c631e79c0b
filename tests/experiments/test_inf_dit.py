"""The super-resolution backends: inputs, truth and pairing, patches, weights, what is refused, whole runs."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import evaluation
from experiments.backends import backend_class, load_backend
from experiments.backends.base import sampling_of
from experiments.backends.inf_dit.backend import EnlargingBackend
from experiments.backends.inf_dit.checkpoint import ENCODER, NETWORK
from experiments.backends.inf_dit.edm import EDMScheduler
from experiments.backends.inf_dit.encoder import ClipVector, vision_tower
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel
from experiments.backends.inf_dit.pipeline import InfDiTPipeline, corners
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.reports.costs import build_costs
from experiments.runs import runner
from experiments.runs.runner import execute, items_of
from experiments.settings.identity import run_id
from experiments.settings.prepare import caching, prepare
from experiments.settings.resolve import resolve

TINY = ("backend=inf_dit", "backend.size=tiny", "num_steps=5", "interval=2", "metrics.latency_repeats=1",
        "metrics.latency_warmup=0")  # fmt: skip


def settings(tmp_path, *overrides):
    made = resolve(compose([*TINY, f"results={tmp_path / 'results'}", *overrides]))
    runner.check(made)
    return made


def refused(tmp_path, *overrides):
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, *overrides)
    assert not (tmp_path / "results").exists() and "\n" not in str(error.value)
    return str(error.value)


def draw(folder, name, width=96, height=64, mode="RGB"):
    folder.mkdir(exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    values = np.random.default_rng(len(name)).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(values.squeeze(-1) if mode == "L" else values, mode).save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path):
    return draw(draw(tmp_path / "hr", "0901.png", 100, 70), "0902.png", 64, 64)


def test_a_run_measures_against_the_truth_and_the_reference(tmp_path):
    names = "metrics.names=[psnr_y,ssim_y,psnr_y_uncached,psnr]"
    outcome = execute(settings(tmp_path, "num_items=2", "batch_size=2", names))
    metrics = outcome.metrics
    assert metrics["full_steps"] == [0, 1, 3] and metrics["psnr_y"]["n"] == 2
    assert metrics["psnr_y_uncached"]["mean"] > metrics["psnr_y"]["mean"]
    assert "psnr_y" in outcome.reference.metrics and "psnr_y_uncached" not in outcome.reference.metrics
    truth = sorted(path.name for path in (outcome.folder.path / "truth").iterdir())
    assert truth == sorted(f"{item.name}.png" for item in items_of(outcome.settings))


def test_high_resolution_images_are_cut_reduced_and_are_the_truth(photos, tmp_path):
    of = settings(tmp_path, f"backend.images={photos}")
    first, second = items_of(of)
    assert of.num_items == 2 and (first.name, second.name) == ("0901", "0902")
    assert EnlargingBackend.low(of.backend, first).shape == (1, 3, 16, 24)
    truth = EnlargingBackend.truth(of.backend, first)
    pixels = np.asarray(Image.open(photos / "0901.png"))[3:67, 2:98]
    assert torch.allclose(truth, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255, atol=1e-6)


def test_low_resolution_images_find_their_truth_by_name(photos, tmp_path):
    low = draw(draw(tmp_path / "lr", "0901x4.png", 25, 17), "0902x4.png", 16, 16)
    of = settings(tmp_path, f"backend.images={low}", "backend.inputs=lr", f"backend.truth={photos}")
    first, _ = items_of(of)
    assert first.name == "0901" and EnlargingBackend.low(of.backend, first).shape == (1, 3, 16, 24)
    truth = EnlargingBackend.truth(of.backend, first)
    pixels = np.asarray(Image.open(photos / "0901.png"))[:64, :96]
    assert torch.allclose(truth, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255, atol=1e-6)


def test_folders_pair_names_with_and_without_the_factor(photos, tmp_path):
    other = draw(draw(tmp_path / "sr", "0901x4.png", 100, 70), "0902x4.png", 64, 64)
    for images, reference in ((other, photos), (photos, other)):
        found = evaluation.evaluate(images=images, reference=reference, metrics=["psnr_y"], out=tmp_path / "values")
        assert found["psnr_y"]["n"] == 2


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ([("a.png", 96, 30, "RGB")], (), "backend.images: must be at least 32 x 32 pixels in .*a.png, got '96 x 30'"),
        ([("a.png", 96, 64, "L")], (), "backend.images: must be 8-bit RGB in .*a.png, got 'L'"),
        ([("a.png", 96, 64, "RGBA")], (), "backend.images: must be 8-bit RGB in .*a.png, got 'RGBA'"),
        ([], (), "backend.images: must be a folder of images"),
        (
            [("a.png", 64, 64, "RGB"), ("a.jpg", 64, 64, "RGB")],
            (),
            "must have names that differ without suffix, got 'a'",
        ),
        ([("a.png", 64, 64, "RGB")], ("num_items=2",), "num_items: must be at most the 1 images, got 2"),
        (
            [("a.png", 16, 16, "RGB")],
            ("backend.inputs=lr", "metrics.names=[psnr_y]"),
            "backend.truth: must be a folder of high-resolution images for what is measured against them",
        ),
    ],
)
def test_bad_images_are_one_line(tmp_path, files, more, message):
    (tmp_path / "in").mkdir()
    for name, width, height, mode in files:
        draw(tmp_path / "in", name, width, height, mode)
    said = refused(tmp_path, f"backend.images={tmp_path / 'in'}", *more)
    assert re.search(message, said), said


def test_a_damaged_image_is_one_line(photos, tmp_path):
    damaged = photos / "0902.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    said = refused(tmp_path, f"backend.images={photos}")
    assert said.startswith("backend.images: ") and str(damaged) in said


def test_a_truth_of_another_size_is_one_line(photos, tmp_path):
    low = draw(tmp_path / "lr", "0902x4.png", 20, 16)
    more = ("backend.inputs=lr", f"backend.truth={photos}", "metrics.names=[psnr_y]")
    said = refused(tmp_path, f"backend.images={low}", *more)
    assert said.startswith("backend.truth: must be 4 times as large as") and "0902.png (64 x 64)" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backend.scale=3", "backend.scale: must be 2 or 4, got 3"),
        ("backend.patch=48", "backend.patch: must be a multiple of 32, got 48"),
        ("backend.overlap=8", "backend.overlap: must be a multiple of 8 below backend.patch, got 8"),
        ("backend.noise=2", "backend.noise: must be from 0 to 1, got 2.0"),
        ("backend.rows=0", "backend.rows: must be an integer >= 1, got 0"),
        ("backend.solver=ddim", "backend.solver: must be one of euler, heun"),
        ("backend.truth=x", "backend.truth: must be null for backend.inputs=hr"),
        ("method=toca", "method: must not patch tokens on backend inf_dit"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, override, message):
    assert refused(tmp_path, override).startswith(message)


def test_missing_weights_are_one_line_with_size_source_and_licence(tmp_path):
    with pytest.raises(ConfigError) as error:
        runner.check(resolve(compose(["backend=inf_dit", f"results={tmp_path / 'results'}"])))
    for word in ("GB", "THUDM/Inf-DiT", "no licence stated", "python -m experiments"):
        assert word in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "results").exists()


def test_identity_follows_the_images_not_where_they_are(photos, tmp_path):
    def identity(*more):
        return run_id(resolve(compose([*TINY, *more])))

    before = identity(f"backend.images={photos}")
    other = draw(draw(tmp_path / "copy", "0901.png", 100, 70), "0902.png", 64, 64)
    assert identity(f"backend.images={other}") == before != identity()
    assert identity(f"backend.images={photos}", "backend.rows=1") == before
    assert identity(f"backend.images={photos}", "backend.patch=32") != before


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    model = InfDiTTransformer2DModel(num_layers=2, hidden_size=32, num_heads=2, block_size=32, vector_size=8).eval()
    made = InfDiTPipeline(model, EDMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def test_one_patch_of_the_whole_is_the_whole(pipe):
    low = torch.rand(1, 3, 16, 16) * 2 - 1
    options = {"num_inference_steps": 3, "output_type": "pt"}
    whole, patch = (
        pipe(low, generator=torch.Generator().manual_seed(0), patch=side, **options).images for side in (None, 64)
    )
    torch.testing.assert_close(patch, whole, rtol=0, atol=1e-6)


def test_patches_cover_the_image_and_each_runs_by_itself(pipe, monkeypatch):
    assert corners(128, 64, 16) == [0, 48, 64] and corners(64, 64, 0) == [0] and corners(128, 64, 0) == [0, 64]
    seen = []
    monkeypatch.setattr(pipe, "run", lambda low, up, *rest: seen.append(tuple(low.shape)) or up)
    low = torch.rand(1, 3, 32, 32) * 2 - 1
    found = pipe(low, patch=64, overlap=16, output_type="pt").images
    assert seen == [(1, 3, 16, 16)] * 9
    monkeypatch.setattr(pipe, "run", lambda low, up, *rest: up)
    torch.testing.assert_close(found, pipe(low, output_type="pt").images, rtol=0, atol=1e-5)


def test_twice_the_size_halves_the_image_that_the_network_sees(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(pipe, "run", lambda low, up, *rest: seen.append((low.shape[-1], up.shape[-1])) or up)
    assert pipe(torch.zeros(1, 3, 32, 32), scale=2, output_type="pt").images.shape[-1] == 64
    assert seen == [(16, 64)]


def test_patches_count_in_the_flops(photos, tmp_path):
    costs = []
    for more in (("backend.patch=32",), ("backend.patch=32", "backend.overlap=16")):
        of = settings(tmp_path, f"backend.images={photos}", "num_items=1", *more)
        backend = load_backend(of.backend)
        costs.append((backend.model_batch(1), backend.shape()))
    assert costs == [(6, {"height": 32, "width": 32}), (15, {"height": 32, "width": 32})]


def test_the_image_vector_is_clip_s_and_its_names_are_strict(tmp_path):
    sizes = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32, "embedding": 16}
    torch.manual_seed(0)
    visual = vision_tower(**sizes).eval()
    state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    vector = ClipVector.load(tmp_path / "model.safetensors", torch.float32, **sizes)
    found = vector(torch.rand(2, 3, 30, 40) * 2 - 1)
    assert found.shape == (2, 16) and torch.allclose(found.norm(dim=1), torch.ones(2))
    save_file({**state, "visual.other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="must hold the names of CLIP's vision transformer"):
        ClipVector.load(tmp_path / "model.safetensors", torch.float32, **sizes)


def test_the_released_tower_has_the_published_size():
    with torch.device("meta"):
        visual = vision_tower()
    assert sum(p.numel() for p in visual.parameters()) == 303_966_208
    assert visual(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 768)


def test_converted_weights_are_loaded(tmp_path, monkeypatch):
    torch.manual_seed(0)
    InfDiTTransformer2DModel(num_layers=1, hidden_size=32, num_heads=2, vector_size=16).save_pretrained(
        tmp_path / NETWORK
    )
    sizes = {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32, "embedding": 16}
    (tmp_path / ENCODER).mkdir()
    state = {f"visual.{name}": value for name, value in vision_tower(**sizes).state_dict().items()}
    save_file(state, tmp_path / ENCODER / "model.safetensors")
    load = ClipVector.load
    monkeypatch.setattr(ClipVector, "load", classmethod(lambda cls, file, dtype: load(file, dtype, **sizes)))
    words = ["backend=inf_dit", f"backend.path={tmp_path}", "backend.dtype=fp32", "num_steps=3", "num_items=1"]
    of = resolve(compose([*words, f"results={tmp_path / 'results'}"]))
    runner.check(of)
    backend = backend_class("inf_dit")(of.backend)
    (media,), facts = runner.generate_batch(backend, of, items_of(of)[:1])
    assert media.shape == (3, 128, 128) and facts["full_steps"] == [0, 1]


def test_table_5_is_the_published_one():
    for row in build_costs("table5", []).rows:
        for name in ("flops_g", "flops_speedup"):
            assert row.ours[name].value == pytest.approx(row.paper[name].value, rel=3e-3), (row.label, name)


def test_stages_of_heun_may_have_a_history_each(tmp_path):
    """Half as many steps of two calls: both stages follow the plan by themselves."""
    of = settings(tmp_path, "num_items=1", "backend.history=stages", "num_steps=6", "interval=2")
    backend, items = load_backend(of.backend), items_of(of)
    with caching(backend, prepare(of)) as cache:
        backend.generate(items, sampling_of(of))
        seen = dict(cache.report.branches)
    assert seen == {"stage 0": [0, 1, 3, 5], "stage 1": [0, 1, 3]}
    media = []
    for more in (("num_steps=11",), ("backend.history=stages", "num_steps=6")):
        of = settings(tmp_path, "num_items=1", "method=none", *more)
        media += runner.generate_batch(load_backend(of.backend), of, items)[0]
    assert torch.equal(*media)
    assert refused(tmp_path, "backend.history=stages", "backend.solver=euler").startswith(
        "backend.history: must be calls"
    )


def test_the_published_state_is_a_choice(tmp_path):
    ids = [run_id(settings(tmp_path, "num_items=1", *more)) for more in ((), ("backend.state=bf16",))]
    assert ids[0] != ids[1]
    outcome = execute(settings(tmp_path, "num_items=1", "method=none", "backend.state=bf16", "metrics=none"))
    assert json.loads(outcome.folder.metrics_file.read_text())["full_steps"] == list(range(5))
