"""Bad folders, pictures and words: one line that names what is wrong, code 2, and nothing scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation import media_files
from evaluation.cli import main
from evaluation.errors import EvaluationError
from tests.evaluation.conftest import noise, refused, run_words


def test_corrupt_image(folders, capsys):
    path = folders[0] / "img_7.png"
    path.write_bytes(path.read_bytes()[:500])
    refused(run_words(folders), capsys, str(path), "readable image")
    assert not Path(f"{folders[0]}-evaluation/metrics.json").exists()


def test_not_an_image(folders, capsys):
    (folders[1] / "img_4.png").write_text("hello")
    refused(run_words(folders), capsys, "img_4.png", "readable image")


def test_size_mismatch(folders, capsys):
    Image.fromarray(noise(1, size=32)[0]).save(folders[0] / "img_2.png")
    refused(run_words(folders), capsys, str(folders[0] / "img_2.png"), "size", "32 x 32", "48 x 48")


def test_missing_partner_on_either_side(folders, capsys):
    (folders[1] / "img_5.png").unlink()
    refused(run_words(folders), capsys, str(folders[0] / "img_5.png"), "no partner")
    (folders[0] / "img_5.png").unlink()
    (folders[0] / "img_6.png").unlink()
    refused(run_words(folders), capsys, str(folders[1] / "img_6.png"), "subset=true")
    assert main(run_words(folders, "subset=true")) == 0


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused([f"images={tmp_path / 'empty'}", "metrics=[psnr]", f"reference={tmp_path}"], capsys, "empty", "images")


def test_transparent_and_deep_images(folders, capsys):
    Image.new("RGBA", (48, 48), (1, 2, 3, 0)).save(folders[0] / "img_1.png")
    refused(run_words(folders), capsys, "img_1.png", "opaque")
    Image.fromarray(np.zeros((48, 48), np.uint16)).save(folders[0] / "img_1.png")
    refused(run_words(folders), capsys, "img_1.png", "8-bit")


def test_nan_video(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "clip.npy", np.full((4, 16, 16, 3), 0.5, np.float32))
    broken = np.full((4, 16, 16, 3), 0.5, np.float32)
    broken[2, 1, 1, 1] = np.nan
    np.save(tmp_path / "a" / "clip.npy", broken)
    words = [f"images={tmp_path / 'a'}", f"reference={tmp_path / 'b'}", "metrics=[psnr]"]
    refused(words, capsys, "clip.npy", "NaN", "frame 2")


def test_broken_video(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.mp4").write_bytes(b"\0" * 100)
    refused([f"images={tmp_path / 'a'}", "metrics=[temporal_flickering]"], capsys, "clip.mp4", "readable video")


def test_pickled_array_is_refused(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "clip.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused([f"images={tmp_path / 'a'}", "metrics=[temporal_flickering]"], capsys, "clip.npy", "plain .npy")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["metrics=[psnrr]"], ["psnrr", "did you mean psnr"]),
        (["metrics=[psnr]", "batchsize=3"], ["batchsize", "unknown key"]),
        (["metrics=[psnr]", "batch_size=0"], ["batch_size", "at least 1", "0"]),
        (["metrics=[psnr]", "batch_size=many"], ["batch_size", "whole number", "many"]),
        (["metrics=[lpips]", "lpips.net=squeeze"], ["lpips.net", "alex or vgg", "squeeze"]),
        (["metrics=[lpips]", "lpips.nett=vgg"], ["lpips.nett", "unknown option"]),
        (["metrics=[lpips]"], ["lpips_alex", "alexnet-owt-7be5be79.pth", "curl -fL"]),
        (["metrics=[image_reward]"], ["prompts", "image_reward"]),
        (["metrics=[]"], ["metrics", "at least one"]),
        (["psnr"], ["psnr", "key=value"]),
        (["metrics=[psnr]", "weights.nothing=x"], ["weights.nothing", "unknown"]),
        (["metrics=[psnr]", "run=x"], ["run, images"]),
    ],
)
def test_bad_words(folders, capsys, words, parts):
    given_words = [f"images={folders[0]}", f"reference={folders[1]}", *words]
    if "image_reward" in words[0]:
        weights = folders[0].parent / "w"
        weights.mkdir()
        (weights / "ImageReward.pt").write_bytes(b"PK\x03\x04")
        (weights / "vocab.txt").write_text("word\n")
        given_words += [f"weights.image_reward={weights}", f"weights.bert_vocabulary={weights}"]
    refused(given_words, capsys, *parts)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_out_must_be_a_folder_before_anything_is_scored(folders, capsys, below):
    taken = folders[0].parent / "taken"
    taken.touch()
    refused(run_words(folders, f"out={taken / below}"), capsys, "out: must be a folder that can be", "Not a directory")
    assert taken.read_bytes() == b""


def test_prompt_files(tmp_path, folders, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text('"a cat, with a hat"\nsays "hi"\n\n')
    assert media_files.read_prompts(path) == ["a cat, with a hat", 'says "hi"']
    assert media_files.read_prompts(path, unquote=False)[0] == '"a cat, with a hat"'
    path.write_bytes("\ufeffa\u2028b\r\n\r\nc\rd\n \n".encode())
    assert media_files.read_prompts(path) == ["a\u2028b", "c", "d"]
    path.write_bytes(b"\xe9")
    with pytest.raises(EvaluationError, match="must be UTF-8 text, got byte 0xe9"):
        media_files.read_prompts(path)
    with pytest.raises(EvaluationError, match=r"one per file .* \(12\), got 2"):
        media_files.pair_items(folders[0], None, ["a", "b"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "webp", "bmp", "gif"]))
def test_damaged_pictures_give_a_picture_or_one_clear_error(tmp_path, data, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise(1, size=16)[0]).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        assert media_files.read_image(path).dtype == np.uint8
    except EvaluationError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
