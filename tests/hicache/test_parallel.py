"""Context parallelism: two processes that share a model, each with a cache of its own part of the tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.36", reason="diffusers shares models from 0.36 on")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_each_process_caches_its_own_part(tmp_path):
    """Estimates are those of a single process, and what would make the processes part is refused in one line."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.hicache.parallel", str(tmp_path / "store")]
    settings = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    started = [subprocess.Popen([*words, rank], stdout=-1, stderr=-1, **settings) for rank in "01"]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said[0][1][-2000:]
    reasons = [
        [case["parted"]["why"].count(why) for case in json.loads(out).values()]
        for (out, _), why in zip(said, ("off", "another process cannot reproduce its result"), strict=True)
    ]
    assert reasons[0][0] and reasons[1][0], "the process whose own proof holds follows the other one"
    for out, _ in said:
        found = json.loads(out)
        assert all(case["parted"]["distance"] <= 1e-5 for case in found.values())
        assert list(found) == ["FluxTransformer2DModel", "WanTransformer3DModel"]
        for name, case in found.items():
            half = len(case["tokens"]) // 2
            assert case["plain"] <= 1e-6 and case["tokens"] == [2 * case["tokens"][-1]] * half + case["tokens"][half:]
            for scope in ("output", "modules", "stack", "blocks"):
                assert case[scope]["whole"], (name, scope)
                assert case[scope]["cached"] <= 1e-5 < 1e-2 < case[scope]["estimated"], (name, scope)
        assert found["FluxTransformer2DModel"]["refused"] == [
            "method: must recompute no rows of tokens under context parallelism, got toca",
            *(
                f"method: must not decide from values under context parallelism, got {name}"
                for name in ("teacache", "speca", "dbcache")
            ),
        ]
