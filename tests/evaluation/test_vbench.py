"""VBench: aggregation against published totals, names, own dimensions by hand, runner and ingestion."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import evaluation
from evaluation.cli import main
from evaluation.errors import EvaluationError
from evaluation.vbench import dimensions, package
from evaluation.vbench.aggregate import DIMENSIONS, aggregate, total_of
from evaluation.vbench.prompt_list import list_required, read_info, video_name
from evaluation.vbench.total import OWN, VBench, ingest

TWICE = "The bund Shanghai, oil painting"
INFO = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": TWICE,
        "dimension": ["appearance_style"],
        "auxiliary_info": {"appearance_style": {"appearance_style": "oil painting"}},
    },
    {"prompt_en": TWICE, "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
]


@pytest.fixture
def info(tmp_path) -> Path:
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO))
    return path


@pytest.fixture
def videos(tmp_path, info) -> Path:
    """Two samples of every prompt, noisy and of little detail."""
    folder = tmp_path / "videos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in dict.fromkeys(video_name(prompt.text, sample) for prompt in read_info(info) for sample in range(2)):
        frames = np.kron(rng.integers(0, 256, (4, 4, 4, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8)
        iio.imwrite(folder / name, frames, fps=8)
    return folder


# Published: HunyuanVideo's quality and semantic score and the total beside them, in percent.
def test_total_of_published_scores():
    assert 100 * total_of(0.8509, 0.7582) == pytest.approx(83.24, abs=0.005)


def test_extremes_of_every_dimension():
    best = aggregate({name: row.high for name, row in DIMENSIONS.items()})
    worst = aggregate({name: row.low for name, row in DIMENSIONS.items()})
    assert (best.quality, best.semantic, best.total) == pytest.approx((1, 1, 1))
    assert (worst.quality, worst.semantic, worst.total) == pytest.approx((0, 0, 0))
    assert len(DIMENSIONS) == 16
    assert sum(row.weight for row in DIMENSIONS.values() if row.group == "quality") == 6.5
    assert sum(row.weight for row in DIMENSIONS.values() if row.group == "semantic") == 9


def test_aggregation_by_hand():
    scores = {name: (row.low + row.high) / 2 for name, row in DIMENSIONS.items()}
    assert aggregate(scores).total == pytest.approx(0.5)
    scores["dynamic_degree"] = 1.0  # half a weight of 6.5, from 0.5 to 1
    assert aggregate(scores).quality == pytest.approx(0.5 + 0.25 / 6.5)
    assert aggregate(scores).total == pytest.approx(0.5 + 0.8 * 0.25 / 6.5)


def test_what_is_missing_is_missing():
    scores = {name: row.high for name, row in DIMENSIONS.items() if name != "color"}
    result = aggregate(scores)
    assert result.missing == ("color",)
    assert result.quality == pytest.approx(1)
    assert result.semantic is None
    assert result.total is None
    with pytest.raises(EvaluationError, match="colour"):
        aggregate({"colour": 1.0})
    with pytest.raises(EvaluationError, match="finite"):
        aggregate({"color": float("nan")})


def test_a_prompt_that_occurs_twice_has_one_set_of_files(info):
    prompts = read_info(info)
    assert len({video_name(prompt.text, sample) for prompt in prompts for sample in range(5)}) == 10
    assert [name for _, name in list_required(prompts, "appearance_style", 1)] == [f"{TWICE}-0.mp4"]
    assert [name for _, name in list_required(prompts, "imaging_quality", 1)] == [f"{TWICE}-0.mp4"]
    assert list_required(prompts, "color") == []


@pytest.mark.parametrize("prompt", ["a/b", "", "..", "x" * 250, "é" * 130])
def test_prompts_that_cannot_be_file_names(prompt):
    with pytest.raises(EvaluationError, match="file name"):
        video_name(prompt, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "must be VBench"),
        ("{}", "list of prompts"),
        ('[{"dimension": ["color"]}]', "entry 0: must have a text prompt_en"),
        ('[{"prompt_en": "a", "dimension": ["colour"]}]', "unknown dimension 'colour'"),
    ],
)
def test_bad_prompt_lists(tmp_path, content, message):
    path = tmp_path / "info.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_info(path)


def test_flickering_and_consistency_by_hand():
    frames = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    frames[1] = 51  # 51 up, then 51 down
    assert float(dimensions.flickering(frames)) == pytest.approx(0.8)
    e = torch.eye(2)
    # frame 1: previous 0, first 0; frame 2: previous 0, first 1
    assert float(dimensions.consistency(torch.stack([e[0], e[1], e[0]]))) == pytest.approx(0.25)
    assert float(dimensions.consistency(torch.stack([e[0], -e[0]]))) == 0
    with pytest.raises(ValueError, match="2 frames"):
        dimensions.flickering(frames[:1])


def test_frames_are_resized_as_torchvision_does_without_antialiasing():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    frames = torch.randint(0, 256, (2, 3, 300, 333), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = dimensions.resize_short_side(frames, 224, "bicubic")
    theirs = resize(frames, [224], InterpolationMode.BICUBIC, antialias=False)
    assert ours.shape == theirs.shape == (2, 3, 224, 248)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert dimensions.dino_inputs(frames).shape == (2, 3, 224, 248)
    assert dimensions.clip_frame_inputs(frames.float() / 255, 224).shape == (2, 3, 224, 224)


@pytest.fixture
def dino(tmp_path) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ViTModel(ViTConfig(**size, image_size=224, patch_size=16), add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_dino_at_its_own_and_at_other_sizes(dino):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(dino, add_pooling_layer=False, layer_norm_eps=1e-6).eval()
    ours = dimensions._Dino(dino).eval()
    square, wide = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 224, 300)
    with torch.no_grad():
        assert ours(square)[0].tolist() == pytest.approx(model(square).last_hidden_state[0, 0].tolist(), abs=1e-5)
        value = ours(wide)
        library = model(wide, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        again = ours(square)
    assert value.shape == (1, 32)
    # transformers samples the position embedding at slightly other points, see `_Dino`
    assert torch.nn.functional.cosine_similarity(value, library).item() > 0.98
    assert not torch.allclose(value, library, atol=1e-6)
    assert again[0].tolist() == pytest.approx(model(square).last_hidden_state[0, 0].tolist(), abs=1e-5)


def test_subject_consistency_on_videos(videos, dino, tmp_path):
    for path in list(videos.iterdir())[2:]:
        path.unlink()
    still = np.full((3, 64, 64, 3), 90, np.uint8)
    iio.imwrite(videos / "still.mp4", still, fps=8)
    result = evaluation.evaluate(
        videos, None, None, ["subject_consistency"], weights={"dino_b16": dino}, out=tmp_path / "o"
    )
    assert result["subject_consistency"]["n"] == 3
    values = dict(line.rsplit(",", 1) for line in (tmp_path / "o" / "values.csv").read_text().splitlines()[1:])
    assert float(values["still"]) == pytest.approx(1, abs=1e-6)
    assert result["subject_consistency"]["mean"] < 1


def test_clip_dimensions_by_hand(videos, clip_folder, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    name = f"{TWICE}-0.mp4"
    for path in videos.iterdir():
        if path.name != name:
            path.unlink()
    torch.save({"weight": torch.linspace(-1, 1, 16)[None], "bias": torch.tensor([5.0])}, tmp_path / "linear.pth")
    weights = {"clip_b32": clip_folder, "clip_l14": clip_folder, "aesthetic_linear": tmp_path / "linear.pth"}
    names = ["background_consistency", "aesthetic_quality", "appearance_style"]
    result = evaluation.evaluate(videos, None, ["oil"], names, weights=weights)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    frames = torch.from_numpy(iio.imread(videos / name)).permute(0, 3, 1, 2).float() / 255
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(["oil"], return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=dimensions.clip_frame_inputs(frames, 32), **tokens)
    features = output.image_embeds
    expected = {
        "background_consistency": float(dimensions.consistency(features)),
        "aesthetic_quality": float((features @ torch.linspace(-1, 1, 16) + 5).mean() / 10),
        "appearance_style": float(output.logits_per_image.mean() / 100),
    }
    for key, value in expected.items():
        assert result[key]["mean"] == pytest.approx(value, abs=1e-5)


def test_own_and_ingested_dimensions_make_the_metric(videos, info, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "scene_eval_results.json").write_text(json.dumps({"scene": [0.4111, []]}))
    options = {"vbench": {"own": ["temporal_flickering"], "results": str(results), "samples": 2}}
    value = evaluation.evaluate(videos, None, None, ["vbench"], options=options, weights={"vbench_info": info})[
        "vbench"
    ]
    assert value["scene"] == pytest.approx(41.11)
    frames = [torch.from_numpy(iio.imread(videos / f"{INFO[0]['prompt_en']}-{i}.mp4")) for i in range(2)]
    own = np.mean([1 - (f[1:].double() - f[:-1].double()).abs().mean().item() / 255 for f in frames])
    assert value["temporal_flickering"] == pytest.approx(100 * own, abs=1e-4)
    assert value["mean"] is None
    assert value["color"] is None
    assert len(value["missing"]) == 14
    (videos / f"{INFO[0]['prompt_en']}-1.mp4").unlink()
    with pytest.raises(EvaluationError, match="stop sign-1.mp4: is needed for temporal_flickering"):
        evaluation.evaluate(videos, None, None, ["vbench"], options=options, weights={"vbench_info": info})


def test_all_sixteen_ingested_give_the_total(videos, info, tmp_path):
    (tmp_path / "r").mkdir()
    scores = {name: [row.high, []] for name, row in DIMENSIONS.items()}
    (tmp_path / "r" / "all_eval_results.json").write_text(json.dumps(scores))
    options = {"vbench": {"own": [], "results": str(tmp_path / "r")}}
    value = evaluation.evaluate(videos, None, None, ["vbench"], options=options, weights={"vbench_info": info})[
        "vbench"
    ]
    assert (value["mean"], value["quality"], value["semantic"]) == pytest.approx((100, 100, 100))
    assert value["missing"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must map dimensions"),
        ('{"scene": 0.5}', r"with \[score"),
        ('{"scene": [NaN, []]}', "finite"),
        ('{"scenery": [0.5, []]}', "scenery"),
    ],
)
def test_bad_result_files(tmp_path, content, message):
    (tmp_path / "x_eval_results.json").write_text(content)
    with pytest.raises(EvaluationError, match=message):
        ingest(tmp_path)


def test_contradicting_result_files(tmp_path):
    (tmp_path / "a_eval_results.json").write_text('{"scene": [0.5, []]}')
    (tmp_path / "b_eval_results.json").write_text('{"scene": [0.6, []]}')
    with pytest.raises(EvaluationError, match="two scores"):
        ingest(tmp_path)


def test_own_dimensions_are_registered():
    assert set(OWN) < set(DIMENSIONS)
    assert set(OWN) < set(evaluation.METRICS)
    with pytest.raises(EvaluationError, match=r"vbench\.own: must be among"):
        VBench.create({"own": ["scene"]})


WORKER = """
import json, os, sys
dimension, videos, info, out, device = sys.argv[1:]
if dimension == "scene":
    raise SystemExit("no weights")
assert os.environ["https_proxy"].endswith(":9") and os.environ["HF_HUB_OFFLINE"] == "1"
count = os.path.join(out, "count.txt")
open(count, "a").write("x")
json.dump({dimension: [len(os.listdir(videos)) / 10, []]}, open(os.path.join(out, dimension +
"_eval_results.json"), "w"))
"""


def test_runner_keeps_results_reports_failures_and_resumes(videos, info, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "package_process.py").write_text(WORKER)
    monkeypatch.setattr(package, "__file__", str(folder / "package.py"))
    out = tmp_path / "results"
    words = [f"videos={videos}", f"info={info}", f"python={sys.executable}", f"out={out}", "samples=2"]
    for _ in range(2):
        assert main(["vbench", *words, "dimensions=[temporal_flickering,imaging_quality,scene]"]) == 1
    captured = capsys.readouterr()
    assert "error: scene failed" in captured.err
    assert "imaging_quality          40.00" in captured.out
    assert "scene                    missing" in captured.out
    assert (out / "count.txt").read_text() == "xx"  # each dimension ran once
    assert "no weights" in (out / "scene.log").read_text()
    assert ingest(out) == {"temporal_flickering": 0.4, "imaging_quality": 0.4}
    (videos / f"{TWICE}-1.mp4").unlink()
    assert main(["vbench", *words, "dimensions=[imaging_quality]"]) == 2
    assert f"{TWICE}-1.mp4: is needed for imaging_quality" in capsys.readouterr().err
