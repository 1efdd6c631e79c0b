"""Which weight files the metrics read and where they are looked for; nothing is ever downloaded.

Search order for a weight called `name`: the path the user gave (`weights.name=PATH`), the folder
`$EVALUATION_WEIGHTS/name` (default `~/.cache/evaluation/name`), torch hub's checkpoint folder, the Hugging
Face cache. Files are read without executing anything in them: safetensors, or
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import os
import pickle
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "Weight", "find", "fingerprint", "hub", "load_state", "locate", "root", "specification"]

_TRANSFORMERS_CLIP = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One download: a file from a URL, or some files of a hub repository."""

    name: str
    files: tuple[str, ...]
    megabytes: int | None
    licence: str
    repository: str | None = None
    url: str | None = None

    @property
    def source(self) -> str:
        """Hub id or URL."""
        return self.repository or self.url or ""

    @property
    def command(self) -> str:
        """The exact command that fetches it to the place where it is looked for first."""
        folder = root() / self.name
        if self.repository:
            words = ["hf", "download", self.repository, *self.files, "--local-dir", str(folder)]
        else:
            words = ["curl", "-fL", "--create-dirs", "-o", str(folder / self.files[0]), str(self.url)]
        return shlex.join(words)


def hub(repository: str, files: tuple[str, ...] = _TRANSFORMERS_CLIP, megabytes: int | None = None) -> Weight:
    """A weight that is a hub repository named by the user; its licence is stated on its hub page."""
    return Weight(
        name=repository.replace("/", "--"),
        files=files,
        megabytes=megabytes,
        licence="see the hub page",
        repository=repository,
    )


_TORCHVISION = "https://download.pytorch.org/models/"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_IQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_ROWS = (
    Weight(
        name="lpips_alex",
        files=("alexnet-owt-7be5be79.pth",),
        megabytes=233,
        licence="BSD-3-Clause",
        url=_TORCHVISION + "alexnet-owt-7be5be79.pth",
    ),
    Weight(
        name="lpips_vgg",
        files=("vgg16-397923af.pth",),
        megabytes=528,
        licence="BSD-3-Clause",
        url=_TORCHVISION + "vgg16-397923af.pth",
    ),
    Weight(
        name="inception",
        files=("weights-inception-2015-12-05-6726825d.pth",),
        megabytes=91,
        licence="Apache-2.0",
        url=_FIDELITY + "weights-inception-2015-12-05-6726825d.pth",
    ),
    Weight(
        name="image_reward",
        files=("ImageReward.pt",),
        megabytes=1790,
        licence="Apache-2.0",
        repository="zai-org/ImageReward",
    ),
    Weight(
        name="bert_vocabulary",
        files=("vocab.txt",),
        megabytes=1,
        licence="Apache-2.0",
        repository="google-bert/bert-base-uncased",
    ),
    Weight(
        name="clip_l14",
        files=_TRANSFORMERS_CLIP,
        megabytes=1710,
        licence="MIT",
        repository="openai/clip-vit-large-patch14",
    ),
    Weight(
        name="clip_b32",
        files=_TRANSFORMERS_CLIP,
        megabytes=605,
        licence="MIT",
        repository="openai/clip-vit-base-patch32",
    ),
    Weight(
        name="pickscore",
        files=("model.safetensors", "config.json"),
        megabytes=3940,
        licence="MIT",
        repository="yuvalkirstain/PickScore_v1",
    ),
    Weight(
        name="pickscore_processor",
        files=_TRANSFORMERS_CLIP[2:],
        megabytes=4,
        licence="MIT",
        repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    Weight(
        name="hpsv2",
        files=("HPS_v2_compressed.pt",),
        megabytes=1970,
        licence="Apache-2.0",
        repository="xswu/HPSv2",
    ),
    Weight(
        name="hpsv2_1",
        files=("HPS_v2.1_compressed.pt",),
        megabytes=1970,
        licence="Apache-2.0",
        repository="xswu/HPSv2",
    ),
    Weight(
        name="dino_b16",
        files=("model.safetensors", "config.json"),
        megabytes=343,
        licence="Apache-2.0",
        repository="facebook/dino-vitb16",
    ),
    Weight(
        name="aesthetic_linear",
        files=("sa_0_4_vit_l_14_linear.pth",),
        megabytes=1,
        licence="MIT",
        url="https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
    ),
    Weight(
        name="vbench_info",
        files=("VBench_full_info.json",),
        megabytes=1,
        licence="Apache-2.0",
        url="https://raw.githubusercontent.com/Vchitect/VBench/master/vbench/VBench_full_info.json",
    ),
    Weight(
        name="dists",
        files=("DISTS_weights-f5e65c96.pth",),
        megabytes=1,
        licence="MIT",
        url=_IQA + "DISTS_weights-f5e65c96.pth",
    ),
    Weight(
        name="niqe",
        files=("niqe_modelparameters.mat",),
        megabytes=1,
        licence="see the hub page",
        url=_IQA + "niqe_modelparameters.mat",
    ),
    Weight(
        name="musiq",
        files=("musiq_koniq_ckpt-e95806b9.pth",),
        megabytes=None,
        licence="Apache-2.0",
        url=_IQA + "musiq_koniq_ckpt-e95806b9.pth",
    ),
    Weight(
        name="maniqa",
        files=("ckpt_koniq10k.pt",),
        megabytes=None,
        licence="Apache-2.0",
        url=_IQA + "ckpt_koniq10k.pt",
    ),
    Weight(
        name="clip_rn50",
        files=("RN50.pt",),
        megabytes=None,
        licence="MIT",
        url=_CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    ),
)

WEIGHTS: dict[str, Weight] = {row.name: row for row in _ROWS}


def root() -> Path:
    """The folder in which weights are kept."""
    return Path(os.environ.get("EVALUATION_WEIGHTS", "~/.cache/evaluation")).expanduser()


def specification(name: str) -> Weight:
    """The registered weight, or a hub repository written as `org--model`."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    if "--" in name:
        return hub(name.replace("--", "/", 1))
    raise EvaluationError(f"weights.{name}: unknown name; known are {sorted(WEIGHTS)}")


def _find_cached(weight: Weight, file: str) -> Path | None:
    if weight.repository is None:
        from torch.hub import get_dir

        path = Path(get_dir()) / "checkpoints" / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weight.repository, file)
    return Path(found) if isinstance(found, str) else None


def find(weight: Weight, given: Path | None = None) -> Path | None:
    """The file, or for several files their folder; None when any of them is absent everywhere."""
    single = len(weight.files) == 1
    if given is not None:
        if single and given.is_file():
            return given
        complete = all((given / file).is_file() for file in weight.files)
        return (given / weight.files[0] if single else given) if complete else None
    folder = root() / weight.name
    if all((folder / file).is_file() for file in weight.files):
        return folder / weight.files[0] if single else folder
    cached = [_find_cached(weight, file) for file in weight.files]
    if any(path is None for path in cached):
        return None
    first = next(path for path in cached if path is not None)
    return first if single else first.parent


def locate(name: str, given: Path | None = None) -> Path:
    """Like `find`, but absence is an error that says what to do."""
    weight = specification(name)
    path = find(weight, given)
    if path is None:
        where = str(given) if given is not None else f"{root() / name}, the torch hub and Hugging Face caches"
        size = f", {weight.megabytes} MB" if weight.megabytes else ""
        raise EvaluationError(
            f"weights.{name}: {', '.join(weight.files)} not found in {where}; get it with: {weight.command}"
            f"  ({weight.licence}{size})"
        )
    files = [path / file for file in weight.files] if len(weight.files) > 1 else [path]
    for file in files:
        if said := find_damage(file):
            raise EvaluationError(f"weights.{name}: {file} {said}; get it with: {weight.command}")
    return path


def find_damage(path: Path) -> str | None:
    """What the beginning of a file of weights gives away; None if it may be whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        if not begin:
            return "is empty"
        if path.suffix == ".safetensors":
            length = int.from_bytes(begin, "little")
            whole = len(begin) == 8 and 2 <= length <= size - 8 and file.read(1) == b"{"
            return None if whole else "is no safetensors file"
    if path.suffix in (".pt", ".pth"):
        known = begin.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
        return None if known else "is no file of torch"
    return None


def load_state(path: Path) -> dict[str, Tensor]:
    """State dict of a safetensors or torch file; a file that needs code to be loaded is refused."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise EvaluationError(f"{path}: must be a plain file of tensors, got: {reason}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise EvaluationError(f"{path}: must hold a state dict of tensors, got {type(state).__name__}")
    return dict(state)


def fingerprint(path: Path) -> str:
    """Name and size of a weight's files: enough to notice that another network was used."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return ",".join(f"{file.name}:{file.stat().st_size}" for file in files if file.is_file())
