"""What counts as a whole folder of weights."""

import json

import pytest
import torch
from safetensors.torch import save

from experiments.backends.weights import incomplete_model

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
