"""env.json: the machine and the code that made a run."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe"]

PACKAGES = ("torch", "diffusers", "transformers", "hydra-core", "numpy", "torchmetrics", "scikit-learn")


def describe() -> dict[str, Any]:
    """Versions, device, revision of the code; no secret of the environment is copied."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def git(*arguments: str) -> str | None:
    """Output of a git command in this repository; None where there is no git or no repository."""
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
