"""What is opened as a picture, a video or an array, and what is refused before a decoder sees it."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from evaluation import decoders, npz
from evaluation.cli import main
from evaluation.errors import EvaluationError
from tests.evaluation.conftest import noise, save_all

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A stand-in `gs` on the PATH; returns the file that it writes when it is started."""
    folder, mark = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    return mark


def bomb(path, width, height):
    """A PNG whose header promises so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("form", decoders.FORMATS)
def test_each_format_is_read_whatever_its_name(form, tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "x.png", form)
    assert decoders.read_picture(tmp_path / "x.png").shape == noise(1)[0].shape


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (POSTSCRIPT, "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + POSTSCRIPT, "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"GIF89a" + b"\0" * 40, "GIF"),
        (b"PK\x03\x04" + b"\0" * 40, "a zip archive"),
        (b"\x80\x04\x95" + b"\0" * 40, "a pickle"),
        (b"", "an empty file"),
        (b"text", "something else"),
    ],
)
def test_other_formats_are_refused_by_name(content, name, tmp_path, ghostscript):
    path = tmp_path / "0.png"
    path.write_bytes(content)
    with pytest.raises(decoders.PictureError, match=rf"0.png: must be a readable image \(PNG, .*, got {name}$"):
        decoders.open_picture(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4"])
def test_no_program_is_started_for_postscript(suffix, tmp_path, ghostscript, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"0{suffix}").write_bytes(POSTSCRIPT)
    metric = "psnr" if suffix == ".png" else "temporal_flickering"
    reference = [f"reference={tmp_path / 'b'}"] if suffix == ".png" else []
    assert main([f"images={tmp_path / 'a'}", *reference, f"metrics=[{metric}]", f"out={tmp_path / 'out'}"]) == 2
    assert "PostScript" in capsys.readouterr().err
    assert not ghostscript.exists()


def test_a_playlist_is_not_followed(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    with pytest.raises(decoders.PictureError, match="must be a readable video .*, got a playlist"):
        decoders.read_frames(tmp_path / "clip.mp4")


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 12_000)])
def test_too_many_pixels_are_refused_from_the_header(size, tmp_path, recwarn):
    bomb(tmp_path / "x.png", *size)
    for read in (decoders.open_picture, decoders.picture_size):
        with pytest.raises(decoders.PictureError, match=f"must have at most {decoders.MAX_PIXELS} pixels"):
            read(tmp_path / "x.png")


def test_every_bad_picture_of_both_folders_is_named(tmp_path, capsys):
    for folder in ("a", "b"):
        save_all(tmp_path / folder, noise(6), "{}.png")
    (tmp_path / "a" / "1.png").write_bytes(POSTSCRIPT)
    whole = (tmp_path / "a" / "4.png").read_bytes()
    (tmp_path / "a" / "4.png").write_bytes(whole[: len(whole) // 2])
    bomb(tmp_path / "b" / "5.png", 60_000, 60_000)
    arguments = [f"images={tmp_path / 'a'}", f"reference={tmp_path / 'b'}", "metrics=[psnr]"]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines] == ["1.png", "4.png", "5.png"]
    assert main(["npz", f"images={tmp_path / 'a'}", f"out={tmp_path / 'a.npz'}"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    assert not list(tmp_path.glob("a.npz*"))


def lying(path, shape, dtype="<f8", data=b"\0" * 64):
    """An .npy whose header promises more than there is."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.write(data)


def test_an_array_is_bounded_by_its_file(tmp_path):
    lying(tmp_path / "x.npy", (1 << 40, 3))
    with pytest.raises(decoders.PictureError, match=r"x.npy: must be a plain .npy array, got 64 of \d+ bytes"):
        decoders.read_array(tmp_path / "x.npy")
    with open(tmp_path / "hole.npy", "wb") as file:  # the numbers are there, and all of them are a hole
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 33, 3)})
        file.truncate(file.tell() + (1 << 33) * 24)
    with pytest.raises(decoders.PictureError, match="must be a plain .npy array"):
        decoders.read_array(tmp_path / "hole.npy")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(decoders.PictureError, match="pickled objects"):
        decoders.read_array(tmp_path / "x.npy")


def test_statistics_are_bounded_before_they_are_unpacked(tmp_path):
    lying(tmp_path / "mu.npy", (1 << 20, 1 << 10), data=b"\0" * 1000)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "mu.npy", "mu.npy")
    with pytest.raises(EvaluationError, match=r"mu must be numbers \[d\] or \[d, d\] with d <= 4096"):
        npz.read_array(tmp_path / "x.npz", "mu")
