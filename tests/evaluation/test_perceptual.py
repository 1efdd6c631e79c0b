"""Metrics through pyiqa: the one line where it is missing, what it is given, and that no pickle reaches it."""

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
import torch

import evaluation
from evaluation import doctor
from evaluation.errors import EvaluationError
from evaluation.metric import Batch
from evaluation.perceptual import Dists, Niqe, check_weights

NAMES = ("dists", "niqe", "musiq", "maniqa", "clipiqa")


@pytest.fixture
def pyiqa(monkeypatch):
    """A stand-in that remembers how metrics were made and returns the mean of what it is given."""
    module = types.ModuleType("pyiqa")
    module.__spec__ = importlib.machinery.ModuleSpec("pyiqa", None)
    made = []

    def create_metric(name, device, **options):
        made.append((name, options, torch.hub.get_dir()))
        return lambda *images: torch.stack([i.mean(dim=(1, 2, 3)) for i in images]).sum(0)[:, None]

    module.create_metric, module.made = create_metric, made
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    for name in NAMES:
        (line,) = evaluation.check([name])
        assert line.startswith(f"{name}: needs the library pyiqa; get it with: pip install '.[iqa]'")
        assert "PolyForm Noncommercial" in line
    assert "MISSING  pip install '.[iqa]'" in doctor.report()


def test_missing_weights_are_one_line_with_the_command(pyiqa, tmp_path, monkeypatch):
    monkeypatch.setenv("EVALUATION_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (line,) = evaluation.check(["niqe"])
    assert "niqe_modelparameters.mat not found" in line and "curl -fL" in line


def test_scores_are_one_number_per_image_with_references_where_needed(pyiqa, tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"w": torch.zeros(1)}, file)
    images, references = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    batch = Batch(names=["a", "b"], images=images, references=references)
    before = torch.hub.get_dir()
    found = Dists().load("cpu", {"dists": file, "lpips_vgg": file})(batch)
    assert torch.allclose(found, (images.mean(dim=(1, 2, 3)) + references.mean(dim=(1, 2, 3))).double())
    name, options, hub = pyiqa.made[0]
    assert name == "dists" and options == {"pretrained_model_path": str(file)} and hub != before == torch.hub.get_dir()
    assert torch.allclose(Niqe().load("cpu", {"niqe": file})(batch), images.mean(dim=(1, 2, 3)).double())


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"w": Path("code")}, tmp_path / "w.pth")
    with pytest.raises(EvaluationError, match="w.pth: must be a plain file of tensors"):
        check_weights(tmp_path / "w.pth")
