"""Meshes: what is read and refused, points drawn on them, alignment, and the two distances with known values."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

import evaluation
from evaluation import meshes, present, registration
from evaluation.cli import main
from evaluation.errors import EvaluationError
from evaluation.metric import Batch
from evaluation.points import FScore, sample_surface

METRICS = ["chamfer", "f_score"]


def sheet(height: float = 0.0) -> trimesh.Trimesh:
    """The unit square at a height, in four triangles of unequal size."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.25, 0.25]])
    faces = [[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]
    return trimesh.Trimesh(np.column_stack([corners, np.full(5, height)]), faces, process=False)


def hook() -> trimesh.Trimesh:
    """Two boxes that no rotation and no mirror maps onto themselves."""
    arm = trimesh.creation.box((0.2, 0.3, 0.7))
    arm.apply_translation((0.4, 0.3, 0.2))
    return trimesh.util.concatenate([trimesh.creation.box((1, 0.4, 0.2)), arm])


def moved(mesh: trimesh.Trimesh, turn: Rotation, shift: tuple[float, float, float] = (3, 1, -2)) -> trimesh.Trimesh:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn.as_matrix(), shift
    other = mesh.copy()
    other.apply_transform(pose)
    return other


@pytest.fixture
def folders(tmp_path):
    found = (tmp_path / "made", tmp_path / "true")
    for folder in found:
        folder.mkdir()
    return found


def write(path, mesh, **settings):
    data = mesh.export(file_type=path.suffix[1:], **settings)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def score(folders, tmp_path, metrics=METRICS, **options):
    shared = {name: options for name in metrics}
    return {
        name: value["mean"]
        for name, value in evaluation.evaluate(*folders, None, metrics, out=tmp_path / "out", options=shared).items()
    }


# Values that are known


def test_parallel_planes_are_their_distance_apart(folders, tmp_path):
    for folder, height in zip(folders, (0.0625, 0.0)):
        write(folder / "x.ply", sheet(height))
    at = {"chamfer": {}, "f_score": {"tau": 0.0625}}
    found = evaluation.evaluate(*folders, None, METRICS, out=tmp_path / "out", options=at)
    assert found["chamfer"]["mean"] == pytest.approx(2 * 0.0625**2, rel=1e-12)
    assert found["f_score"]["mean"] == 1  # at the threshold itself
    assert score(folders, tmp_path, ["chamfer"], squared=False)["chamfer"] == pytest.approx(2 * 0.0625, rel=1e-12)
    assert score(folders, tmp_path, ["f_score"], tau=0.0624)["f_score"] == 0


def test_precision_and_recall_of_a_half(folders, tmp_path):
    half = trimesh.Trimesh(sheet().vertices * [0.5, 1, 1], sheet().faces, process=False)
    write(folders[0] / "x.obj", half)
    write(folders[1] / "x.obj", sheet())
    found = score(folders, tmp_path, ["f_score"], tau=0.02, samples=20_000)["f_score"]
    recall = 0.5 + 0.02
    assert found == pytest.approx(2 * recall / (1 + recall), abs=0.01)


def test_drawn_points_are_uniform_by_area_and_the_same_for_the_same_seed():
    triangles = np.asarray(sheet().triangles)
    points = sample_surface(triangles, 40_000, seed=3)
    assert np.array_equal(points, sample_surface(triangles, 40_000, seed=3))
    assert not np.array_equal(points, sample_surface(triangles, 40_000, seed=4))
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[[0, 1], [0, 1]])[0]
    assert np.abs(counts - 2500).max() < 5 * np.sqrt(2500)
    with pytest.raises(ValueError, match="must have an area"):
        sample_surface(triangles * [1, 0, 0], 10, seed=0)


def test_equal_meshes_have_distance_zero_in_every_format(folders, tmp_path):
    for name, suffixes in {"a": (".obj", ".glb"), "b": (".ply", ".obj"), "c": (".glb", ".ply")}.items():
        for folder, suffix in zip(folders, suffixes):
            write(folder / f"{name}{suffix}", hook())
    assert score(folders, tmp_path) == {"chamfer": pytest.approx(0, abs=1e-12), "f_score": 1}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_best_of_24_starts_finds_any_rotation(seed):
    turned = moved(hook(), Rotation.random(random_state=seed))
    pair = [torch.from_numpy(np.array(mesh.triangles)) for mesh in (hook(), turned)]
    batch = Batch(names=["x"], images=pair[0], references=pair[1])
    found = {}
    for align in ("none", "icp", "icp24"):
        scorer = FScore(align=align, samples=1000).load("cpu", {})
        found[align] = float(scorer(batch)[0])
    assert found["none"] == 0 and found["icp24"] == 1
    assert found["icp"] <= found["icp24"]


def test_one_start_finds_a_small_turn_and_not_a_large_one(folders, tmp_path):
    small, large = Rotation.from_rotvec([0.3, -0.2, 0.1]), Rotation.from_rotvec([0, np.pi, 0])
    for name, turn in {"small": small, "large": large}.items():
        write(folders[0] / f"{name}.glb", moved(hook(), turn))
        write(folders[1] / f"{name}.glb", hook())
    options = {"align": "icp", "samples": 500}
    evaluation.evaluate(*folders, None, ["f_score"], out=tmp_path / "one", options={"f_score": options})
    rows = dict(line.split(",") for line in (tmp_path / "one" / "values.csv").read_text().split())
    assert float(rows["small"]) == 1 and float(rows["large"]) < 0.9


def test_normalising_by_the_reference_and_each_by_itself(folders, tmp_path):
    larger = trimesh.Trimesh(2 * sheet().vertices + 5, sheet().faces, process=False)
    write(folders[0] / "x.ply", larger)
    write(folders[1] / "x.ply", sheet())
    assert score(folders, tmp_path, normalise="each") == {"chamfer": pytest.approx(0, abs=1e-12), "f_score": 1}
    assert score(folders, tmp_path, ["f_score"], normalise="reference")["f_score"] == 0
    write(folders[0] / "x.ply", trimesh.Trimesh(4 * sheet(0.03).vertices, sheet().faces, process=False))
    write(folders[1] / "x.ply", trimesh.Trimesh(4 * sheet().vertices, sheet().faces, process=False))
    assert score(folders, tmp_path, ["f_score"])["f_score"] == 0
    assert score(folders, tmp_path, ["f_score"], normalise="reference")["f_score"] == 1


# Reading


def test_scenes_are_read_with_every_node_in_its_place(tmp_path):
    scene = trimesh.Scene()
    for shift in (0.0, 5.0):
        pose = trimesh.transformations.translation_matrix((shift, 0, 0))
        scene.add_geometry(sheet(), geom_name="one", transform=pose)
    found = meshes.read_triangles(write(tmp_path / "x.glb", scene))
    assert found.shape == (8, 3, 3)
    assert (found[..., 0].min(), found[..., 0].max()) == (0, 6)


def test_polygons_are_cut(tmp_path):
    (tmp_path / "x.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\nf 1/1 2/1 3/1\nf -1 -2 -3\n")
    assert meshes.read_triangles(tmp_path / "x.obj").shape == (4, 3, 3)
    quads = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    quads += (
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"
    )
    (tmp_path / "x.ply").write_text(quads)
    assert meshes.read_triangles(tmp_path / "x.ply").shape == (2, 3, 3)


def test_nothing_beside_a_mesh_is_opened(tmp_path):
    text = "mtllib secret.mtl\ncall secret.sh\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n"
    (tmp_path / "x.obj").write_text(text)
    (tmp_path / "secret.mtl").write_text("newmtl m\nmap_Kd secret.png\n")
    (tmp_path / "y.ply").write_bytes(
        write(tmp_path / "y.ply", sheet())
        .read_bytes()
        .replace(b"element vertex", b"comment TextureFile secret.png\nelement vertex", 1)
    )
    code = """if True:
        import sys
        from pathlib import Path
        from evaluation import meshes
        for path in map(Path, sys.argv[1:]):
            meshes.read_triangles(path)  # what is imported is imported
        opened = []
        kinds = ("open", "os.system", "subprocess.Popen", "socket.connect", "exec", "os.posix_spawn")
        sys.addaudithook(lambda event, args: event in kinds and opened.append((event, str(args[0]))))
        for path in map(Path, sys.argv[1:]):
            meshes.read_triangles(path)
        print([one for one in opened if one != ("open", one[1]) or "secret" in one[1]], len(opened))
    """
    paths = [str(tmp_path / name) for name in ("x.obj", "y.ply")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=meshes.__file__[:-21]
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.rsplit(None, 1)
    assert said[0] == "[]" and int(said[1]) >= 2


def glb(header: dict | bytes, body: bytes = b"") -> bytes:
    """A binary glTF of a header and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if body:
        chunks += struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def plain(**changes) -> dict:
    """The header of a mesh of one triangle, three points of 12 bytes."""
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"byteLength": 36}],
    }
    return header | changes


TRIANGLE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32).tobytes()
POSITIONS = {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}
VERTICES = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"

BAD = {
    "empty.obj": (b"", "a mesh must have faces, got none"),
    "vertices_only.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "a mesh must have faces, got none"),
    "zip.obj": (b"PK\x03\x04" + bytes(40), "must be text"),
    "html.obj": (b"<html><script>f 1 2 3</script></html>", "a mesh must have faces, got none"),
    "index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "must be a readable .obj mesh"),
    "number.obj": (b"v 0 0 0\nv 1 x 0\nv 0 1 0\nf 1 2 3\n", "must be a readable .obj mesh"),
    "nan.obj": (b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "every coordinate must be finite"),
    "short.ply": ((VERTICES + FACE + "0 0 0\n1 0 0\n").encode(), "a mesh must have faces, got none"),
    "index.ply": ((VERTICES + FACE + "0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n").encode(), "must be a readable .ply mesh"),
    "fewer.ply": (
        (VERTICES + FACE.replace("face 1", "face 2") + "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n").encode(),
        "must hold the 2 faces of its header, got 1",
    ),
    "negative.ply": ((VERTICES + FACE + "0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n").encode(), "must be a readable .ply mesh"),
    "bomb.ply": ((VERTICES + FACE).replace("vertex 3", "vertex 999999999").encode(), "elements of its header"),
    "faces.ply": ((VERTICES + FACE).replace("face 1", "face 99999999").encode(), "at most 16777216 faces"),
    "text.glb": (b"o hello\nv 0 0 0\nmore than twenty bytes\n", "must be a binary glTF 2"),
    "torn.glb": (
        glb(plain(), TRIANGLE)[:-4],
        "must be a binary glTF 2 of 384 bytes with JSON first, got version 2, 388 bytes",
    ),
    "json.glb": (glb(b"{nope"), "must have a header of JSON"),
    "deep.glb": (glb(b"[" * 200_000), "must have a header of JSON"),
    "list.glb": (glb(b"[]"), "must have a header of JSON keys, got list"),
    "fetch.glb": (glb(plain(buffers=[{"byteLength": 36, "uri": "http://localhost/x"}])), "got the address 'http:"),
    "draco.glb": (glb(plain(extensionsRequired=["KHR_draco_mesh_compression"]), TRIANGLE), "must need no extension"),
    "zeros.glb": (glb(plain(accessors=[{"componentType": 5126, "count": 10**9, "type": "VEC3"}])), "numbers plainly"),
    "count.glb": (glb(plain(accessors=[POSITIONS | {"count": 10**9}]), TRIANGLE), "must hold what it counts"),
    "views.glb": (
        glb(plain(bufferViews=[{"buffer": 0, "byteLength": 3600}] * 100), TRIANGLE * 100),
        "must hold what it counts",
    ),
    "minus.glb": (glb(plain(accessors=[POSITIONS | {"count": -3}]), TRIANGLE), "must be a valid binary glTF 2"),
    "bytes.glb": (glb(plain(accessors=[POSITIONS | {"componentType": 5120}]), TRIANGLE), "three 32-bit floats"),
    "absent.glb": (
        glb(plain(meshes=[{"primitives": [{"attributes": {}}]}]), TRIANGLE),
        "valid binary glTF 2, got: Key",
    ),
    "fan.glb": (
        glb(plain(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 6}]}]), TRIANGLE),
        "got a fan",
    ),
    "lines.glb": (
        glb(plain(meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}]), TRIANGLE),
        "must have faces, got none",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_meshes_are_one_line(name, tmp_path, recwarn, capfd):
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message) as raised:
        meshes.read_triangles(path)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{path}: ")
    assert capfd.readouterr() == ("", "")


def test_nodes_in_a_circle_are_read_once(tmp_path):
    nodes = [{"mesh": 0, "children": [1]}, {"children": [0]}]
    (tmp_path / "x.glb").write_bytes(glb(plain(nodes=nodes), TRIANGLE))
    assert meshes.read_triangles(tmp_path / "x.glb").shape == (1, 3, 3)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb"])
def test_damaged_meshes_are_read_or_refused_and_nothing_else(suffix, tmp_path):
    path, draw = tmp_path / f"x{suffix}", np.random.default_rng(0)
    whole = write(path, hook()).read_bytes()
    for _ in range(30):
        data = bytearray(whole)
        for place in draw.integers(len(data), size=4):
            data[place] = draw.integers(256)
        path.write_bytes(data if draw.random() < 0.5 else data[: draw.integers(len(data))])
        with contextlib.suppress(EvaluationError):
            assert np.isfinite(meshes.read_triangles(path)).all()


def test_a_shape_repeated_by_nodes_is_counted_before_it_is_made(tmp_path, monkeypatch):
    nodes = [{"mesh": 0}] * 50
    path = tmp_path / "x.glb"
    path.write_bytes(glb(plain(nodes=nodes, scenes=[{"nodes": list(range(50))}]), TRIANGLE))
    assert len(meshes.read_triangles(path)) == 50
    monkeypatch.setattr(meshes, "MAX_FACES", 49)
    with pytest.raises(EvaluationError, match="at most 49 faces, got 50"):
        meshes.read_triangles(path)
    monkeypatch.setattr(meshes, "MAX_FILE", 100)
    with pytest.raises(EvaluationError, match="at most 100 bytes"):
        meshes.read_triangles(path)


@pytest.mark.parametrize(
    "options",
    [{"align": "icp23"}, {"normalise": "both"}, {"samples": 0}, {"samples": 1 << 25}, {"seed": -1}, {"samples": 1.5}],
)
def test_bad_options(options):
    with pytest.raises(EvaluationError, match=rf"^f_score\.{next(iter(options))}: must"):
        FScore.create(options)


def test_both_distances_align_a_pair_once(folders, tmp_path, monkeypatch):
    calls, find = [], registration.find_pose
    monkeypatch.setattr(registration, "find_pose", lambda *given: calls.append(given[2]) or find(*given))
    monkeypatch.setattr(registration, "_POSES", {})
    for item in range(3):
        write(folders[0] / f"{item}.obj", moved(hook(), Rotation.from_rotvec([0.2 + 0.1 * item, 0, 0])))
        write(folders[1] / f"{item}.obj", hook())
    both = score(folders, tmp_path, samples=500, align="icp")
    assert calls == [1, 1, 1]
    registration._POSES.clear()
    assert score(folders, tmp_path / "alone", ["f_score"], samples=500, align="icp")["f_score"] == both["f_score"]


# The front door


def test_the_command_line_scores_meshes_and_compares(folders, tmp_path, capsys):
    runs = [tmp_path / name for name in ("base", "fast")]
    for run, shift in zip(runs, (0.0, 0.02)):
        (run / "media").mkdir(parents=True)
        for item in range(5):
            write(run / "media" / f"{item}.glb", moved(hook(), Rotation.identity(), (shift * item, 0, 0)))
            write(folders[1] / f"{item}.obj", hook())
        words = [f"images={run / 'media'}", f"reference={folders[1]}", "metrics=[f_score,chamfer]"]
        words += [f"out={run / 'evaluation'}", "f_score.samples=2000", "f_score.normalise=reference"]
        assert main(words) == 0
    assert "F-score ↑" in capsys.readouterr().out
    assert main(["compare", f"baseline={runs[0]}", f"runs={runs[1]}", "metrics=chamfer"]) == 0
    assert "chamfer" in capsys.readouterr().out
    kept = json.loads((runs[1] / "evaluation" / "metrics.json").read_text())
    assert kept["chamfer"]["low"] <= kept["chamfer"]["mean"] <= kept["chamfer"]["high"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made, true: (true / "x.obj").unlink(), "must hold images, videos, point clouds or meshes"),
        (lambda made, true: write(made / "y.obj", sheet()), "has no partner named y"),
        (lambda made, true: write(true / "y.glb", sheet()), "has no partner in"),
        (lambda made, true: write(made / "x.ply", sheet()), "names must differ without suffix"),
        (lambda made, true: (made / "y.xyz").write_text("0 0 0\n"), "one kind of media"),
        (lambda made, true: (made / "x.obj").write_bytes(b"%PDF-1.7\n"), r"x.obj: "),
        (lambda made, true: (made / "x.obj").write_text("v 0 0 0\nf 1 1 1\n"), "must have an area"),
    ],
)
def test_bad_folders_exit_with_two(spoil, message, folders, tmp_path, capsys):
    made, true = folders
    for folder in folders:
        write(folder / "x.obj", sheet())
    spoil(made, true)
    code = main([f"images={made}", f"reference={true}", "metrics=chamfer", f"out={tmp_path / 'out'}"])
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and not (tmp_path / "out").exists()
    assert re.search(message, said[0])


def test_other_metrics_and_pictures_refuse_meshes(folders, tmp_path, capsys):
    for folder in folders:
        write(folder / "x.obj", sheet())
    assert main([f"images={folders[0]}", f"reference={folders[1]}", "metrics=psnr"]) == 2
    assert "psnr reads ['image', 'video'], got mesh files" in capsys.readouterr().err
    with pytest.raises(EvaluationError, match="needs images or videos, got mesh files"):
        present.draw_grid(*folders)
