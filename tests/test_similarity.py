"""Image pairs and embeddings: closed forms, an independent implementation, invariances, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.similarity import cosine_distance, gradient_similarity, mse, psnr, relative_mse, ssim


def images(seed: int, size: tuple[int, int] = (24, 30)) -> Tensor:
    """Smooth random images [3, 3, H, W] in [0, 1]."""
    noise = rng.normal((3, *size), "test.similarity", [seed, seed + 1, seed + 2]).numpy()
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5)))
    return (0.5 + smooth).clamp(0, 1)


def noisy(a: Tensor, scale: float = 0.1) -> Tensor:
    return (a + scale * rng.normal(a.shape[1:], "test.noise", range(len(a)))).clamp(0, 1)


def test_a_constant_shift_has_its_square_as_error() -> None:
    a = images(0) * 0.5
    assert torch.allclose(mse(a, a + 0.25), torch.full((3,), 0.0625))
    assert torch.allclose(psnr(a, a + 0.1), torch.full((3,), 20.0), atol=1e-4)
    assert psnr(a, a).tolist() == [math.inf] * 3


def test_relative_error_is_in_units_of_the_references_variance() -> None:
    a, b = images(0), torch.full((3, 3, 24, 30), 0.3)
    flat = a.mean((1, 2, 3), keepdim=True).expand_as(a)
    assert torch.allclose(relative_mse(a, flat), torch.ones(3), atol=1e-5)
    assert relative_mse(b, a).isnan().all()


def reference_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Wang et al. 2004 of two planes by scipy's filter, cropped to the windows that lie inside."""

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(x, 1.5, radius=5, mode="constant")[5:-5, 5:-5])

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a**2) - ma**2, blur(b**2) - mb**2, blur(a * b) - ma * mb
    values = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return float(values.mean())


def test_ssim_and_psnr_agree_with_an_independent_implementation() -> None:
    a = images(0)
    b = noisy(a)
    x, y = a.double().numpy(), b.double().numpy()
    expected = [np.mean([reference_ssim(x[i, c], y[i, c]) for c in range(3)]) for i in range(3)]
    assert np.allclose(ssim(a, b).numpy(), expected, atol=1e-6)
    assert np.allclose(psnr(a, b).numpy(), [10 * np.log10(1 / np.mean((x[i] - y[i]) ** 2)) for i in range(3)], atol=1e-4)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    assert ssim(a, b).item() == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4), rel=1e-6)
    assert ssim(images(0), images(0)).tolist() == [1.0] * 3


def test_ssim_takes_images_of_11_pixels_and_no_fewer() -> None:
    a = images(0, (11, 40))
    assert 0 < ssim(a, noisy(a)).min() < 1
    with pytest.raises(ValueError, match="10 x 40: enlarge"):
        ssim(a[:, :, :10], a[:, :, :10])


def test_gradient_similarity_of_two_ramps() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) / 64
    steep, shallow = 2 / 64 * 2, 2 / 64  # Prewitt over 3 averaged pixels, 2 apart, each 2 wide: 4 pixels of slope
    expected = (2 * (2 * steep) * (2 * shallow) + 0.0026) / ((2 * steep) ** 2 + (2 * shallow) ** 2 + 0.0026)
    assert gradient_similarity(2 * ramp, ramp).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_similarity_ignores_brightness_and_falls_with_noise() -> None:
    a = images(0) * 0.5
    values = torch.stack([gradient_similarity(a, b) for b in (a, a + 0.2, noisy(a, 0.05), noisy(a, 0.3))])
    assert torch.allclose(values[0], torch.ones(3))
    assert torch.allclose(values[1], torch.ones(3), atol=1e-5)
    assert (values[2] > values[3]).all()
    assert ((values > 0) & (values <= 1)).all()


def test_cosine_distance_of_known_angles() -> None:
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 1e-6]])
    value = cosine_distance(a, b)
    assert value.dtype == torch.float64
    assert value[0] == 0
    assert value[1:3].tolist() == pytest.approx([1, 2])
    assert value[3].isnan()
    assert value[4].item() == pytest.approx(5e-13, rel=1e-6)


@pytest.mark.parametrize("measure", [mse, psnr, ssim, relative_mse, gradient_similarity])
def test_a_sample_does_not_depend_on_its_batch(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = images(0), noisy(images(0))
    whole = measure(a, b)
    assert whole.shape == (3,)
    assert whole.dtype == torch.float32
    assert torch.allclose(whole, torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(3)]), rtol=1e-6)
    assert torch.allclose(measure(a.half(), b.half()), whole, rtol=2e-2)


@pytest.mark.parametrize("measure", [mse, psnr, ssim, relative_mse, gradient_similarity])
def test_bad_input_is_refused(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="resize one first"):
        measure(images(0), images(0)[:, :, 1:])
    with pytest.raises(ValueError, match="divide 8-bit"):
        measure(images(0).byte(), images(0).byte())


def test_embeddings_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        cosine_distance(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="1 or 3"):
        gradient_similarity(torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8))
