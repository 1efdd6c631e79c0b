"""Any pipeline of diffusers as a backend: presets and classes on tiny random pipelines, offline."""

import json
import re

import pytest
import torch

import hicache
from experiments.artefacts.plans import load_plan
from experiments.backends import PRESETS, backend_of, load_backend
from experiments.backends.tiny.build import RECIPES
from experiments.config.compose import compose, options
from experiments.errors import ConfigError
from experiments.runs import runner
from experiments.runs.runner import execute, folder_of, items_of
from experiments.settings.identity import canonical
from experiments.settings.resolve import resolve
from hicache.generic.gated import GatedTap

STEPS = 6
QUICK = [f"num_steps={STEPS}", "interval=3", "warmup_steps=2", "num_items=2", "backend.size=tiny"]
BRIEF = ["metrics.latency_repeats=1", "metrics.latency_warmup=0"]
FULL = [0, 1, 4]
NAMED = [name for name in PRESETS if name != "diffusers"]


def settings(*words, results="results"):
    return resolve(compose([*QUICK, *words, f"results={results}"]))


def media_of(of, items=None):
    """Media of a run's items under its method, and what is reported."""
    return runner.generate_batch(load_backend(of.backend), of, items_of(of) if items is None else items)


@pytest.mark.slow
def test_every_preset_has_a_file_and_a_recipe():
    assert set(PRESETS) <= set(options("backend"))
    for name in NAMED:
        config = settings(f"backend={name}", "method=none").backend
        assert config.pipeline in RECIPES and config.hub and config.licence


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_preset_runs(name, tmp_path):
    """HiCache on two items: media, metrics of their kind, FLOPs; interval 1 is the model bit by bit."""
    of = settings(f"backend={name}", "method=hicache", *BRIEF, results=tmp_path)
    runner.check(of)
    outcome = execute(of)
    metrics = json.loads(outcome.folder.metrics_file.read_text())
    assert metrics["full_steps"] == FULL and metrics["num_steps"] == STEPS
    assert metrics["flops_speedup"] > 1 and metrics["cache_bytes"] > 0
    media = backend_of(of.backend).media
    for metric in ("snr",) if media == "audio" else ("psnr", "ssim"):
        assert metrics[metric]["n"] + metrics[metric].get("infinite", 0) == 2
    for record in outcome.folder.records().values():
        assert all((outcome.folder.media / file).stat().st_size > 0 for file in record["files"])
    assert outcome.folder.picture.stat().st_size > 0
    first = items_of(of)[:1]
    plain, _ = media_of(of.reference(), first)
    same, facts = media_of(settings(f"backend={name}", "method=hicache", "interval=1"), first)
    assert torch.equal(plain[0], same[0]) and facts["full_steps"] == list(range(STEPS))


CLASSES = {
    "sd3": [],
    "sd15": ["scope=deep"],
    "wan": [],
    "stable_audio": [],
    "img2img": ["backend.pipeline=StableDiffusion3Img2ImgPipeline", "backend.call={strength: 0.5}"],
}


def of_class(name, *words, **more):
    backend = "diffusers" if name == "img2img" else name
    metrics = ["metrics=images"] if name == "img2img" else []
    return settings(f"backend={backend}", *CLASSES[name], *metrics, *words, **more)


@pytest.mark.matrix
@pytest.mark.parametrize("name", CLASSES)
def test_noise_is_the_item_s_own(name):
    """Alone, in a batch, in another order, in a process that made others: the same up to rounding."""
    of = of_class(name, "method=none")
    items = items_of(of)
    backend = load_backend(of.backend)
    most = backend_of(of.backend).max_batch
    alone = [media_of(of, [item])[0][0] for item in items]
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    if most is None:
        together, _ = media_of(of, items[::-1])
        for one, other in zip(alone, together[::-1], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-4)
    assert torch.equal(media_of(of, [items[0]])[0][0], alone[0])
    assert backend.media == {"wan": "video", "stable_audio": "audio"}.get(name, "image")


@pytest.mark.matrix
@pytest.mark.parametrize("name", CLASSES)
def test_interval_1_is_the_pipeline_and_a_plan_is_kept(name):
    steps = 3 if name == "img2img" else STEPS
    first = items_of(of_class(name, "method=none"))[:1]
    plain, facts = media_of(of_class(name, "method=none"), first)
    assert facts["full_steps"] == list(range(steps))
    same, facts = media_of(of_class(name, "method=hicache", "interval=1"), first)
    assert torch.equal(plain[0], same[0]) and facts["full_steps"] == list(range(steps))
    cached, facts = media_of(of_class(name, "method=hicache"), first)
    assert facts["full_steps"] == [step for step in FULL if step < steps] and facts["cache_bytes"] > 0
    assert not torch.equal(plain[0], cached[0])
    backend = load_backend(of_class(name, "method=none").backend)
    for model in hicache.scopes(backend.pipe):
        assert "forward" not in vars(getattr(backend.pipe, model))


@pytest.mark.slow
def test_a_run_is_resumed_and_measured_later(tmp_path):
    """What was made is kept, the rest is the same as in one go; a process that makes nothing still counts FLOPs."""
    of = of_class("stable_audio", "method=hicache", *BRIEF, results=tmp_path)
    whole = execute(of)
    before = {name: record["sha256"] for name, record in whole.folder.records().items()}
    last = list(before)[-1]
    whole.folder.drop({last})
    whole.folder.metrics_file.unlink()
    again = execute(of)
    assert {name: record["sha256"] for name, record in again.folder.records().items()} == before
    load_backend(of.backend)._traced = None
    again.folder.metrics_file.unlink()
    counted = execute(of).metrics
    assert counted["flops"] == whole.metrics["flops"] and counted["num_steps"] == STEPS
    assert counted["snr"]["mean"] > 0 and counted["log_spectral"]["mean"] > 0


def test_a_folder_says_its_class_and_steps(tmp_path):
    """`backend=diffusers backend.path=FOLDER`: nothing else is named."""
    from experiments.backends.tiny.build import build

    folder = tmp_path / "pipe"
    build("StableDiffusionPipeline").save_pretrained(folder)
    words = [f"backend.path={folder}", "backend.dtype=fp32", "backend.call={height: 32, width: 32}", "num_items=1"]
    of = resolve(compose(["backend=diffusers", *words, "method=deepcache", "metrics=images", f"results={tmp_path}"]))
    assert of.num_steps == 50 and of.backend.pipeline == "StableDiffusionPipeline"
    of = resolve(compose(["backend=diffusers", *words, "num_steps=5", "method=deepcache", "interval=2"]))
    runner.check(of)
    made, facts = media_of(of)
    assert made[0].shape == (3, 32, 32) and facts["full_steps"] == [0, 2, 4]
    with pytest.raises(ConfigError, match="scope: UNet2DConditionModel has output, deep, got 'stack'"):
        runner.check(resolve(compose(["backend=diffusers", *words, "method=hicache", "scope=stack", "metrics=none"])))


def test_both_models_of_a_pipeline_are_cached():
    """Wan 2.2: full steps of the second model are counted on from the first, FLOPs are those of both."""
    from experiments.backends.diffusers_backend import specialise
    from tests.hicache.pipelines import wan

    of = settings("backend=wan", "method=hicache", "num_items=1", "num_steps=8", "scope=stack")
    backend = specialise("video", None)(of.backend)
    backend.pipe = wan()
    backend.pipe.text_encoder, backend.pipe.tokenizer = (
        getattr(load_backend(of.backend).pipe, key) for key in ("text_encoder", "tokenizer")
    )
    _, facts = runner.generate_batch(backend, of, items_of(of))
    assert facts["full_steps"] == [0, 1, 4, 5]
    calls, items = backend.traced(items_of(of), runner.prepare(of).sampling)
    assert (calls.num_steps, items, set(calls.steps)) == (8, 1, {"transformer", "transformer_2"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backend=diffusers"], "backend.path: must be a folder or hub id for backend diffusers, got None"),
        (["backend=diffusers", "backend.path=/nowhere"], "backend.path: must be a folder or be in the Hugging Face cache"),
        (["backend=wan"], "get Wan-AI/Wan2.1-T2V-1.3B-Diffusers .* with: hf download Wan-AI"),
        (["backend=diffusers", "backend.pipeline=NoPipeline"], "backend.pipeline: must be a pipeline class of diffusers"),
        (["backend=diffusers", "backend.pipeline=FluxPriorReduxPipeline"], "backend.pipeline: must make images, videos or audio"),
        (["backend=diffusers", "backend.size=tiny", "backend.pipeline=LattePipeline"], "backend.pipeline: must be one of "),
        (["backend=sd3", "backend.weights=random"], "backend.weights: must be pretrained at size full for backend sd3"),
        (["backend=sd3", "backend.frames=9"], "backend.frames: must be null for StableDiffusion3Pipeline, .* no num_frames"),
        (["backend=sd3", "backend.call={prompt: x}"], "backend.call: must leave prompt to the backend"),
        (["backend=sd3", "backend.call={strenth: 1}"], "backend.call: must have arguments of StableDiffusion3Pipeline"),
        (["backend=sd3", "backend.edits=true"], "backend.edits: must be false for StableDiffusion3Pipeline"),
        (["backend=sd3", "backend.size=tiny", "scope=deep"], "scope: SD3Transformer2DModel has output, .* got 'deep'"),
        (["backend=sd15", "backend.size=tiny", "scope=modules"], "scope: UNet2DConditionModel has output, deep, got"),
        (["backend=sd3", "backend.size=tiny", "method=toca"], "method: toca recomputes rows of tokens, .* no adapter"),
        (["backend=sd3", "backend.size=tiny", "guidance=adaptive"], "guidance: must be plain for backend sd3"),
        (["backend=sd3", "backend.size=tiny", "metrics=sounds"], "metrics.names: must read image, not audio, got 'snr'"),
        (["backend=stable_audio", "backend.size=tiny", "metrics=images"], "must read audio, not image or video, got 'psnr'"),
        (["backend=flux_kontext", "backend.size=tiny", "batch_size=2"], "batch_size: must be at most 1 for backend"),
        (["backend=sd3", "num_steps=0"], "num_steps: must be an integer >= 1"),
        (["backend=flux", "backend.size=tiny", "backend.recommended.num_steps=0"], "num_steps: must be an integer from 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as error:
        runner.check(resolve(compose([*words, f"results={tmp_path / 'r'}"])))
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


def test_a_folder_of_nothing_that_is_known(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": 3}')
    with pytest.raises(ConfigError, match="backend.path: .* must name the class of a pipeline"):
        compose(["backend=diffusers", f"backend.path={tmp_path}"])
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ConfigError, match="backend.path: .* must be the index of a pipeline"):
        compose(["backend=diffusers", f"backend.path={tmp_path}"])


def test_records_of_a_run_name_its_files(tmp_path):
    of = of_class("wan", "method=none", "num_items=1", *BRIEF, results=tmp_path)
    execute(of)
    (record,) = folder_of(of).records().values()
    assert [file.rpartition(".")[2] for file in record["files"]] == ["mp4", "npy"]


TINY = ["backend=pixart_sigma", "backend.size=tiny", "num_steps=8", "interval=3", "warmup_steps=2"]


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """Artefacts of the tests are kept apart from those that ship."""
    from experiments.artefacts import artefact

    monkeypatch.setattr(artefact, "ASSETS", tmp_path)
    return tmp_path


def made(*words):
    """Media and facts of one item."""
    of = resolve(compose([*TINY, "num_items=1", *words]))
    runner.check(of)
    media, facts = media_of(of)
    return of, media[0], facts


@pytest.mark.matrix
@pytest.mark.parametrize("scope", ["output", "stack", "modules"])
def test_plans_are_calibrated(scope, assets):
    """The plan is nearer to the model than reuse at as many full steps is."""
    from experiments.calibration.calibrate import main

    main([*TINY, f"scope={scope}", "budget=4", "items=2", "rounds=1", "trials=4"])
    plain = made("method=none")[1]
    _, calibrated, facts = made("method=calibrated", "method.budget=4", f"scope={scope}")
    assert len(facts["full_steps"]) == 4
    _, reused, _ = made("method=fora", f"scope={scope}", "interval=2", "warmup_steps=1")
    assert (calibrated - plain).norm() < (reused - plain).norm()


def test_the_sites_of_a_plan_are_those_of_a_run(assets):
    """Of two streams, where the gates of one are declared: a plan weighs what is added to the picture, and no more."""
    from experiments.calibration.calibrate import main

    words = ["backend=sd3", "backend.size=tiny", "num_steps=6", "scope=modules"]
    main([*words, "budget=3", "items=2", "refine=none"])
    of = resolve(compose([*words, "method=calibrated", "method.budget=3", "num_items=1"]))
    backend = load_backend(of.backend)
    _, facts = media_of(of)
    rows = load_plan(of).rows
    width = len(GatedTap(backend.transformer).modules)
    assert width == 6 and {len(weights) for row in rows.values() for weights in row.weights} == {width}
    assert len(facts["full_steps"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["output", "modules"])
def test_weights_are_refined_through_the_sampler(scope, assets, capsys):
    """Without an adapter, too; all modules share a move."""
    from experiments.calibration.calibrate import main

    words = ["backend=sd3", "backend.size=tiny", "backend.samples=2", "num_steps=4", f"scope={scope}", "batch_size=8"]
    main([*words, "budget=2", "items=32", "rounds=1", "trials=0", "refine=newton"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "newton: " in line]
    before, after = (float(word) for word in re.findall(r"[\d.]+(?= to| dB on held)", line))
    assert after >= before


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("name", "more"),
    [("smoothcache", ["method.alpha=0.9"]), ("teacache", ["method.policy_options={threshold: 0.5}"]), ("magcache", [])],
)
def test_curves_are_calibrated(name, more, assets):
    """The method runs with what was measured on this model, which its identity names."""
    from experiments.calibration.calibrate import main

    main([*TINY, f"method={name}", "items=2"])
    of, _, facts = made(f"method={name}", *more)
    assert "curves" in canonical(of)["method"] and facts["full_steps"][0] == 0
    (file,) = (assets / "pixart_sigma" / "curves").glob(f"{name}-*.json")
    curves = json.loads(file.read_text())["curves"]
    if name == "smoothcache":
        assert set(curves["errors"]) == {"attn.img", "mlp.img"} and curves["fused_from"] is None
        assert all(0 < errors[0] < 2 for kind in curves["errors"].values() for errors in kind[1:])
    elif name == "magcache":
        assert len(curves["curve"]) == 8 and all(0.1 < ratio < 10 for ratio in curves["curve"])
    else:
        assert len(curves["coefficients"]) == 5 and curves["range"][0] > 0


def test_sigma_is_chosen_from_trajectories(assets):
    from experiments.calibration.calibrate import main

    main([*TINY, "method=hicache", "scope=stack", "items=2"])
    of, _, _ = made("method=hicache", "scope=stack", "sigma=auto")
    assert 0.2 <= of.sigma <= 1 and "sigma" in of.chosen


def test_values_of_scopes_are_those_of_the_model():
    """Recorded stack residuals are what the blocks add, call by call; the model is as it was afterwards."""
    from experiments.calibration.trajectories import generate

    of = resolve(compose([*TINY, "num_items=2", "method=none", "batch_size=2"]))
    backend, items = load_backend(of.backend), items_of(of)
    model, seen = backend.transformer, []
    first, last = model.transformer_blocks[0], model.transformer_blocks[-1]
    hooks = [
        first.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True),
        last.register_forward_hook(lambda _, args, result: seen.append(result)),
    ]
    try:
        found = generate(backend, of, items, ["stack", "output"])
    finally:
        for hook in hooks:
            hook.remove()
    residuals = torch.stack([out - inside for inside, out in zip(seen[::2], seen[1::2], strict=True)], 1)
    assert found["stack"].shape[:3] == (2, 8, 2) and "forward" not in vars(model)
    torch.testing.assert_close(
        found["stack"], residuals.reshape(2, 2, *residuals.shape[1:]).transpose(0, 1).movedim(2, 1)
    )
    with pytest.raises(ConfigError, match="sites: must be one of .*stack, got 'deep'"):
        generate(backend, of, items, ["deep"])
