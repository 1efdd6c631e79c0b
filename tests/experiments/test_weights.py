"""What counts as a whole folder of weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save, save_file

from experiments.backends import load_backend
from experiments.backends.dit import DiTBackend
from experiments.backends.loading import load_pipeline
from experiments.backends.weights import incomplete_model, incomplete_settings
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.runs import runner
from experiments.settings.resolve import resolve

WHOLE = save({"a": torch.zeros(3)})


@pytest.mark.parametrize("bad", ["model", "model.fp16"])
def test_every_set_of_shards_must_be_whole(bad, tmp_path):
    """One of full and one of half precision: whichever is read first, the other is read too."""
    for name in ("model", "model.fp16"):
        shards = {key: f"{name}-{key}.safetensors" for key in "ab"}
        (tmp_path / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        for shard in shards.values():
            (tmp_path / shard).write_bytes(WHOLE)
    assert incomplete_model(tmp_path) is None
    (tmp_path / f"{bad}-b.safetensors").write_bytes(WHOLE[:-1])
    assert f"{bad}-b.safetensors, which is no whole file" in (incomplete_model(tmp_path) or "")
    (tmp_path / f"{bad}-b.safetensors").unlink()
    assert incomplete_model(tmp_path) == f"no {bad}-b.safetensors"


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors"])
def test_a_variant_or_shards_without_their_index_are_not_what_is_loaded(name, tmp_path):
    (tmp_path / name).write_bytes(WHOLE)
    assert (incomplete_model(tmp_path) or "").startswith(f"{name}, but no index of shards and neither")
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    assert incomplete_model(tmp_path) is None


@pytest.mark.parametrize(
    ("kind", "files", "lacks"),
    [
        ("CLIPTokenizer", ["tokenizer_config.json", "vocab.json"], "no tokenizer.json and no merges.txt"),
        ("CLIPTokenizer", ["vocab.json", "merges.txt"], None),
        ("CLIPTokenizer", ["tokenizer.json"], None),
        ("T5TokenizerFast", ["tokenizer_config.json"], "no tokenizer.json and no spiece.model"),
        ("T5TokenizerFast", ["tokenizer_config.json", "spiece.model"], None),
        ("ByT5Tokenizer", ["tokenizer_config.json"], None),
        ("FlowMatchEulerDiscreteScheduler", ["config.json"], "no scheduler_config.json"),
        ("CLIPImageProcessor", [], "no settings"),
    ],
)
def test_tokenizers_must_have_their_words_and_schedulers_their_settings(kind, files, lacks, tmp_path):
    """A tokenizer is made from an empty folder without a word, and every prompt is then the same to it."""
    for name in files:
        (tmp_path / name).write_text("{}")
    assert incomplete_settings(tmp_path, "diffusers" if "Scheduler" in kind else "transformers", kind) == lacks


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A tiny FLUX as a folder."""
    folder = tmp_path_factory.mktemp("weights") / "flux"
    load_backend(resolve(compose(["backend=flux", "backend.size=tiny"])).backend).pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def changed(flux, tmp_path):
    """Changes a copy of it; returns the folder."""

    def change(part: str = "", **values) -> Path:
        folder = Path(shutil.copytree(flux, tmp_path / "copy", dirs_exist_ok=True))
        path = folder / (f"{part}/config.json" if part else "model_index.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return change


def said_of(folder: Path, *words: str) -> str:
    with pytest.raises(ConfigError) as error:
        runner.check(resolve(compose([f"backend.path={folder}", "metrics=none", "method=none", *words])))
    return str(error.value)


@pytest.mark.parametrize(
    ("backend", "part", "values", "said"),
    [
        ("flux", "", {"_class_name": "FluxKontextPipeline"}, "must be of a pipeline that backend flux has, got 'FluxK"),
        ("qwen_image", "", {}, "must be of a pipeline that backend qwen_image has, got 'FluxPipeline in"),
        ("flux", "", {"text_encoder_2": [None, None]}, "got 'no text_encoder_2 in"),
        ("flux", "transformer", {"guidance_embeds": False}, "must have embedded guidance for backend flux, got"),
        ("flux_schnell", "", {}, "must not have embedded guidance for backend flux_schnell, got 'guidance_embeds true"),
    ],
)
def test_weights_of_another_model_are_refused(backend, part, values, said, changed, tmp_path):
    assert said in said_of(changed(part, **values), f"backend={backend}", f"results={tmp_path / 'results'}")


def test_weights_without_embedded_guidance_serve_for_two_calls_per_step(changed, tmp_path):
    folder = changed("transformer", guidance_embeds=False)
    words = ["backend=flux", f"backend.path={folder}", "backend.true_cfg=2", f"results={tmp_path}", "metrics=none"]
    runner.check(resolve(compose([*words, "method=none"])))


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])
def test_a_weight_that_the_files_lack_is_not_drawn_at_random(part, flux, changed):
    folder = changed()
    path = next((folder / part).glob("*.safetensors"))
    values = load_file(path)
    del values[name := next(name for name in values if name.endswith("k_proj.weight") or "to_k" in name)]
    save_file(values, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"must have all weights .* got '1 missing in .*{part}, such as {name}"):
        load_pipeline(FluxPipeline, folder, torch.float32)


def test_another_vae_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="backend.vae: must be the folder of a VAE, got '/nowhere'"):
        config = resolve(compose(["backend=dit", "backend.vae=/nowhere"])).backend
        DiTBackend.check_weights(config, described(tmp_path))


def described(folder: Path) -> Path:
    """The index of a DiT."""
    parts = dict.fromkeys(("transformer", "vae", "scheduler"), ["diffusers", "any"])
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **parts}))
    return folder
