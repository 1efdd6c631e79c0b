"""Fidelity metrics against torchmetrics, scikit-image, numpy formulas and lpips."""

from __future__ import annotations

import lpips as lpips_package
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from evaluation import fidelity
from evaluation.fidelity import lpips, psnr, psnr_u8wrap, ssim, ssim_skimage7, to_u8


def pair(change: int, size: int = 64, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth 8-bit pictures and a version whose values differ by at most `change`, as floats."""
    generator = torch.Generator().manual_seed(change)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    a = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    noise = torch.randint(-change, change + 1, a.shape, generator=generator) if change else torch.zeros_like(a)
    b = (to_u8(a).float() + noise).clamp(0, 255)
    return to_u8(a).float() / 255, b / 255


def as_numpy(images: torch.Tensor) -> np.ndarray:
    return to_u8(images).permute(0, 2, 3, 1).numpy()


def test_psnr_agrees_with_scikit_image_and_torchmetrics():
    a, b = pair(40)
    expected = [peak_signal_noise_ratio(x, y) for x, y in zip(as_numpy(a), as_numpy(b), strict=True)]
    assert psnr(a, b).numpy() == pytest.approx(expected, abs=1e-5)
    other = torchmetrics_psnr(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert psnr(a, b).numpy() == pytest.approx(other.numpy(), abs=1e-4)


def test_psnr_of_equal_images_is_infinite():
    a, _ = pair(0)
    assert torch.isinf(psnr(a, a)).all()
    assert torch.isinf(psnr_u8wrap(a, a)).all()


def test_wrapped_psnr_is_numpys_uint8_arithmetic():
    a, b = pair(120)
    with np.errstate(over="ignore"):
        expected = [
            20 * np.log10(255 / np.sqrt(np.mean((x - y) ** 2))) for x, y in zip(as_numpy(a), as_numpy(b), strict=True)
        ]
    assert psnr_u8wrap(a, b).numpy() == pytest.approx(expected, abs=1e-9)


def test_wrapped_psnr_of_unrelated_images_is_its_floor():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (2, 3, 256, 256), generator=rng).float() / 255 for _ in range(2))
    assert psnr_u8wrap(a, b).numpy() == pytest.approx([27.9, 27.9], abs=0.05)
    assert psnr(a, b).max() < 8
    mean_square = np.mean(np.arange(256, dtype=np.int64) ** 2 % 256)
    assert 20 * np.log10(255 / np.sqrt(mean_square)) == pytest.approx(27.9, abs=0.005)


def test_wrapped_psnr_of_near_images_is_psnr():
    a, b = pair(15)
    assert psnr_u8wrap(a, b).numpy() == pytest.approx(psnr(a, b).numpy(), abs=1e-4)
    c, d = pair(17)
    assert (psnr_u8wrap(c, d) - psnr(c, d)).abs().min() > 1e-3


def test_ssim_is_the_gaussian_definition():
    a, b = pair(40)
    expected = [
        structural_similarity(
            x, y, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
        for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)
    ]
    assert ssim(a, b).numpy() == pytest.approx(expected, abs=1e-6)
    assert ssim(a, a).numpy() == pytest.approx([1.0] * 3)


def test_ssim_skimage7_is_scikit_images_default():
    a, b = pair(40)
    expected = [structural_similarity(x, y, channel_axis=2) for x, y in zip(as_numpy(a), as_numpy(b), strict=True)]
    assert ssim_skimage7(a, b).numpy() == pytest.approx(expected, abs=1e-12)
    assert not np.allclose(ssim_skimage7(a, b), ssim(a, b), atol=1e-4)


@pytest.mark.parametrize("function", [psnr, psnr_u8wrap, ssim, ssim_skimage7])
def test_every_image_has_its_own_value(function):
    a, b = pair(30)
    together = function(a, b)
    assert together.shape == (3,)
    assert together.numpy() == pytest.approx([function(a[i : i + 1], b[i : i + 1]).item() for i in range(3)])
    with pytest.raises(ValueError, match="one shape"):
        function(a, b[:, :, 1:])
    with pytest.raises(ValueError, match="floats"):
        function(to_u8(a), to_u8(b))


def test_small_images_are_refused_by_windows():
    a, b = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a, b)
    assert ssim_skimage7(a, b).shape == (1,)


@pytest.mark.parametrize(
    ("net", "builder"), [("alex", "alexnet"), pytest.param("vgg", "vgg16", marks=pytest.mark.slow)]
)
def test_lpips_on_the_real_architecture(net, builder, tmp_path):
    torch.manual_seed(0)
    torchvision_model = getattr(torchvision.models, builder)(weights=None)
    path = tmp_path / f"{net}.pth"
    torch.save({k: v for k, v in torchvision_model.state_dict().items() if k.startswith("features")}, path)
    ours = fidelity.load_lpips(net, path)
    theirs = lpips_package.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    for index in range(1, 6):  # lpips cuts torchvision's features into slices and keeps their numbers
        part = getattr(theirs.net, f"slice{index}")
        part.load_state_dict({k: v for k, v in _slice(torchvision_model, part).items()})
    a, b = pair(60)
    with torch.no_grad():
        expected = theirs(2 * a - 1, 2 * b - 1).flatten()
    value = lpips(a, b, model=ours)
    assert value.numpy() == pytest.approx(expected.numpy(), rel=1e-5)
    assert value.min() > 0
    assert lpips(a, a, model=ours).abs().max() == 0


def _slice(model: torch.nn.Module, part: torch.nn.Module) -> dict[str, torch.Tensor]:
    features = model.features.state_dict()
    return {key: features[key] for key in part.state_dict()}


def test_lpips_refuses_an_incomplete_backbone(tmp_path):
    state = torchvision.models.alexnet(weights=None).state_dict()
    del state["features.6.weight"]
    torch.save(state, tmp_path / "alex.pth")
    with pytest.raises(ValueError, match="features.6.weight"):
        fidelity.load_lpips("alex", tmp_path / "alex.pth")
