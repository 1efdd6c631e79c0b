"""The published image-reward package as a scorer: a child process with its own interpreter."""

from __future__ import annotations

import json
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.fidelity import to_u8
from evaluation.metric import Batch, Scorer
from evaluation.pretrained import load_state

__all__ = ["PackageProcess", "package_scorer"]

_SCRIPT = Path(__file__).with_name("image_reward_process.py")


class PackageProcess:
    """One child process; it ends with this object."""

    def __init__(self, python: str, checkpoint: Path, vocabulary: Path) -> None:
        load_state(checkpoint)  # refuses a file that would execute something in the child
        command = [python, str(_SCRIPT), "score", str(checkpoint), str(vocabulary)]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise EvaluationError(f"image_reward.python: must be an interpreter, got {python}: {error}") from error
        weakref.finalize(self, _stop, self._process)
        self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            code = self._process.wait()
            raise EvaluationError(f"image_reward.python: the package stopped with exit code {code}, see its messages")
        return json.loads(line)

    def reward(self, prompt: str, image: Path) -> float:
        """The package's score of one picture."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no input")
        self._process.stdin.write(json.dumps({"prompt": prompt, "image": str(image)}) + "\n")
        self._process.stdin.flush()
        return float(self._read()["reward"])


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()
    process.wait()


def package_scorer(python: str, checkpoint: Path, vocabulary: Path) -> Scorer:
    """A scorer that hands each picture to the package as a lossless file."""
    worker = PackageProcess(python, checkpoint, vocabulary)

    def score(batch: Batch) -> Tensor:
        rewards: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            for image, prompt in zip(to_u8(batch.images).cpu(), batch.texts(), strict=True):
                path = Path(folder) / "picture.png"
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
                rewards.append(worker.reward(prompt, path))
        return torch.tensor(rewards, dtype=torch.float64)

    return score
