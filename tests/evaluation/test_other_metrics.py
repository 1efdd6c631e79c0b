"""Super-resolution, point clouds, reports, and the shape of the package."""

from __future__ import annotations

import ast
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import evaluation
from evaluation import present
from evaluation.errors import EvaluationError
from evaluation.ground_truth import PsnrY, crop_border, luma
from evaluation.ply import read_ply
from evaluation.points import chamfer_distance, f_score
from tests.evaluation.conftest import noise, save_all

# Super-resolution


def test_luma_is_scikit_images():
    picture = noise(1)[0]
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    assert (255 * luma(tensor)[0, 0]).numpy() == pytest.approx(rgb2ycbcr(picture)[..., 0], abs=1e-9)


def test_cropped_luma_fidelity_against_scikit_image(folders, tmp_path):
    images, reference = folders
    for folder in folders:
        (folder / "img_0.png").unlink()
    names = ["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"]
    result = evaluation.evaluate(images, reference, None, names, out=tmp_path / "out")
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected: dict[str, list[float]] = {name: [] for name in names}
    for path in images.iterdir():
        a, b = (np.asarray(Image.open(folder / path.name))[4:-4, 4:-4] for folder in folders)
        ya, yb = rgb2ycbcr(a)[..., 0], rgb2ycbcr(b)[..., 0]
        expected["psnr_y"].append(peak_signal_noise_ratio(ya, yb, data_range=255))
        expected["ssim_y"].append(structural_similarity(ya, yb, **gaussian))
        expected["psnr_rgb"].append(peak_signal_noise_ratio(a, b))
        expected["ssim_rgb"].append(structural_similarity(a, b, channel_axis=2, **gaussian))
    for name in names:
        assert result[name]["mean"] == pytest.approx(np.mean(expected[name]), abs=1e-5)


def test_crop():
    assert crop_border(torch.zeros(1, 3, 20, 10), 4).shape == (1, 3, 12, 2)
    with pytest.raises(ValueError, match="crop: must leave"):
        crop_border(torch.zeros(1, 3, 20, 8), 4)
    with pytest.raises(EvaluationError, match=r"psnr_y\.crop"):
        PsnrY.create({"crop": -1})


# Point clouds


def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3000, 3))
    return a, a[:2500] + 0.02 * rng.standard_normal((2500, 3))


def test_chamfer_and_f_score_against_all_distances():
    a, b = clouds()
    apart = cdist(a, b)
    forth, back = apart.min(1), apart.min(0)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    assert float(chamfer_distance(ta, tb)) == pytest.approx((forth**2).mean() + (back**2).mean())
    assert float(chamfer_distance(ta, tb, squared=False)) == pytest.approx(forth.mean() + back.mean())
    p, r = (forth <= 0.03).mean(), (back <= 0.03).mean()
    assert float(f_score(ta, tb, 0.03)) == pytest.approx(2 * p * r / (p + r))
    assert 0 < p < 1
    assert float(f_score(ta, ta + 100, 0.1)) == 0
    assert float(chamfer_distance(ta, ta)) == 0


def test_clouds_from_every_format_and_normalisation(tmp_path):
    a, b = clouds()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    write_ply(tmp_path / "a" / "one.ply", a, binary=True)
    write_ply(tmp_path / "a" / "two.ply", a, binary=False)
    np.savetxt(tmp_path / "b" / "one.xyz", b)
    np.savetxt(tmp_path / "b" / "two.xyz", b)
    result = evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["chamfer", "f_score"])
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    assert result["chamfer"]["mean"] == pytest.approx(float(chamfer_distance(ta, tb)), rel=1e-4)
    options = {name: {"normalise": "reference"} for name in ("chamfer", "f_score")}
    scaled = evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["chamfer"], options=options)
    size = (b.max(0) - b.min(0)).max()
    assert scaled["chamfer"]["mean"] == pytest.approx(result["chamfer"]["mean"] / size**2)
    np.save(tmp_path / "c.npy", a)
    assert evaluation.check(["chamfer"]) == []


def write_ply(path: Path, points: np.ndarray, binary: bool) -> None:
    style = "binary_little_endian" if binary else "ascii"
    header = f"ply\nformat {style} 1.0\ncomment made by a test\nelement vertex {len(points)}\n"
    header += "property float x\nproperty float y\nproperty float z\nproperty uchar red\n"
    header += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    if binary:
        body = b"".join(struct.pack("<fffB", *point, 7) for point in points)
    else:
        body = "".join(f"{x:.9g} {y:.9g} {z:.9g} 7\n" for x, y, z in points).encode()
    path.write_bytes(header.encode() + body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "no header"),
        (b"ply\nformat ascii 1.0\nelement face 3\nend_header\n", "must be vertex"),
        (b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n", "x, y and z"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
            b"end_header\n1 2 3\n",
            "2 complete vertices",
        ),
    ],
)
def test_bad_clouds(tmp_path, content, message):
    path = tmp_path / "x.ply"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_ply(path)


def test_nan_cloud(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.array([[0.0, 1.0, np.nan if folder == "a" else 2.0]]))
    with pytest.raises(EvaluationError, match=r"a/x\.npy: every coordinate must be finite"):
        evaluation.evaluate(tmp_path / "a", tmp_path / "b", None, ["chamfer"])


# Reports


def test_table_shows_intervals_infinities_and_what_is_missing():
    text = present.table(
        {
            "psnr": {"mean": 30.0, "low": 29.0, "high": 31.0, "n": 9, "infinite": 2},
            "fid": {"mean": 5.0, "low": None, "high": None, "n": 5000, "label": "FID-5k"},
            "vbench": {"mean": None, "low": None, "high": None, "n": 10, "missing": ["color"]},
        }
    )
    for part in ("[29.0000, 31.0000]", "PSNR (dB) ↑", "2 infinite", "FID-5k ↓", "missing: color"):
        assert part in text
    assert "FID-50k" not in text


def test_wandb_gets_numbers_the_item_table_and_pictures(folders, tmp_path):
    pytest.importorskip("wandb")
    images, reference = folders
    results = evaluation.evaluate(images, reference, None, ["psnr"], out=tmp_path / "out")
    logged: list[dict[str, object]] = []
    present.log_to_wandb(results, tmp_path / "out", images, reference, run=SimpleNamespace(log=logged.append))
    (payload,) = logged
    assert payload["psnr/mean"] == results["psnr"]["mean"]
    assert payload["items"].data[1][0] == "img_1"
    assert payload["pictures"].image.size == (8 * 256, 2 * 256)


def test_picture_grid_puts_pictures_over_references(tmp_path):
    save_all(tmp_path / "a", np.full((2, 16, 16, 3), 200, np.uint8))
    save_all(tmp_path / "b", np.full((2, 16, 16, 3), 50, np.uint8))
    grid = np.asarray(present.draw_grid(tmp_path / "a", tmp_path / "b", edge=16))
    assert grid.shape == (32, 32, 3)
    assert (grid[:16] == 200).all()
    assert (grid[16:] == 50).all()


# The package

SOURCES = sorted(Path(evaluation.__file__).parent.rglob("*.py"))


@pytest.mark.slow
def test_importing_the_package_is_cheap():
    code = "import sys, evaluation; print(sorted({'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import sys, evaluation; evaluation.METRICS; print(sorted({'transformers', 'torchvision', 'lpips', "
    code += "'open_clip', 'torchmetrics', 'torch_fidelity', 'scipy', 'pandas', 'skimage'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_evaluation_depends_on_nothing_of_this_project(path):
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {name.split(".")[0] for name in names} & {"hicache", "experiments", "benchmarks"}
    assert len(path.read_text().splitlines()) < 400
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 60 for node in functions)


def test_every_metric_states_itself():
    for name, metric in evaluation.METRICS.items():
        assert metric.name == name
        assert metric.better in ("higher", "lower")
        assert metric.__doc__
        assert metric.create({}).weights() is not None
        with pytest.raises(EvaluationError, match="unknown option"):
            metric.create({"no_such_option": 1})


def test_no_module_of_the_package_imports_itself_through_others():
    """Imports at any depth of a file, also under TYPE_CHECKING: modules that import nothing left are peeled off."""
    root = Path(evaluation.__file__).parent.parent
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    arrows = {name: imported_modules(path, set(names)) - {name} for name, path in names.items() if name != "evaluation"}
    while free := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Modules among `known` that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & known or {node.module}
    return found & known
