"""A two-block digits model with random weights, so that whole runs take a second."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file

from experiments.backends.digits.classifier import DigitsClassifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A weights folder in the layout of experiments/assets/digits."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=1,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )
    model.save_pretrained(folder / "transformer")
    save_file(DigitsClassifier().state_dict(), folder / "classifier.safetensors")
    return folder


@pytest.fixture
def small(tiny, tmp_path) -> list[str]:
    """Overrides of a run that takes a moment: 9 items in 3 batches, 8 steps."""
    return [
        f"backend.path={tiny}",
        f"results={tmp_path / 'results'}",
        "num_items=9",
        "batch_size=3",
        "num_steps=8",
        "interval=3",
        "metrics=none",
        "metrics.latency_repeats=1",
        "metrics.latency_warmup=0",
        "metrics.latency_batch=1",
    ]


@pytest.fixture
def run_py(monkeypatch):
    """`run_py(*arguments)` executes run.py in this process and returns its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return int(stopped.value.code)

    return run
