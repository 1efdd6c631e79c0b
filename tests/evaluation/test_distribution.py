"""FID and its relatives against numpy, scipy and torch-fidelity; streaming, resuming, archives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

import evaluation
from evaluation import inception_pass, npz
from evaluation.distribution import neighbour_radii, sample_label, share_covered
from evaluation.errors import EvaluationError
from evaluation.frechet import RunningCovariance, frechet_distance
from evaluation.inception import CLASSES, SPATIAL, Inception, InceptionFeatures
from tests.evaluation.conftest import noise, save_all


def cloud(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + shift)


def moments_of(data: torch.Tensor, batch: int) -> RunningCovariance:
    result = RunningCovariance.empty(data.shape[1])
    for part in data.split(batch):
        result.add(part)
    return result


def test_streamed_moments_of_50000_vectors_equal_the_one_shot_result():
    data = cloud(50_000, 48, 0, shift=1000.0)  # a large mean: naive sums of squares would lose digits
    streamed = moments_of(data, 128)
    assert streamed.count == 50_000
    assert streamed.mean.numpy() == pytest.approx(data.mean(0).numpy(), rel=1e-12)
    expected = np.cov(data.numpy(), rowvar=False)
    assert streamed.covariance().numpy() == pytest.approx(expected, rel=1e-8, abs=1e-8)
    shards = [moments_of(part, 100) for part in data.split([20_000, 30_000])]
    shards[0].merge(shards[1])
    assert shards[0].covariance().numpy() == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_frechet_distance_agrees_with_scipy_and_torch_fidelity():
    a, b = moments_of(cloud(300, 64, 1), 50), moments_of(cloud(400, 64, 2, shift=0.3), 50)
    ours = frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())
    root = linalg.sqrtm((a.covariance() @ b.covariance()).numpy())
    delta = (a.mean - b.mean).numpy()
    expected = delta @ delta + np.trace(a.covariance()) + np.trace(b.covariance()) - 2 * np.trace(root).real
    assert ours == pytest.approx(expected, rel=1e-9)
    stats = [{"mu": m.mean.numpy(), "sigma": m.covariance().numpy()} for m in (a, b)]
    theirs = fid_statistics_to_metric(*stats, False)["frechet_inception_distance"]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert frechet_distance(a.mean, a.covariance(), a.mean, a.covariance()) == pytest.approx(0, abs=1e-7)


def test_frechet_distance_of_few_samples_is_finite_and_right():
    a, b = moments_of(cloud(10, 40, 1), 5), moments_of(cloud(12, 40, 2), 5)  # singular covariances
    ours = frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())
    c1, c2 = a.covariance().numpy(), b.covariance().numpy()
    eigenvalues = np.clip(np.linalg.eigvals(c1 @ c2).real, 0, None)
    delta = (a.mean - b.mean).numpy()
    expected = delta @ delta + np.trace(c1) + np.trace(c2) - 2 * np.sqrt(eigenvalues).sum()
    assert ours == pytest.approx(expected, rel=1e-5)


def test_inception_score_is_adms_over_consecutive_splits():
    logits = torch.randn(25, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    scores = inception_pass.SplitScores(size=10)
    for part in logits.log_softmax(1).split(4):
        scores.add(part)
    p = logits.softmax(1).numpy()
    chunks = [p[0:10], p[10:20], p[20:25]]
    expected = [np.exp(np.mean(np.sum(c * (np.log(c) - np.log(c.mean(0))), axis=1))) for c in chunks]
    assert scores.counts == [10, 10, 5]
    assert scores.value() == pytest.approx(np.mean(expected), rel=1e-10)
    even = inception_pass.SplitScores(size=5)
    even.add(logits.log_softmax(1))
    theirs = isc_features_to_metric(logits, splits=5, shuffle=False)["inception_score_mean"]
    assert even.value() == pytest.approx(theirs, rel=1e-10)


def test_precision_and_recall_agree_with_torch_fidelity():
    samples, reference = cloud(90, 4, 0).float(), (cloud(70, 4, 0, shift=1.0) * 1.5).float()
    theirs = prc_features_to_metric(
        samples, reference, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False
    )
    precision = share_covered(samples, reference, neighbour_radii(reference, block=16), block=16)
    recall = share_covered(reference, samples, neighbour_radii(samples))
    assert precision == pytest.approx(theirs["precision"])
    assert recall == pytest.approx(theirs["recall"])
    assert 0 < precision < 1
    assert 0 < recall < 1
    assert share_covered(samples, samples, neighbour_radii(samples)) == 1
    with pytest.raises(EvaluationError, match="over 3 images"):
        neighbour_radii(samples[:3])


@pytest.mark.parametrize(
    ("n", "label"), [(50_000, "FID-50k"), (5_000, "FID-5k"), (49_999, "FID (49999 samples)"), (12, "FID (12 samples)")]
)
def test_the_label_states_the_number_of_samples(n, label):
    assert sample_label("FID", n) == label


def test_features_are_torch_fidelitys_and_the_spatial_ones_adms(inception_weights):
    images = torch.from_numpy(noise(2, size=64)).permute(0, 3, 1, 2)
    features = Inception(inception_weights)(images)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    kept: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.bn.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        pool, logits = network(images)
    assert features.pool.numpy() == pytest.approx(pool.numpy(), rel=1e-5)
    assert features.log_probabilities.numpy() == pytest.approx(logits.double().log_softmax(1).numpy(), abs=1e-5)
    spatial = kept[0].relu().numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1)
    assert spatial.shape == (2, SPATIAL)
    assert features.spatial.numpy() == pytest.approx(spatial, rel=1e-5, abs=1e-6)
    assert features.spatial.std() > 0


SMALL = [24, 30, CLASSES]


class Extractor:
    """Stands in for Inception in tests of the pass: features are a fixed linear map of the pixels."""

    calls: list[int] = []
    fail_after: int | None = None

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.map = torch.randn(12, sum(SMALL), generator=generator)

    def __call__(self, images: torch.Tensor) -> InceptionFeatures:
        if Extractor.fail_after is not None and sum(Extractor.calls) >= Extractor.fail_after:
            raise KeyboardInterrupt
        Extractor.calls.append(len(images))
        x = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1) @ self.map
        pool, spatial, logits = x.split(SMALL, dim=1)
        return InceptionFeatures(pool, spatial, logits.double().log_softmax(1))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The pass without the network, in few dimensions."""
    monkeypatch.setattr(inception_pass, "POOL", SMALL[0])
    monkeypatch.setattr(inception_pass, "SPATIAL", SMALL[1])
    Extractor.calls, Extractor.fail_after = [], None
    monkeypatch.setattr(inception_pass, "Inception", Extractor)
    monkeypatch.setattr(inception_pass, "SHARD", 8)
    weights = tmp_path / "weights.pth"
    torch.save({}, weights)
    return {"inception": weights}


ALL = ["fid", "sfid", "inception_score", "precision", "recall"]


def test_a_pass_is_shared_stored_and_resumed(quick, tmp_path):
    a, b = save_all(tmp_path / "a", noise(22, size=8)), save_all(tmp_path / "b", noise(15, size=8, seed=1))
    whole = evaluation.evaluate(a, b, None, ALL, batch_size=4, out=tmp_path / "whole", weights=quick)
    assert sum(Extractor.calls) == 37  # one pass over each side serves all five
    assert whole["fid"]["label"] == "FID (22 samples)"
    assert whole["fid"]["n_reference"] == 15
    evaluation.evaluate(a, b, None, ["fid", "inception_score"], batch_size=4, out=tmp_path / "whole", weights=quick)
    assert sum(Extractor.calls) == 37
    Extractor.calls, Extractor.fail_after = [], 14
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(a, b, None, ALL, batch_size=4, out=tmp_path / "out", weights=quick)
    assert sum(Extractor.calls) == 16
    Extractor.calls, Extractor.fail_after = [], None
    resumed = evaluation.evaluate(a, b, None, ALL, batch_size=4, out=tmp_path / "out", weights=quick)
    assert sum(Extractor.calls) == 37 - 16
    assert resumed == whole


def interrupt(a: Path, b: Path, out: Path, weights: dict[str, Path]) -> Path:
    """The kept features of a pass over `a` that ended after 16 of its images."""
    Extractor.calls, Extractor.fail_after = [], 14
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(a, b, None, ["precision"], batch_size=4, out=out, weights=weights)
    Extractor.calls, Extractor.fail_after = [], None
    return next(out.rglob("pool.f32"))


@pytest.mark.parametrize("left", [0, 3, 15.5])
def test_features_that_the_disk_lost_are_an_error(quick, tmp_path, left):
    a, b = save_all(tmp_path / "a", noise(22, size=8)), save_all(tmp_path / "b", noise(15, size=8, seed=1))
    words = {"batch_size": 4, "out": tmp_path / "out", "weights": quick}
    kept, row = interrupt(a, b, tmp_path / "out", quick), SMALL[0] * 4
    whole = kept.read_bytes()
    kept.write_bytes(whole[: int(left * row)])
    message = rf"pool\.f32: must hold the features of 16 images .* got {int(left * row)} of {16 * row} bytes"
    with pytest.raises(EvaluationError, match=message):
        evaluation.evaluate(a, b, None, ["precision"], **words)
    assert kept.stat().st_size == int(left * row) and Extractor.calls == []
    kept.write_bytes(whole + b"torn")  # what came after the state goes
    again = evaluation.evaluate(a, b, None, ["precision"], **words)
    kept.write_bytes(kept.read_bytes()[: int(left * row)])  # of a pass that is complete
    with pytest.raises(EvaluationError, match="must hold the features of 22 images"):
        evaluation.evaluate(a, b, None, ["precision"], **words)
    fresh = evaluation.evaluate(a, b, None, ["precision"], **words | {"out": tmp_path / "fresh"})
    assert again == fresh


def test_the_disk_has_the_features_before_the_state_that_counts_them(quick, tmp_path, monkeypatch):
    sizes: dict[str, int] = {}
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        sizes[Path(os.readlink(f"/proc/self/fd/{descriptor}")).name] = os.fstat(descriptor).st_size
        fsync(descriptor)

    counts = []

    def replaced(source: Path, target: Path) -> None:
        if target.name == "state.npz":
            with np.load(source) as state:
                counts.append(int(state["count"]))
            assert sizes.pop("pool.f32") == counts[-1] * SMALL[0] * 4
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    a = save_all(tmp_path / "a", noise(22, size=8))
    evaluation.evaluate(a, a, None, ["precision"], batch_size=4, out=tmp_path / "out", weights=quick)
    assert counts == [8, 16, 22]


def test_folders_and_archives_give_the_same(quick, tmp_path):
    a, b = save_all(tmp_path / "a", noise(9, size=8)), save_all(tmp_path / "b", noise(7, size=8, seed=1))
    assert npz.write_samples(a, tmp_path / "a.npz") == 9
    assert npz.write_samples(b, tmp_path / "b.npz") == 7
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:  # plain numpy reads what we write
        assert np.array_equal(archive["arr_0"], noise(9, size=8))
    np.savez_compressed(tmp_path / "c.npz", arr_0=noise(9, size=8))  # and we read what numpy writes
    results = [
        evaluation.evaluate(images, reference, None, ALL, batch_size=4, out=tmp_path / str(i), weights=quick)
        for i, (images, reference) in enumerate(
            [(a, b), (tmp_path / "a.npz", tmp_path / "b.npz"), (tmp_path / "c.npz", b)]
        )
    ]
    assert results[0] == results[1] == results[2]


def test_reference_statistics_are_used_without_samples(quick, tmp_path):
    a = save_all(tmp_path / "a", noise(6, size=8))
    whole = evaluation.evaluate(a, a, None, ["fid", "sfid"], batch_size=4, out=tmp_path / "o", weights=quick)
    assert whole["fid"]["mean"] == pytest.approx(0, abs=1e-6)
    Extractor.calls = []
    data = Extractor(Path())(torch.from_numpy(noise(6, size=8)).permute(0, 3, 1, 2))
    pool, spatial = data.pool.double().numpy(), data.spatial.double().numpy()
    npz.write_statistics(
        tmp_path / "ref.npz",
        {
            "mu": pool.mean(0),
            "sigma": np.cov(pool, rowvar=False),
            "mu_s": spatial.mean(0),
            "sigma_s": np.cov(spatial, rowvar=False),
        },
    )
    Extractor.calls = []
    result = evaluation.evaluate(
        a, tmp_path / "ref.npz", None, ["fid", "sfid"], "cpu", 4, out=tmp_path / "p", weights=quick
    )
    assert result["fid"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["sfid"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "n_reference" not in result["fid"]
    assert sum(Extractor.calls) == 6
    with pytest.raises(EvaluationError, match="statistics only"):
        evaluation.evaluate(a, tmp_path / "ref.npz", None, ["recall"], out=tmp_path / "p", weights=quick)


def test_bad_archives_are_named(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(EvaluationError, match=r"x\.npz: must be an \.npz archive"):
        npz.sample_shape(path)
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(EvaluationError, match="uint8"):
        npz.sample_shape(path)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    with pytest.raises(EvaluationError, match="arr_0"):
        npz.sample_shape(path)
    with pytest.raises(EvaluationError, match="unknown|among"):
        npz.write_statistics(path, {"nonsense": np.zeros(2)})


def test_images_of_a_set_have_one_size(quick, tmp_path):
    a = save_all(tmp_path / "a", noise(5, size=8))
    save_all(a, noise(1, size=9), "z_{}.png")
    with pytest.raises(EvaluationError, match=r"z_0\.png: must have the size"):
        evaluation.evaluate(a, None, None, ["inception_score"], out=tmp_path / "o", weights=quick)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from evaluation.inception import CLASSES, POOL, SPATIAL, InceptionFeatures
from evaluation.inception_pass import InceptionStatistics
folder = Path(sys.argv[1]); total = int(sys.argv[2])
state, peak = InceptionStatistics.empty(folder, "cpu"), {}
generator = torch.Generator().manual_seed(0)
while state.count < total:
    x = torch.randn(500, POOL + SPATIAL + CLASSES, generator=generator)
    pool, spatial, logits = x.split([POOL, SPATIAL, CLASSES], dim=1)
    state.add(InceptionFeatures(pool, spatial, logits.double().log_softmax(1)), None)
    if state.count == total // 5:
        state.save(); state = InceptionStatistics.load(folder, "cpu")
    peak[state.count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
early = peak[total // 5 + 2000]
print(round(early), round(peak[total]), state.count, state.pool.count)
"""


@pytest.mark.slow
def test_memory_of_20000_images_worth_of_features_is_constant(tmp_path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "20000"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    early, late, count, _ = (int(word) for word in output.split())
    assert count == 20_000
    assert late - early < 56  # the features of 14,000 images alone would be 115 MB
