"""Shared fixtures: tiny random pipelines of the real classes; skips for what a machine lacks; which tests run when.

A test over a product (methods x models, ...) is a `matrix`: one case in eight, by a digest of its name, is among the
tests of `make test`, and the others are slow. `--part 2/4` runs one slow test in four, so that four parts are all of
them; injected faults run in each.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are tiny: a second thread only waits

import pytest
import torch

torch.set_num_threads(1)  # where it was imported before this file


SHARE = 8
"""Of a matrix, one case in so many is not slow."""


def pytest_addoption(parser):
    parser.addoption("--part", type=part, metavar="K/N", help="the K-th of N parts of the slow tests, K = 1 .. N")


def part(word):
    """`K/N` as a pair."""
    k, _, n = word.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"part: must be K/N with 1 <= K <= N, got {word!r}")
    return int(k), int(n)


def turn(name, of):
    """Which of so many parts a name belongs to, 0 .. of - 1: the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % of


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    reasons = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "slurm": None if shutil.which("slurmctld") else "needs slurmctld on the PATH",
        "browser": None if shutil.which("chromium") else "needs chromium on the PATH",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("matrix") and turn(item.nodeid, SHARE):
            item.add_marker(pytest.mark.slow)
    if chosen := config.getoption("part"):
        k, n = chosen
        slow = [item for item in items if item.get_closest_marker("slow") and "faults" not in item.path.parts]
        left = {item for item in slow if turn(f"slow {item.nodeid}", n) != k - 1}
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
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
