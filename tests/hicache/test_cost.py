"""FLOPs and bytes from shapes: the published numbers of DiT-XL/2, and a count by hand of a tiny model."""

import pytest
import torch

import hicache


@pytest.fixture(scope="module")
def dit_xl():
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            sample_size=32, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        )  # fmt: skip


@pytest.mark.parametrize(("interval", "tera"), [(6, 4.76), (8, 3.82), (9, 3.34)])
def test_published_dit_xl(dit_xl, interval, tera):
    method = hicache.method("hicache", interval=interval, order=4, sigma=0.75, warmup_steps=2)
    cost = hicache.cost.measure(dit_xl, method, 50, batch=2, convention="published")
    assert cost.full / 1e12 == pytest.approx(0.4747, abs=5e-5)
    assert round(cost.total / 1e12, 2) == tera
    executed = hicache.cost.measure(dit_xl, method, 50, batch=2)
    assert executed.total == pytest.approx(cost.total, rel=0.002)
    frame = 28 * 2 * 2 * 256 * 1152
    assert executed.cache_bytes == 5 * 4 * frame
    assert executed.overhead == 2 * 5 * frame


def test_tiny_dit_by_hand(dit_pipeline):
    model = dit_pipeline.transformer
    batch, tokens, width, layers = 2, 16, 16, 4
    embedders = 2 * batch * (256 * width + width * width)
    block = embedders + 2 * batch * 6 * width**2 + batch * tokens * 24 * width**2 + 4 * batch * tokens**2 * width
    embed = 2 * batch * tokens * 16 * width
    head = embedders + 2 * batch * 2 * width**2 + 2 * batch * tokens * width * 32
    full = embed + layers * block + head
    gates = layers * (embedders + 2 * batch * 2 * width**2)
    expected = {"modules": embed + gates + head, "stack": embed + head, "output": 0}
    for scope, estimated in expected.items():
        cost = hicache.cost.measure(model, hicache.method("hicache", scope=scope, order=1, interval=5), 20, batch)
        assert cost.full == full
        assert cost.estimated == estimated
        assert cost.full_steps == len(hicache.full_steps(20, 5, 3)) == 6
        assert cost.speedup == pytest.approx(20 * full / (6 * full + 14 * estimated))
    none = hicache.cost.measure(model, hicache.method("none"), 20, batch)
    assert (none.total, none.speedup, none.cache_bytes) == (20 * full, 1.0, 0)
