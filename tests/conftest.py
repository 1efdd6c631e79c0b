"""Shared fixtures: tiny random pipelines of the real classes, and skips for what a machine lacks."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are tiny: a second thread only waits

import pytest
import torch

torch.set_num_threads(1)  # where it was imported before this file


def pytest_collection_modifyitems(items):
    reasons = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "slurm": None if shutil.which("slurmctld") else "needs slurmctld on the PATH",
        "browser": None if shutil.which("chromium") else "needs chromium on the PATH",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: not item.get_closest_marker("slow"))  # the long ones first, so that no worker waits


@pytest.fixture(scope="session")
def dit_pipeline():
    """The tiny random DiTPipeline, kept quiet."""
    from diffusers import DDIMScheduler, DiTPipeline

    from experiments.backends.tiny.dit import build

    made = build("tiny")
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipe = DiTPipeline(transformer=made.transformer.eval(), vae=made.vae.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe
