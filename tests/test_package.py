"""The wheel is the library alone, and works beside torch and what torch itself needs."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hicache

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + {paths!r}
import torch, hicache
found = hicache.forecaster("hicache", order=1, sigma=0.5 ** 0.5, warmup_steps=2)
for step in (0, 1):
    found.observe(step, torch.tensor([float(step)]))
print(hicache.__file__, hicache.__version__, float(found.predict(4)))
for name in {absent!r}:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is here")
"""


def closure(name: str, found: dict[str, metadata.Distribution] | None = None) -> dict[str, metadata.Distribution]:
    """A distribution and all that it requires here, by name."""
    found = {} if found is None else found
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return found
    found[name] = distribution
    for text in distribution.requires or []:
        need = Requirement(text)
        key = re.sub(r"[-_.]+", "-", need.name).lower()
        if key not in found and (need.marker is None or need.marker.evaluate({"extra": ""})):
            closure(key, found)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "hicache"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hicache"}
    assert "hicache/py.typed" in names
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "hicache").rglob("*.py")}
    assert ours <= set(names)
    assert wheel.stat().st_size < 2**20


@pytest.mark.slow
def test_library_needs_torch_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "ours")
        text = next(opened.read(name).decode() for name in opened.namelist() if name.endswith("METADATA"))
    needs = [line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [Requirement(line.partition(": ")[2]).name for line in needs] == ["torch"]

    beside = tmp_path / "beside"
    beside.mkdir()
    for distribution in closure("torch").values():
        for file in distribution.files or []:
            top = beside / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(Path(str(distribution.locate_file(file.parts[0]))))
    absent = ["diffusers", "omegaconf", "hydra", "pandas", "safetensors", "experiments"]
    script = SCRIPT.format(paths=[str(tmp_path / "ours"), str(beside)], absent=absent)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, version, value = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path) and version == hicache.__version__
    assert float(value) == pytest.approx(4.0)  # sigma = sqrt(1/2) at order 1 is Taylor's line
