"""Folders of pictures and randomly initialised networks of the real architectures."""

from __future__ import annotations

import string
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.cli import main


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights of the machine and no network: every test sees an empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EVALUATION_WEIGHTS", str(tmp_path / "no-weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch"))


def noise(count: int, size: int = 48, seed: int = 0) -> np.ndarray:
    """Uniform pictures `[N, H, W, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save_all(folder: Path, pictures: np.ndarray, pattern: str = "img_{}.png") -> Path:
    """Write pictures as `img_0.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / pattern.format(index))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve pictures and their references; the first pair is identical, the others are nearly so."""
    images = noise(12)
    change = np.random.default_rng(1).integers(-9, 10, images.shape)
    references = np.clip(images.astype(int) + change, 0, 255).astype(np.uint8)
    references[0] = images[0]
    return save_all(tmp_path / "images", images), save_all(tmp_path / "reference", references)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the keys and shapes of the Inception weights, and random values."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module_ in network.modules():
        if isinstance(module_, nn.Conv2d):  # keeps the signal's size through the depth
            nn.init.kaiming_normal_(module_.weight, nonlinearity="relu")
    nn.init.normal_(network.fc.weight, std=0.05)
    nn.init.normal_(network.fc.bias)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small transformers CLIP with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    vocabulary = {letter: index for index, letter in enumerate(string.ascii_lowercase)}
    vocabulary |= {letter + "</w>": 26 + index for index, letter in enumerate(string.ascii_lowercase)}
    vocabulary |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=size | {"vocab_size": 54, "eos_token_id": 53, "bos_token_id": 52},
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        logit_scale_init_value=2.0,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Exit code 2 and one line with every part."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    for part in parts:
        assert part in lines[0]


def run_words(folders: tuple[Path, Path], *more: str) -> list[str]:
    return [f"images={folders[0]}", f"reference={folders[1]}", "metrics=[psnr,ssim]", *more]
