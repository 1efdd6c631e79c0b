"""ImageReward, CLIP, HPSv2, PickScore: real architectures with random weights, preprocessing by hand."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import evaluation
from evaluation import image_reward
from evaluation.alignment import ClipScore, HpsV2, ImageReward, PickScore
from evaluation.clip import load_open_clip, load_transformers, open_clip_weight
from evaluation.errors import EvaluationError
from evaluation.image_reward import REWARD_MEAN, REWARD_STD, ImageRewardNetwork, convert
from evaluation.metric import Batch
from evaluation.preprocess import CLIP_MEAN, CLIP_STD, centre_crop, clip_inputs, pad
from tests.evaluation.conftest import noise, save_all

RECORDED = Path(__file__).with_name("recorded") / "image_reward_keys.txt"


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    data = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(data).permute(2, 0, 1)[None].float() / 255


# Preprocessing


def test_clip_inputs_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0] = 1.0
    inputs = clip_inputs(image, 4)
    expected = [(value - m) / s for value, m, s in zip((1, 0, 0), CLIP_MEAN, CLIP_STD, strict=True)]
    assert inputs[0, :, 0, 0].tolist() == pytest.approx(expected)
    assert inputs[0].flatten(1).std(1).max() == 0


@pytest.mark.parametrize("size", [(300, 500), (333, 250), (224, 300), (97, 224), (512, 512)])
def test_centre_crop_is_the_originals_transform(size):
    image = picture(*size)
    original = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    pil = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert torch.equal(clip_inputs(image, 224)[0], original(pil))


def test_pad_centres_on_black():
    padded = np.asarray(pad(Image.new("RGB", (200, 100), (255, 255, 255)), 100))
    assert padded.shape == (100, 100, 3)
    assert padded[:25].max() == 0
    assert padded[75:].max() == 0
    assert padded[25:75].min() == 255
    assert centre_crop(Image.new("RGB", (200, 100)), 100).size == (100, 100)


# ImageReward


def recorded() -> dict[str, list[int]]:
    """Keys and shapes of the published package's model."""
    lines = [line.split() for line in RECORDED.read_text().splitlines()]
    return {name: [] if shape == "-" else [int(n) for n in shape.split("x")] for name, shape in lines}


def test_every_published_key_has_its_place_and_its_shape():
    with torch.device("meta"):
        network = ImageRewardNetwork()
        state = {name: torch.empty(shape) for name, shape in recorded().items()}
    converted = convert(state)
    wanted = network.state_dict()
    assert converted.keys() == wanted.keys()
    assert all(converted[name].shape == wanted[name].shape for name in wanted)
    unused = [name for name in state if name not in {**dict.fromkeys(_back(converted, state))}]
    assert sorted(unused) == [
        "blip.text_encoder.embeddings.position_ids",
        "blip.text_proj.bias",
        "blip.text_proj.weight",
        "blip.vision_proj.bias",
        "blip.vision_proj.weight",
    ]


def _back(converted: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> list[str]:
    identities = {id(value) for value in converted.values()}
    return [name for name, value in state.items() if id(value) in identities]


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 32,
}
TEXT = {
    "vocab_size": 80,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]


@pytest.fixture
def small_image_reward(tmp_path, monkeypatch) -> dict[str, Path]:
    """A checkpoint in the published layout, of a small network."""
    monkeypatch.setattr(image_reward, "VISION", image_reward.VISION | VISION)
    monkeypatch.setattr(image_reward, "TEXT", image_reward.TEXT | TEXT)
    torch.manual_seed(0)
    state = published_names(ImageRewardNetwork().state_dict())
    state["blip.vision_proj.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return {"image_reward": tmp_path / "ImageReward.pt", "bert_vocabulary": tmp_path / "vocab.txt"}


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a small network's tensors by the full-size correspondence."""
    pairs = {converted: name for name in recorded() if (converted := next(iter(convert({name: torch.empty(0)})), None))}
    return {pairs[name]: value.clone() for name, value in state.items()}


def test_reward_of_a_small_network(small_image_reward):
    scorer = ImageReward().load("cpu", small_image_reward)
    batch = Batch(
        names=["a", "b"], images=torch.cat([picture(224, 300), picture(224, 300, 1)]), prompts=["a cat", "dog"]
    )
    with torch.inference_mode():
        together = scorer(batch)
        alone = scorer(Batch(names=["b"], images=batch.images[1:], prompts=["dog"]))
        other = scorer(Batch(names=["b"], images=batch.images[1:], prompts=["god"]))
    assert together[1].item() == pytest.approx(alone.item(), abs=1e-6)
    assert together[1].item() != pytest.approx(other.item(), abs=1e-9)
    network = image_reward.load_network(small_image_reward["image_reward"])
    ids, mask = image_reward.tokenize(image_reward.read_vocabulary(small_image_reward["bert_vocabulary"]), ["dog"], 35)
    assert ids[0, :6].tolist() == [2, WORDS.index("d"), WORDS.index("##o"), WORDS.index("##g"), 3, 0]
    assert ids.shape == (1, 35)
    assert mask.sum() == 5
    patches = network.visual(clip_inputs(batch.images[1:], 224)).last_hidden_state
    hidden = network.text(input_ids=ids[:, :5], encoder_hidden_states=patches, is_decoder=False).last_hidden_state[
        0, 0
    ]  # padding must not matter
    for layer in (0, 2, 4, 6, 7):
        hidden = network.mlp.layers[layer](hidden)
    assert alone.item() == pytest.approx((hidden.item() - REWARD_MEAN) / REWARD_STD, abs=1e-5)


def test_text_is_read_in_both_directions(small_image_reward):
    network = image_reward.load_network(small_image_reward["image_reward"])
    ids, pixels = torch.tensor([[2, 5, 6, 7, 3]]), clip_inputs(picture(224, 224), 224)
    changed = ids.clone()
    changed[0, 3] = 9  # after the first token, which alone is read out
    mask = torch.ones_like(ids)
    assert network(pixels, ids, mask).item() != pytest.approx(network(pixels, changed, mask).item(), abs=1e-9)


def test_incomplete_and_surplus_checkpoints_are_refused(small_image_reward):
    path = small_image_reward["image_reward"]
    state = torch.load(path, weights_only=True)
    key = "blip.visual_encoder.blocks.1.attn.qkv.weight"
    torch.save({k: v for k, v in state.items() if k != key}, path)
    with pytest.raises(EvaluationError, match="lacks 1 tensors.*layers.1.self_attn.qkv.weight"):
        image_reward.load_network(path)
    torch.save(state | {"blip.surprise": torch.zeros(1)}, path)
    with pytest.raises(EvaluationError, match="unknown 1 tensors.*blip.surprise"):
        image_reward.load_network(path)
    torch.save(state | {key: torch.zeros(3, 3)}, path)
    with pytest.raises(EvaluationError, match=re.escape("must be [96, 32], got [3, 3]")):
        image_reward.load_network(path)


def test_image_reward_through_the_command(small_image_reward, tmp_path):
    images = save_all(tmp_path / "images", noise(3, size=64))
    prompts = ["a cat", "b", "c d"]
    first = evaluation.evaluate(images, None, prompts, ["image_reward"], weights=small_image_reward, out=tmp_path / "o")
    assert first["image_reward"]["n"] == 3
    stored = (tmp_path / "o" / "values.jsonl").read_text().count("\n")
    prompts[1] = "z"  # only this value is new
    evaluation.evaluate(images, None, prompts, ["image_reward"], weights=small_image_reward, out=tmp_path / "o")
    assert (tmp_path / "o" / "values.jsonl").read_text().count("\n") == stored + 1


PACKAGE = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"reward": len(request["prompt"]) + open(request["image"], "rb").read(4)[1]}),
    flush=True)
"""


def test_package_backend_asks_its_own_interpreter(tmp_path, monkeypatch, small_image_reward):
    from evaluation.parity import image_reward_package

    script = tmp_path / "package_process.py"
    script.write_text(PACKAGE)
    monkeypatch.setattr(image_reward_package, "_SCRIPT", script)
    scorer = ImageReward(backend="package", python=sys.executable).load("cpu", small_image_reward)
    batch = Batch(names=["a", "b"], images=torch.rand(2, 3, 8, 8), prompts=["four", "sevenxx"])
    assert scorer(batch).tolist() == [4 + ord("P"), 7 + ord("P")]  # the second byte of a PNG file
    script.write_text("raise SystemExit(3)")
    with pytest.raises(EvaluationError, match="exit code 3"):
        ImageReward(backend="package", python=sys.executable).load("cpu", small_image_reward)
    with pytest.raises(EvaluationError, match="interpreter"):
        ImageReward(backend="package", python=str(tmp_path / "none")).load("cpu", small_image_reward)
    with pytest.raises(ValueError, match="python: must name"):
        ImageReward(backend="package")


# CLIP and its descendants


def clip_cosines(folder: Path, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The same through transformers' own forward."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(
        prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(pixel_values=clip_inputs(images, 32), **tokens)
    return output.logits_per_image.diagonal() / model.logit_scale.exp()


def test_clip_score_and_its_scales(clip_folder):
    batch = Batch(
        names=["a", "b"], images=torch.cat([picture(40, 50), picture(40, 50, 1)]), prompts=["a cat", "dog " * 90]
    )
    cosines = clip_cosines(clip_folder, batch.images, batch.texts())
    weights = {"clip_l14": clip_folder, "pickscore": clip_folder, "pickscore_processor": clip_folder}
    with torch.inference_mode():
        score = ClipScore().load("cpu", weights)(batch)
        learned = ClipScore(scale="learned").load("cpu", weights)(batch)
        pick = PickScore().load("cpu", weights)(batch)
    assert score.tolist() == pytest.approx((100 * cosines).clamp_min(0).tolist(), abs=1e-4)
    assert learned.tolist() == pytest.approx((np.exp(2.0) * cosines).tolist(), abs=1e-5)
    assert pick.tolist() == pytest.approx(learned.tolist(), abs=1e-6)


def test_clip_score_agrees_with_torchmetrics(clip_folder):
    from torchmetrics.functional.multimodal import clip_score
    from transformers import CLIPModel, CLIPTokenizer

    class Adapter(torch.nn.Module):
        """torchmetrics 1.9 expects tensors where transformers 5 returns an output with a pooler."""

        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPModel.from_pretrained(clip_folder).eval()
            self.config = self.model.config

        def get_image_features(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.model.get_image_features(*inputs).pooler_output

        def get_text_features(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.model.get_text_features(*inputs).pooler_output

    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)

    def processor(text: list[str] | None = None, images: list[torch.Tensor] | None = None, **_: object) -> object:
        if images is not None:
            pixels = torch.cat([clip_inputs(image[None].float() / 255, 32) for image in images])
            return {"pixel_values": pixels}
        return tokenizer(text, padding=True, return_tensors="pt")

    images, prompts = torch.cat([picture(40, 50, seed) for seed in range(4)]), ["a", "bc d", "e", "fgh"]
    theirs = clip_score(list((images * 255).round().byte()), prompts, model_name_or_path=lambda: (Adapter(), processor))
    batch = Batch(names=list("abcd"), images=images, prompts=prompts)
    with torch.inference_mode():
        theirs = theirs.detach()
        ours = 100 * load_transformers(clip_folder, "cpu").cosines(images, prompts)
        scores = ClipScore().load("cpu", {"clip_l14": clip_folder})(batch)
    assert max(float(ours.mean()), 0) == pytest.approx(float(theirs), abs=1e-4)
    assert scores.min() >= 0


def test_incomplete_clip_folders_are_refused(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    state = load_file(clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match="missing keys.*visual_projection"):
        load_transformers(tmp_path, "cpu")


@pytest.mark.slow
def test_open_clip_models_by_name(tmp_path, monkeypatch):
    import open_clip

    weight = open_clip_weight("open_clip:ViT-g-14/laion2b_s12b_b42k")
    assert weight.repository == "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
    assert "hf download laion/CLIP-ViT-g-14-laion2B-s12B-b42K open_clip_model.safetensors" in weight.command
    with pytest.raises(EvaluationError, match="laion2b_s12b_b42k"):
        open_clip_weight("open_clip:ViT-g-14/nonsense")
    small = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(small))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-for-tests").eval()
    torch.save({"state_dict": {"module." + k: v for k, v in model.state_dict().items()}}, tmp_path / "w.pt")
    images, prompts = torch.cat([picture(30, 60), picture(30, 60, 1)]), ["a photo", "of a dog"]
    tokens = open_clip.get_tokenizer("tiny-for-tests")(prompts)
    with torch.inference_mode():
        for fit in (centre_crop, pad):
            clip = load_open_clip("tiny-for-tests", None, tmp_path / "w.pt", "cpu", fit)
            i, t = model.encode_image(clip_inputs(images, 32, fit)), model.encode_text(tokens)
            expected = torch.nn.functional.cosine_similarity(i, t)
            assert clip.cosines(images, prompts).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(EvaluationError, match="fit the architecture"):
        load_open_clip("tiny-for-tests", None, tmp_path / "w.pt", "cpu")


def test_hpsv2_reads_the_weights_of_its_version():
    assert HpsV2.create({"version": 2.1}).weights() == ("hpsv2_1",)
    assert HpsV2.create({"version": 2.0}).weights() == ("hpsv2",)
    with pytest.raises(EvaluationError, match=r"hpsv2\.version"):
        HpsV2.create({"version": 3})


@pytest.mark.parametrize("architecture", ["ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-B-32"])
def test_real_open_clip_architectures_have_the_sizes_we_rely_on(architecture):
    import open_clip

    config = open_clip.get_model_config(architecture)
    assert config["vision_cfg"]["image_size"] == 224
    assert config["text_cfg"]["context_length"] == 77
