"""The way from folders to results: what is counted, resumed, refused."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluation
from evaluation import doctor, fidelity, media_files
from evaluation.cli import main
from evaluation.errors import EvaluationError
from evaluation.run_folder import read_run, read_values
from tests.evaluation.conftest import noise, refused, run_words, save_all


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_are_those_of_the_functions(folders, tmp_path):
    images, reference = folders
    result = evaluation.evaluate(images, reference, None, ["psnr", "ssim"], batch_size=5, out=tmp_path / "out")
    a, b = (
        torch.stack(
            [torch.from_numpy(media_files.read_image(path).copy()) for path in media_files.list_media(folder)[1]]
        )
        .permute(0, 3, 1, 2)
        .float()
        / 255
        for folder in (images, reference)
    )
    expected = fidelity.psnr(a, b)
    assert result["psnr"]["n"] == 11
    assert result["psnr"]["infinite"] == 1
    assert result["psnr"]["mean"] == pytest.approx(float(expected[1:].mean()))
    assert result["psnr"]["low"] < result["psnr"]["mean"] < result["psnr"]["high"]
    assert result["ssim"]["mean"] == pytest.approx(float(fidelity.ssim(a, b).mean()))
    with (tmp_path / "out" / "values.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["item"] for row in table] == [f"img_{index}" for index in range(12)]
    assert table[0]["psnr"] == "inf"
    assert float(table[10]["psnr"]) == pytest.approx(float(expected[10]))


def test_stored_values_are_not_computed_again(folders, tmp_path, monkeypatch):
    images, reference = folders
    first = evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out")
    calls: list[int] = []

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(len(a))
        return fidelity.psnr(a, b)

    monkeypatch.setattr(fidelity.Psnr, "function", staticmethod(counted))
    assert evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out") == first
    assert calls == []
    Image.fromarray(noise(1, seed=9)[0]).save(images / "img_3.png")  # new content, same name
    changed = evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out")
    assert calls == [1]
    assert changed["psnr"]["mean"] < first["psnr"]["mean"]


def test_the_table_keeps_the_columns_of_earlier_calls(folders, tmp_path):
    images, reference = folders
    together, out = tmp_path / "together" / "values.csv", tmp_path / "out" / "values.csv"
    evaluation.evaluate(images, reference, None, ["psnr", "ssim"], out=together.parent)
    for metric in ("psnr", "ssim", "psnr"):
        evaluation.evaluate(images, reference, None, [metric], out=out.parent)
    assert out.read_bytes() == together.read_bytes()
    assert read_values(out.parent, "psnr")["img_0"] == float("inf")


def test_the_table_forgets_columns_of_other_pictures(folders, tmp_path):
    images, reference = folders
    out = tmp_path / "out" / "values.csv"

    def head_after(metric: str) -> str:
        evaluation.evaluate(images, reference, None, [metric], out=out.parent, subset=True)
        return out.read_text().partition("\n")[0]

    assert head_after("psnr") == "item,psnr"
    picture = images / "img_3.png"
    Image.fromarray(noise(1, seed=9)[0]).save(picture)  # new content, same name
    os.utime(picture, ns=(0, out.stat().st_mtime_ns + 1))
    assert head_after("ssim") == "item,ssim"
    os.utime(picture, ns=(0, 0))
    assert head_after("psnr") == "item,ssim,psnr"
    picture.unlink()
    assert head_after("ssim") == "item,ssim"


@pytest.mark.parametrize("content", ["", "item,psnr\nimg_0\n", "\xff"])
def test_a_damaged_table_is_an_error(folders, capsys, content):
    out = Path(f"{folders[0]}-evaluation")
    out.mkdir()
    (out / "values.csv").write_bytes(content.encode("latin-1"))
    refused(run_words(folders), capsys, "values.csv", "table of values by item (delete it)")


def test_an_interrupted_run_resumes_and_a_torn_line_is_ignored(folders, tmp_path):
    images, reference = folders
    whole = evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "whole")
    evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out")
    values = tmp_path / "out" / "values.jsonl"
    text = values.read_text()
    values.write_text(text[: len(text) // 2])  # killed in the middle of a write
    again = evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out")
    assert again == whole
    assert evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out") == whole


def test_natural_order_gives_prompts_to_their_files(folders):
    images, _ = folders
    _, items = media_files.pair_items(images, None, [f"prompt {index}" for index in range(12)])
    assert [(item.name, item.prompt) for item in items][9:11] == [("img_9", "prompt 9"), ("img_10", "prompt 10")]


def test_png_and_jpeg_pair_by_stem_and_grey_is_rgb(tmp_path):
    save_all(tmp_path / "a", noise(2))
    grey = np.repeat(np.arange(48, dtype=np.uint8)[None], 48, axis=0)
    (tmp_path / "b").mkdir()
    for index in range(2):
        Image.fromarray(grey).save(tmp_path / "b" / f"img_{index}.jpg")
    result = evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["psnr"], out=tmp_path / "out")
    assert result["psnr"]["n"] == 2


def test_sizes_may_differ_between_items(tmp_path):
    for folder in ("a", "b"):
        save_all(tmp_path / folder, noise(3), "x_{}.png")
        save_all(tmp_path / folder, noise(2, size=32), "y_{}.png")
    assert evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["ssim"])["ssim"]["mean"] == pytest.approx(1)


def make_run(folder: Path, pictures: np.ndarray, reference: str | None) -> Path:
    save_all(folder / "media", pictures, "{}.png")
    records = [json.dumps({"item": str(index), "title": f"a digit {index}"}) for index in range(len(pictures))]
    (folder / "items.jsonl").write_text("\n".join(records) + '\n{"item": "torn')
    (folder / "metrics.json").write_text(json.dumps({"reference": reference, "psnr": {"mean": 1}}))
    return folder


def test_a_title_is_no_prompt(tmp_path):
    folder = make_run(tmp_path / "none-1", noise(2), None)
    assert read_run(folder).prompts is None
    records = [json.dumps({"item": name, "title": "3", "prompt": f"a {name}"}) for name in ("0", "1")]
    (folder / "items.jsonl").write_text("\n".join(records) + "\n")
    assert read_run(folder).prompts == {"0": "a 0", "1": "a 1"}


def test_run_folders_and_their_comparison(tmp_path, capsys):
    base = noise(8)
    rng = np.random.default_rng(0)
    near, far = (np.clip(base + rng.integers(-d, d + 1, base.shape), 0, 255).astype(np.uint8) for d in (4, 12))
    make_run(tmp_path / "none-1", base, None)
    runs = [make_run(tmp_path / name, data, "none-1") for name, data in (("near-1", near), ("far-1", far))]
    for run in runs:
        assert main([f"run={run}", "metrics=[psnr,ssim]"]) == 0
    stored = json.loads((runs[0] / "evaluation" / "metrics.json").read_text())
    assert stored["psnr"]["n"] == 8
    assert stored["psnr"]["reference"] == str((tmp_path / "none-1" / "media").resolve())
    assert json.loads((runs[0] / "metrics.json").read_text())["psnr"] == {"mean": 1}  # the run's own file is untouched
    capsys.readouterr()
    assert main(["compare", f"baseline={runs[0]}", f"runs=[{runs[1]}]", "metrics=[psnr]"]) == 0
    text = capsys.readouterr().out
    assert "far-1" in text
    assert "0.00781" in text  # two-sided signed-rank p of 8 differences of one sign: 2 / 2^8
    assert main(["compare", f"baseline={runs[0]}", f"runs=[{runs[1]}]", "metrics=[psnr]", "test=friedman"]) == 2
    assert "runs: must be two or more for test=friedman" in capsys.readouterr().err
    fresh = tmp_path / "fresh-1"  # as run.py leaves it: values, and no evaluation
    (fresh / "values").mkdir(parents=True)
    names = read_values(runs[0] / "evaluation", "psnr")
    (fresh / "values" / "psnr.json").write_text(json.dumps({name: value + 1 for name, value in names.items()}))
    words = [f"baseline={runs[0]}", f"runs=[{runs[1]},{fresh}]", "metrics=[psnr]", "test=friedman"]
    assert main(["compare", *words]) == 0
    text = capsys.readouterr().out
    assert "fresh-1" in text and "+1.0000" in text and "Nemenyi" in text
    (runs[1] / "media" / "3.png").unlink()
    refused([f"run={runs[1]}", "metrics=[psnr]"], capsys, "media/3", "recorded")


def test_runs_of_other_items_or_references_are_not_compared(tmp_path, capsys):
    """`00000` is a name: of another seed it is another item, and a PSNR to another reference another measure."""

    def made(name: str, seed: int, title: str = "3", reference: str = "none-1", metric: str = "psnr") -> str:
        (tmp_path / name / "values").mkdir(parents=True)
        (tmp_path / name / "values" / f"{metric}.json").write_text('{"00000": 30.0, "00001": 31.0}')
        rows = [json.dumps({"item": f"{i:05d}", "seed": seed + i, "title": title}) for i in range(2)]
        (tmp_path / name / "items.jsonl").write_text("\n".join(rows) + "\n")
        (tmp_path / name / "metrics.json").write_text(json.dumps({"reference": reference}))
        return str(tmp_path / name)

    base = made("base", 5)
    assert main(["compare", f"baseline={base}", f"runs=[{made('near', 5)}]", "metrics=[psnr]"]) == 0
    (tmp_path / "near" / "values" / "psnr.json").write_text('{"00000": null, "00001": 32.0}')
    assert main(["compare", f"baseline={base}", f"runs=[{tmp_path / 'near'}]", "metrics=[psnr]"]) == 0
    assert "psnr: 1 items are infinite in one of the runs and left out" in capsys.readouterr().out
    for run, said in (
        (made("seed", 6), "must have the items of base, whose 00000 has the seed 5, got 6"),
        (made("title", 5, "4"), "whose 00000 has the title '3', got '4'"),
        (made("steps", 5, reference="none-2"), "must be measured against the reference of base, none-1, got none-2"),
    ):
        refused(["compare", f"baseline={base}", f"runs=[{run}]", "metrics=[psnr]"], capsys, run, said)
    alone, other = (made(name, 5, reference=name, metric="image_reward") for name in ("a", "b"))
    assert main(["compare", f"baseline={alone}", f"runs=[{other}]", "metrics=[image_reward]"]) == 0


def test_run_reference_must_be_a_sibling(tmp_path, capsys):
    make_run(tmp_path / "a", noise(2), "../../etc")
    refused([f"run={tmp_path / 'a'}", "metrics=[psnr]"], capsys, "reference", "sibling", "../../etc")


def test_arrays_beside_pictures_are_raw_data(tmp_path):
    save_all(tmp_path, noise(2))
    np.save(tmp_path / "img_0.npy", np.zeros((1, 8, 8)))
    assert [path.suffix for path in media_files.list_media(tmp_path)[1]] == [".png", ".png"]


def test_doctor_and_check(capsys, folders, tmp_path):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("inception", "91 MB", "Apache-2.0", "hf download openai/clip-vit-large-patch14", "MISSING"):
        assert part in text
    assert evaluation.check(["psnr", "ssim"]) == []
    problems = evaluation.check(["psnr", "fid", "clip_score"])
    assert len(problems) == 2
    assert "weights-inception-2015-12-05-6726825d.pth" in problems[0]
    (line,) = evaluation.check(["nonsense"])
    assert line.startswith("metrics: must be among aesthetic_quality, ") and line.endswith(", got 'nonsense'")
    assert evaluation.check(["psnrr"])[0].endswith(", vbench, got 'psnrr' (did you mean psnr?)")
    refused(["doctor", "metrics=[fid]"], capsys, "fid", "curl")
    refused(["doctor", "metrics=[lpips]", "lpips.net=vgg"], capsys, "vgg16-397923af.pth")
    refused(["doctor", "images=x"], capsys, "images", "unknown key")
    assert main(["doctor", "metrics=[psnr]"]) == 0


def test_ssim_needs_no_library_of_metrics(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert evaluation.check(["ssim", "ssim_y", "ssim_rgb", "ssim_y_uncached", "ssim_rgb_uncached"]) == []
    assert "needs the library skimage" in evaluation.check(["ssim_skimage7"])[0]


def test_weights_that_need_code_are_refused(tmp_path):
    from evaluation.pretrained import load_state

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(EvaluationError, match="plain file of tensors"):
        load_state(tmp_path / "evil.pt")


def test_one_equal_frame_does_not_make_a_video_equal(folders):
    """Its PSNR is that of the other frames; the video would else be left out of the mean as equal to its reference."""
    for folder, shift in zip(folders, (3, 0), strict=True):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        frames = noise(4, 16) // 2
        frames[1:] += np.uint8(shift)
        np.save(folder / "clip.npy", frames)
        np.save(folder / "same.npy", noise(4, 16))
    found = evaluation.evaluate(*folders, metrics=["psnr"])["psnr"]
    assert found["mean"] == pytest.approx(20 * np.log10(255 / 3), abs=1e-4)
    assert (found["n"], found["infinite"]) == (1, 1)


def test_videos_are_scored_by_frame(tmp_path):
    import imageio.v3 as iio

    frames = np.kron(noise(5, size=8), np.ones((1, 8, 8, 1), np.uint8))
    for folder, change in (("a", 0), ("b", 6)):
        (tmp_path / folder).mkdir()
        iio.imwrite(
            tmp_path / folder / "clip.mp4", np.clip(frames.astype(int) + change, 0, 255).astype(np.uint8), fps=8
        )
    result = evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["psnr"], batch_size=2)
    a, b = (
        torch.from_numpy(media_files.read_video(tmp_path / f / "clip.mp4")).permute(0, 3, 1, 2).float() / 255
        for f in "ab"
    )
    assert len(a) == 5
    assert result["psnr"]["mean"] == pytest.approx(float(fidelity.psnr(a, b).mean()))


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 85), ("SIGHUP", 85), ("SIGUSR1", 85), ("SIGINT", 130)])
def test_a_signal_ends_the_program_in_order(number, code, monkeypatch, capsys):
    import os
    import runpy
    import signal
    import sys

    from evaluation import cli

    def killed(words):
        os.kill(os.getpid(), signal.Signals[number])

    names = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    handlers = {name: signal.getsignal(name) for name in names}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    monkeypatch.setattr(cli, "main", killed)
    monkeypatch.setattr(sys, "argv", ["evaluation"])
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("evaluation", run_name="__main__", alter_sys=True)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert stop.value.code == code and capsys.readouterr().err.endswith("the same command continues\n")
