"""The pipeline backends: prompt sets, identity, weights, files, and what is refused."""

import json
import subprocess

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from PIL import Image
from safetensors.torch import save

import evaluation
import hicache
from experiments.backends import ALIASES, BACKENDS, PRESETS, load_backend, media
from experiments.backends import weights as weights_module
from experiments.backends.weights import Hub, locate
from experiments.config.compose import compose, options
from experiments.config.prompts import fingerprint, read_prompts
from experiments.errors import ConfigError
from experiments.runs import runner
from experiments.runs.runner import execute, items_of
from experiments.settings.identity import run_id
from experiments.settings.resolve import resolve

PUBLISHED = [
    name
    for name in options("backend")
    if name not in ("digits", "emoji", "inf_dit", "inf_dit_small", *ALIASES, *PRESETS)
]


def settings(*overrides: str):
    return resolve(compose(list(overrides)))


def checked(tmp_path, *overrides: str):
    made = settings(f"results={tmp_path / 'results'}", *overrides)
    runner.check(made)
    return made


def refused(tmp_path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        checked(tmp_path, *overrides)
    assert list(tmp_path.glob("results*")) == []
    return str(error.value)


def test_every_backend_has_code_a_group_option_and_metrics():
    assert {*BACKENDS, *ALIASES} <= set(options("metrics"))
    assert set(options("backend")) == {*BACKENDS, *ALIASES, *PRESETS}


# Prompts


def test_lines_lose_one_pair_of_quotes_unless_told_otherwise(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text('"a red "big" cat"\na dog\n')
    assert [p.text for p in read_prompts(str(path))] == ['a red "big" cat', "a dog"]
    assert [p.text for p in read_prompts(str(path), unquote=False)] == ['"a red "big" cat"', "a dog"]


def test_json_lines_name_images_beside_them(tmp_path):
    path = tmp_path / "p.jsonl"
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "ps.png").write_bytes(b"%!PS")
    path.write_text('{"prompt": "blue", "image": "a.png"}\n\n{"prompt": "red", "image": ["a.png", "a.png"]}\n')
    assert [len(p.images) for p in read_prompts(str(path))] == [1, 2]
    for bad, said in {
        "{": "must be JSON",
        '{"image": "a.png"}': "must be an object with a text prompt",
        '{"prompt": "x", "image": 3}': "image must be a path or a list",
        '{"prompt": "x", "image": "b.png"}': "image must be a file",
        '{"prompt": "x", "image": "ps.png"}': "image .*ps.png: must be a readable image .*, got PostScript",
    }.items():
        path.write_text(bad)
        with pytest.raises(ConfigError, match=f"p.jsonl:1 {said}"):
            read_prompts(str(path))


def test_tables_have_a_column_of_prompts(tmp_path):
    """DrawBench and PartiPrompts as they are published, with every mark and line end; others name their column."""
    drawbench, parti, own = tmp_path / "DrawBench.csv", tmp_path / "PartiPrompts.tsv", tmp_path / "mine.csv"
    drawbench.write_bytes('\ufeffPrompts,Category\r\n"A red, ""big"" car",Colors\r\n\r\nDog,X\r\n'.encode())
    assert [p.text for p in read_prompts(str(drawbench))] == ['A red, "big" car', "Dog"]
    parti.write_text("Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tBiology\n")
    assert [p.text for p in read_prompts(str(parti))] == ["bond"]
    own.write_text("title,prompt,caption\na,b,c\n")
    assert [p.text for p in read_prompts(f"{own}:title")] == ["a"]
    assert fingerprint(read_prompts(f"{own}:title")) != fingerprint(read_prompts(f"{own}:prompt"))
    for name, line in ((str(own), "must have one column called"), (f"{own}:x", "must have the column x, got")):
        with pytest.raises(ConfigError, match=line):
            read_prompts(name)
    own.write_text("prompt,n\na,1\n ,2\n")
    with pytest.raises(ConfigError, match="none in line, got 3"):
        read_prompts(str(own))
    (tmp_path / "p.yaml").write_text("a cat")
    with pytest.raises(ConfigError, match=r"must be a .txt, .jsonl, .json, .csv, .tsv file, got .*p\.yaml"):
        read_prompts(str(tmp_path / "p.yaml"))
    (tmp_path / "bad.csv").write_bytes(b"prompt\n\xe9\n")
    with pytest.raises(ConfigError, match=r"bad\.csv must be UTF-8, got byte 0xe9"):
        read_prompts(str(tmp_path / "bad.csv"))


def test_vbench_prompts_are_taken_once_and_name_the_files(tmp_path):
    path = tmp_path / "VBench_full_info.json"
    entry = {"prompt_en": "a cat, running", "dimension": ["subject_consistency"]}
    path.write_text(json.dumps([entry, entry | {"dimension": ["color"]}, entry | {"prompt_en": "a dog"}]))
    of = settings("backend=hunyuan_video", "backend.size=tiny", f"backend.prompts={path}", "backend.samples=2")
    assert of.num_items == 4
    names = [item.name for item in items_of(of)]
    assert names == ["a cat, running-0", "a cat, running-1", "a dog-0", "a dog-1"]


def test_videos_are_named_by_index_unless_vbench_names_are_asked_for(tmp_path):
    """The names are part of what a run is, so that no folder holds both; a prompt twice would share a file."""
    path = tmp_path / "p.txt"
    path.write_text("a cat/dog\na bird\na cat/dog\n")
    video = ["backend=hunyuan_video", "backend.size=tiny", f"backend.prompts={path}"]
    of = settings(*video)
    assert [item.name for item in items_of(of)] == ["00000", "00001", "00002"]
    path.write_text("a bird\na cat\n")
    asked = settings(*video, "backend.names=vbench", "backend.samples=2")
    assert [item.name for item in items_of(asked)] == ["a bird-0", "a bird-1", "a cat-0", "a cat-1"]
    assert run_id(asked) != run_id(settings(*video, "backend.samples=2"))
    path.write_text("a cat\na cat\n")
    assert refused(tmp_path, *video, "backend.names=vbench") == "backend.prompts: must not repeat a prompt, got 'a cat'"
    assert (
        refused(tmp_path, *video, "backend.names=title") == "backend.names: must be one of index, vbench, got 'title'"
    )


@pytest.mark.parametrize("name", ["images.txt", "videos.txt", "edits.jsonl"])
def test_shipped_lists_have_twenty_prompts(name):
    assert len({p.text for p in read_prompts(name)}) == 20


def test_the_whole_set_is_the_default_and_seeds_count_up(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(7)))
    of = settings("backend=flux", f"backend.prompts={path}", "backend.samples=2", "seed=10")
    items = items_of(of)
    assert [item.seed for item in items] == list(range(10, 24))
    assert [item.name for item in items][:2] == ["00000", "00001"] and items[2].title == "prompt 1"


# Identity


def test_identity_follows_the_contents_of_the_prompt_set_not_its_name(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a cat\n")
    two.write_text('"a cat"\n')

    def identity(*more: str) -> str:
        return run_id(settings("backend=flux", "num_items=1", *more))

    assert identity(f"backend.prompts={one}") == identity(f"backend.prompts={two}")
    assert identity(f"backend.prompts={two}", "backend.unquote=false") != identity(f"backend.prompts={two}")
    before = identity(f"backend.prompts={one}")
    assert before != identity()
    one.write_text("a dog\n")
    assert identity(f"backend.prompts={one}") != before


def test_identity_follows_the_bytes_of_images_to_edit(tmp_path):
    path, image = tmp_path / "p.jsonl", tmp_path / "a.png"
    path.write_text('{"prompt": "blue", "image": "a.png"}')
    Image.new("RGB", (2, 2)).save(image)
    before = fingerprint(read_prompts(str(path)))
    Image.new("RGB", (2, 3)).save(image)
    assert fingerprint(read_prompts(str(path))) != before


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ("backend.height=512", True),
        ("backend.height=1024", False),
        ("backend.guidance=3.5", False),
        ("backend.guidance=2", True),
        ("backend.dtype=fp32", True),
        ("backend.dtype=bf16", False),
        ("backend.size=tiny", True),
        ("backend.weights=random", True),
        ("backend.attention=math", True),
        ("backend.compile=true", True),
        ("backend.format=jpeg95", True),
        ("backend.offload=model", False),
        ("backend.device=cpu", False),
        ("backend.path=/elsewhere", True),
    ],
)
def test_what_changes_the_pictures_is_part_of_it(change, matters):
    ids = [run_id(settings("backend=flux", "num_items=4", *more)) for more in ([], [change])]
    assert (ids[0] != ids[1]) == matters


# Weights


@pytest.mark.parametrize("backend", PUBLISHED)
def test_missing_weights_are_one_line_with_size_and_command(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    said = refused(tmp_path, f"backend={backend}")
    assert "\n" not in said and "GB on disk" in said
    assert said.startswith("backend.path: must be a folder or be in the Hugging Face cache, got nothing there; get ")
    assert f"hf download {said.split('get ')[1].split(' ')[0]}" in said


def test_missing_weights_end_the_program_with_code_2_and_write_nothing(tmp_path, run_py, capfd):
    results = tmp_path / "results"
    assert run_py("backend=flux", f"results={results}", "backend.path=/nowhere") == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1 and "got no folder '/nowhere'" in err
    assert not results.exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny FLUX pipeline as a folder of safetensors."""
    folder = tmp_path_factory.mktemp("saved") / "flux"
    load_backend(settings("backend=flux", "backend.size=tiny").backend).pipe.save_pretrained(folder)
    return folder


def test_a_pipeline_loaded_from_its_folder_equals_the_one_in_memory(saved, tmp_path):
    small = ["num_items=1", "num_steps=2", "metrics=none", "method=none", "metrics.latency_repeats=1"]
    shape = ["backend.height=32", "backend.width=32", "backend.text_tokens=128", "backend.dtype=fp32"]
    here = checked(tmp_path, "backend=flux", f"backend.path={saved}", *shape, *small)
    memory = checked(tmp_path, "backend=flux", "backend.size=tiny", *small)
    digests = [[r["sha256"] for r in execute(of).folder.records().values()] for of in (here, memory)]
    assert digests[0] == digests[1]


def test_a_method_is_held_against_the_description_of_the_weights_before_they_are_read(tmp_path, monkeypatch):
    """Later releases of Qwen-Image-Edit modulate their reference tokens differently, which config.json says."""
    folder = tmp_path / "qwen"
    load_backend(settings("backend=qwen_image_edit", "backend.size=tiny").backend).pipe.save_pretrained(folder)
    described = folder / "transformer" / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"zero_cond_t": True}))
    for weights in folder.glob("*/*.safetensors"):
        weights.write_bytes(save({}))
    given = ["backend=qwen_image_edit", f"backend.path={folder}", "metrics=none"]
    checked(tmp_path, *given)
    assert "for which QwenImageTransformer2DModel has no adapter" in refused(tmp_path, *given, "method=clusca")
    checked(tmp_path, *given, "scope=stack")
    checked(tmp_path, *given, "method=none")


def test_a_folder_must_be_complete_and_in_safetensors(saved, tmp_path):
    hub = Hub(repository="some/model", gigabytes=1)
    assert locate(str(saved), hub, "main") == saved
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", saved, copy], check=True)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only .bin files \(convert them once with: python -m .* in vae"):
        locate(str(copy), hub, "main")
    (copy / "vae" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="no safetensors in vae"):
        locate(str(copy), hub, "main")
    index = {"weight_map": {"a": "one-of-two.safetensors", "b": "two-of-two.safetensors"}}
    (copy / "vae" / "x.safetensors.index.json").write_text(json.dumps(index))
    (copy / "vae" / "one-of-two.safetensors").touch()
    with pytest.raises(ConfigError, match="no two-of-two.safetensors in vae"):
        locate(str(copy), hub, "main")
    (copy / "model_index.json").unlink()
    with pytest.raises(ConfigError, match="no model_index.json"):
        locate(str(copy), hub, "main")


def test_bin_files_are_converted_to_the_same_values(saved, tmp_path):
    pipe = load_backend(settings("backend=dit", "backend.size=tiny").backend).pipe
    plain = DiTPipeline(transformer=pipe.transformer, vae=pipe.vae, scheduler=DDIMScheduler())
    plain.save_pretrained(tmp_path / "old", safe_serialization=False)
    with pytest.raises(ConfigError, match="only .bin files"):
        locate(str(tmp_path / "old"), Hub(repository="some/model"), "main")
    weights_module.convert(tmp_path / "old", tmp_path / "new")
    found = locate(str(tmp_path / "new"), Hub(repository="some/model"), "main")
    again = DiTPipeline.from_pretrained(found, use_safetensors=True)
    for mine, theirs in zip(again.transformer.parameters(), pipe.transformer.parameters(), strict=True):
        assert torch.equal(mine, theirs)


# Refusals


@pytest.mark.parametrize(
    ("given", "said"),
    {
        "backend=flux backend.size=huge": "backend.size: must be one of full, tiny",
        "backend=flux backend.size=tiny backend.weights=pretrained": "backend.weights: must be random at size tiny",
        "backend=flux backend.size=tiny backend.dtype=int8": "backend.dtype: must be one of",
        "backend=flux backend.size=tiny backend.height=40": "backend.height: must be a multiple of 16, got 40",
        "backend=flux backend.size=tiny backend.text_tokens=600": "backend.text_tokens: must be from 1 to 512",
        "backend=flux backend.size=tiny backend.offload=model backend.device=cpu": "backend.offload: must be none without",
        "backend=flux backend.size=tiny backend.attention=fast": "backend.attention: must be one of .*sdpa",
        "backend=flux backend.size=tiny backend.attention=cudnn backend.device=cpu": "backend.attention: must be sdpa, math",
        "backend=flux backend.size=tiny num_items=21": "num_items: must be at most the 20 prompts x 1 samples, got 21",
        "backend=flux backend.prompts=/none.txt": "backend.prompts: must be a .txt, .jsonl, .json, .csv, .tsv file",
        "backend=flux backend.size=tiny method=steps method.solver=unipc": "method.solver: must be null for backend flux",
        "backend=hunyuan_video backend.size=tiny backend.frames=8": "backend.frames: must be 4 k . 1, got 8",
        "backend=qwen_image_edit backend.size=tiny batch_size=2": "batch_size: must be at most 1 for backend qwen_image_edit",
        "backend=qwen_image_edit backend.size=tiny backend.prompts=images.txt": "backend.prompts: must have an image per line",
        "backend=dit backend.size=tiny backend.classes=[3,1000]": "backend.classes: must be from 0 to 999, got 1000",
        "backend=flux backend.size=tiny metrics.names=[class_accuracy]": "metrics.names: must fit backend flux",
        "backend=flux backend.size=tiny method=fbcache method.front=99": "method.front: front . back must be below the 5 blocks, got 99",
        "backend=flux backend.size=tiny metrics.names=[fid]": "metrics.reference: must be a folder of real images",
    }.items(),
)
def test_what_cannot_work_is_refused_before_anything_is_written(given, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        checked(tmp_path, *given.split())
    assert list(tmp_path.iterdir()) == []


def test_a_metric_without_its_weights_is_refused_before_generation(tmp_path, monkeypatch):
    monkeypatch.setenv("EVALUATION_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    said = refused(tmp_path, "backend=flux", "backend.size=tiny", "metrics.names=[psnr,lpips]")
    assert said.startswith("metrics.names: lpips: weights.lpips_alex:") and "get it with: curl" in said


def test_a_pair_of_method_and_backend_that_has_no_adapter_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(hicache.adapters.ADAPTERS, "FluxTransformer2DModel")
    tiny = ["backend=flux", "backend.size=tiny"]
    rule = "must be none or steps: FluxTransformer2DModel of backend flux has no adapter"
    assert refused(tmp_path, *tiny) == f"method: {rule}, got 'hicache'"
    checked(tmp_path, *tiny, "method=steps")


def test_a_scope_that_the_backend_lacks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hicache.adapters.dit.DiTAdapter, "scopes", ("modules", "output"))
    said = refused(tmp_path, "backend=dit", "backend.size=tiny", "scope=stack")
    assert said == "scope: backend dit with method hicache has modules, output, got 'stack'"


# Media


@pytest.mark.parametrize(("form", "error"), [("png", 0.5 / 255 + 1e-6), ("jpeg95", 0.1)])
def test_images_come_back_as_they_were_written(form, error, tmp_path):
    image = torch.linspace(0, 1, 3 * 32 * 48).reshape(3, 32, 48)
    (path,) = media.write_image(image, tmp_path, "x", form)
    assert path.name == {"png": "x.png", "jpeg95": "x.jpg"}[form]
    assert float((media.read_image(tmp_path, "x", form) - image).abs().max()) <= error


@pytest.mark.parametrize("lossless", [True, False])
def test_videos_have_all_frames_and_the_mp4_always_exists(lossless, tmp_path):
    ramp = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 32, 48)
    files = media.write_video(ramp, tmp_path, "a cat-0", 24, lossless)
    assert [f.name for f in files] == ["a cat-0.mp4", "a cat-0.npy"][: 1 + lossless]
    back = media.read_video(tmp_path, "a cat-0", lossless)
    assert back.shape == ramp.shape
    assert float((back - ramp).abs().max()) < (0.5 / 255 + 1e-6 if lossless else 0.03)


@pytest.mark.slow
def test_evaluation_reads_a_runs_videos_and_agrees_with_its_metrics(tmp_path):
    tiny = ["backend=hunyuan_video", "backend.size=tiny", "backend.lossless=false", "num_items=2", "num_steps=4"]
    brief = [
        "metrics.latency_repeats=1",
        "interval=2",
        "metrics.names=[psnr,ssim,psnr_u8wrap,ssim_skimage7,temporal_flickering]",
    ]
    outcome = execute(checked(tmp_path, *tiny, *brief))
    assert outcome.reference is not None
    assert sorted(path.name for path in outcome.folder.media.iterdir()) == ["00000.mp4", "00001.mp4"]
    pair = {"images": outcome.folder.media, "reference": outcome.reference.folder.media, "out": tmp_path / "e"}
    values = evaluation.evaluate(**pair, metrics=["psnr", "ssim", "ssim_skimage7"])
    for name, value in values.items():
        assert outcome.metrics[name]["mean"] == pytest.approx(value["mean"], rel=1e-5)
    assert outcome.metrics["psnr_u8wrap"]["n"] == 2
    still = outcome.metrics["temporal_flickering"]
    assert 0 < still["mean"] <= 1 and still["low"] <= still["mean"] <= still["high"]


def test_metrics_of_the_package_get_prompts_and_keep_values(tmp_path, monkeypatch):
    """A stub stands for the network of CLIP score: what is tested is what reaches it."""
    from evaluation.alignment import ClipScore

    seen: list[list[str]] = []

    def load(self, device, weights):
        return lambda batch: seen.append(batch.prompts) or [float(len(p)) for p in batch.prompts]

    monkeypatch.setattr(ClipScore, "load", load)
    monkeypatch.setattr(ClipScore, "weights", lambda self: ())
    monkeypatch.setattr(ClipScore, "modules", ())
    tiny = ["backend=flux_schnell", "backend.size=tiny", "num_items=3", "metrics.latency_repeats=1"]
    outcome = execute(checked(tmp_path, *tiny, "method=none", "metrics.names=[psnr,clip_score]"))
    prompts = [p.text for p in read_prompts("images.txt")][:3]
    assert sum(seen, []) == prompts and "psnr" not in outcome.metrics
    assert outcome.metrics["clip_score"]["mean"] == pytest.approx(np.mean([len(p) for p in prompts]))
    assert (outcome.folder.path / "evaluation" / "values.jsonl").is_file()
