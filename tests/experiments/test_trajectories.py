"""The recorder: what it sees is what the model and the sampler saw; it resumes, and refuses other settings."""

import json

import pytest
import torch

from experiments.backends import load_backend
from experiments.calibration.curves import HistoryObserver
from experiments.calibration.trajectories import (
    Recording,
    TrajectoryRecorder,
    generate,
    grams,
    load,
    main,
    record,
    split_arguments,
    watch,
)
from experiments.config.compose import compose
from experiments.errors import ConfigError
from experiments.runs.runner import items_of
from experiments.settings.resolve import resolve


@pytest.fixture
def settings(small):
    return resolve(compose([*small, "method=none"]))


def test_values_are_those_of_the_model_and_the_sampler(settings):
    backend, batch = load_backend(settings.backend), items_of(settings)[:3]
    found = generate(backend, settings, batch, ["output", "sample", "stack", "1.mlp.img"])
    assert found["output"].shape == (3, 8, 1, 1, 16, 16)
    assert found["stack"].shape == found["1.mlp.img"].shape == (3, 8, 2, 64, 16)
    noise = [torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(item.seed)) for item in batch]
    assert torch.allclose(found["sample"][:, 0, 0], torch.stack(noise), atol=1e-6)
    labels = torch.tensor([item.inputs["class_labels"] for item in batch])
    t = backend.pipe.scheduler.timesteps[4]
    x = found["sample"][:, 4, 0]
    cond, free = (
        backend.transformer(x, timestep=t.expand(3), class_labels=c, return_dict=False)[0]
        for c in (labels, torch.full_like(labels, 10))
    )
    assert torch.allclose(found["output"][:, 4, 0], free + 1.5 * (cond - free), atol=1e-5)


def test_nothing_is_left_on_the_model(settings):
    backend = load_backend(settings.backend)
    before = backend.generate(items_of(settings)[:2], sampling(settings))
    generate(backend, settings, items_of(settings)[:2], ["output", "modules"])
    assert "step" not in vars(backend.pipe.scheduler)
    assert not any(block.attn1._forward_hooks for block in backend.transformer.transformer_blocks)
    after = backend.generate(items_of(settings)[:2], sampling(settings))
    assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize("watcher", ["recorder", "observer"])
def test_a_step_of_the_schedulers_own_is_made_and_stays(settings, watcher):
    backend, calls = load_backend(settings.backend), []
    backend.prepare(sampling(settings))
    scheduler = backend.pipe.scheduler
    before = scheduler.step

    def own(*args, **kwargs):
        calls.append(len(calls))
        return before(*args, **kwargs)

    scheduler.step = own
    if watcher == "recorder":
        watching = TrajectoryRecorder(backend, ["output"]).watching()
    else:
        watching = HistoryObserver(backend, 1, lambda *seen: None).watching([])
    with watching:
        backend.generate(items_of(settings)[:2], sampling(settings))
    assert len(calls) == 8 and vars(scheduler)["step"] is own


def sampling(settings):
    from experiments.backends.base import sampling_of

    return sampling_of(settings)


def test_gram_shards_agree_with_tensor_shards_and_resume(settings, tmp_path):
    sites = ("output", "modules")
    tensors, reduced = tmp_path / "tensors", tmp_path / "gram"
    record(settings, Recording(sites=sites, keep="tensors"), tensors)
    manifest = record(settings, Recording(sites=sites, keep="gram"), reduced)
    full, small = load(tensors), load(reduced)
    assert full["0.attn.img"].shape == (9, 8, 2, 64, 16)
    for site, values in full.items():
        assert torch.allclose(small[f"{site}/gram"], grams(values), rtol=1e-9)
        assert small[f"{site}/gram"].shape == (9, 8, 8)
    first = reduced / "shard-00000.safetensors"
    kept = first.stat().st_mtime_ns
    (reduced / "shard-00001.safetensors").unlink()
    manifest["shards"].pop("shard-00001.safetensors")
    (reduced / "manifest.json").write_text(json.dumps(manifest))
    record(settings, Recording(sites=sites, keep="gram"), reduced)
    assert first.stat().st_mtime_ns == kept
    assert all(torch.equal(a, b) for a, b in zip(load(reduced).values(), small.values()))
    with pytest.raises(ConfigError, match="recorded with sites"):
        record(settings, Recording(sites=("output",), keep="gram"), reduced)


@pytest.mark.parametrize(
    ("key", "value"), [("revision", "other"), ("path", "/elsewhere"), ("token_seed", 1), ("contents", {"prompts": "x"})]
)
def test_a_recording_is_not_continued_with_other_weights_or_tokens(settings, tmp_path, key, value):
    folder, recording = tmp_path / "r", Recording(sites=("output",))
    manifest = record(settings, recording, folder)
    assert record(settings, recording, folder) == manifest
    (folder / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(ConfigError, match=f"folder: .* was recorded with {key}="):
        record(settings, recording, folder)
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != key}))
    with pytest.raises(ConfigError, match=f"folder: .* does not say with which {key} it was recorded"):
        record(settings, recording, folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shards": 3}', "\x00"])
def test_a_broken_manifest_is_one_line(settings, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    for use in (lambda: record(settings, Recording(), tmp_path), lambda: load(tmp_path)):
        with pytest.raises(ConfigError, match="folder: must hold ") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_tokens_are_a_seeded_subset(settings):
    backend, batch = load_backend(settings.backend), items_of(settings)[:2]
    whole = generate(backend, settings, batch, ["stack"])["stack"]
    part = generate(backend, settings, batch, ["stack"], tokens=5)["stack"]
    assert part.shape == (2, 8, 2, 5, 16)
    from experiments.calibration.trajectories import choose_tokens

    assert torch.equal(part, whole[:, :, :, choose_tokens(64, 5)])


def test_the_disk_is_not_filled(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"reserve: must leave room .*GB are there"):
        record(settings, Recording(sites=("output",), reserve=1e9), tmp_path / "r")
    assert not list((tmp_path / "r").glob("*.safetensors"))


def test_frames_are_let_go_site_by_site(settings):
    backend, batch = load_backend(settings.backend), items_of(settings)[:2]
    recorder = watch(backend, settings, batch, ["output", "stack"])
    assert recorder.take("stack", 2).shape == (2, 8, 2, 64, 16)
    assert set(recorder.frames) == {"output"}


def test_errors_name_the_key(small, tmp_path):
    with pytest.raises(ConfigError, match="sites: must be one of output, sample, .*got 'outptu'"):
        main([*small, "sites=outptu", f"folder={tmp_path / 'x'}"])
    with pytest.raises(ConfigError, match="keep: must be one of tensors, gram"):
        main([*small, "keep=grams"])
    with pytest.raises(ConfigError, match="method: must be none: .*got 'hicache'"):
        main([*small, "method=hicache"])
    with pytest.raises(ConfigError, match="guidance: must be plain: .*got 'adaptive'"):
        main([*small, "guidance=adaptive"])
    with pytest.raises(ConfigError, match="argument: must read key=value, got 'sites'"):
        split_arguments(["sites"], ("sites",))


def test_the_command_says_where_it_wrote(small, tmp_path, capsys):
    main([*small, "sites=output", "keep=gram", f"folder={tmp_path / 'out'}"])
    assert f"trajectories: {tmp_path / 'out'} (3 shards" in capsys.readouterr().out
