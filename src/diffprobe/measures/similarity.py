"""How alike two images or two embeddings are, one number a sample; the first argument is always the reference.

Images are float tensors [B, C, H, W] in [0, 1]. Results are [B], in float32 (float64 where the input is), on the input's device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Gaussian window and constants of Wang et al. 2004, section III.
SSIM_SIZE, SSIM_SIGMA, SSIM_C1, SSIM_C2 = 11, 1.5, 0.01**2, 0.03**2
#: Constant c of Xue et al. 2014, eq. 4, for images in [0, 1]: their T = 170 for [0, 255], over 255^2.
GRADIENT_C = 0.0026
#: Rec. 601 luma.
LUMA = (0.299, 0.587, 0.114)
#: Numbers turned into unit vectors at once: what stays in the processor's cache is several times faster.
CHUNK = 1 << 16


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error [B] over channels and pixels. Raises ValueError where the shapes differ."""
    a, b = _pair(a, b)
    return (a - b).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB for a data range of 1; infinite for equal images."""
    return -10 * mse(a, b).log10()


def relative_mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error [B] in units of the reference's own variance over channels and pixels; nan where that is 0.

    An aerial or a night image has little variance, so that a small error may still be all that there was to see.
    """
    error = mse(a, b)
    variance = a.double().flatten(1).var(1, correction=0)
    return torch.where(variance > 0, error / variance, torch.nan).to(error.dtype)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [B] in [-1, 1], 1 for equal images (Wang et al. 2004).

    Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03, data range 1, mean over channels and over the
    windows that lie wholly in the image. Moments are float64: in flat regions the variance is a difference of near equals.
    Raises ValueError for images under 11 pixels.
    """
    a, b = _pair(a, b)
    height, width = a.shape[-2:]
    if min(height, width) < SSIM_SIZE:
        raise ValueError(
            f"ssim needs images of at least {SSIM_SIZE} x {SSIM_SIZE} pixels, these have {height} x {width}: enlarge them or use mse"
        )
    x, y = a.double(), b.double()
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)
    similarity: Tensor = luminance * structure
    return similarity.flatten(1).mean(1).to(a.dtype)


def gradient_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Gradient magnitude similarity [B] in [0, 1], 1 for equal images: the mean of Xue et al. 2014, eq. 4, with c = 0.0026.

    Luma (of images with 3 channels; 1 channel is taken as it is), averaged and subsampled by 2 as in the paper, Prewitt
    gradients inside the image. Blind to a constant shift of brightness; sensitive to edges that move, blur or appear.
    Raises ValueError for images under 6 pixels or with another number of channels.
    """
    a, b = _pair(a, b)
    if a.shape[1] not in {1, 3} or min(a.shape[-2:]) < 6:
        raise ValueError(f"gradient_similarity needs [B, 1 or 3, H, W] with H, W >= 6, not {list(a.shape)}: enlarge or convert the images")
    reference, other = _gradient(a), _gradient(b)
    similarity: Tensor = (2 * reference * other + GRADIENT_C) / (reference**2 + other**2 + GRADIENT_C)
    return similarity.flatten(1).mean(1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) of embeddings [B, D]: float64 [B] in [0, 2], exactly 0 for equal vectors, nan where a vector is zero.

    Computed as half the squared distance of the unit vectors, which keeps its digits where the angle is small.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"cosine_distance needs two tensors [B, D] of one shape, not {list(a.shape)} and {list(b.shape)}")
    x, y = a.double(), b.double()
    chord = F.normalize(x, dim=1, eps=0) - F.normalize(y, dim=1, eps=0)
    return chord.square().sum(1) / 2


def mean_pairwise_cosine(embeddings: Tensor) -> Tensor:
    """The mean cosine over all pairs of R embeddings: [..., R, D] to float64 [...], in [-1 / (R - 1), 1], on the input's device.

    One minus the total variance of the unit vectors, which equals (|sum|^2 - R) / (R (R - 1)) without the loss of digits near 1.
    Nan for a set with an embedding that is zero or not finite. Raises ValueError for R < 2.
    """
    if embeddings.ndim < 2 or embeddings.shape[-2] < 2 or embeddings.shape[-1] < 1:
        raise ValueError(f"a mean over pairs needs embeddings [..., R, D] with R >= 2, D >= 1, not {list(embeddings.shape)}")
    sets = embeddings.reshape(-1, *embeddings.shape[-2:])
    step = max(1, CHUNK // math.prod(sets.shape[1:]))
    return torch.cat([_mean_cosine(part) for part in sets.split(step)]).reshape(embeddings.shape[:-2])


def semantic_consistency(embeddings: Tensor) -> Tensor:
    """The semantic consistency score of each set: embeddings [..., R, D] to float64 [...], 100 for equal images (Bent 2024).

    100 times the mean pairwise cosine, unclipped: a set of opposites scores below 0, and the score is unbiased for every R.
    `measures.consistency.score` gives its interval, and the score with negative cosines taken as 0. Raises ValueError for R < 2.
    """
    return 100 * mean_pairwise_cosine(embeddings)


def _mean_cosine(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:  # squares of narrower numbers stay within float64
        x = x / x.abs().amax(-1, keepdim=True)
    x, count = x.double(), x.shape[-2]
    inverse = 1 / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    centre = inverse.mT @ x / count
    spread = torch.linalg.vector_norm((x * inverse).sub_(centre).flatten(1), dim=1).square()
    mean: Tensor = 1 - spread / (count - 1)
    return mean


def sharpness(images: Tensor) -> Tensor:
    """The mean squared gradient of images [B, C, H, W] in [0, 1], float64 [B], by differences of neighbouring pixels.

    mean (x[i+1, j] - x[i, j])^2 + mean (x[i, j+1] - x[i, j])^2: 0 for a constant image, 1/3 for independent uniform pixels. It depends
    on the size: compare images of one. Raises ValueError for images of a single row or column.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 2:
        raise ValueError(f"sharpness compares neighbouring pixels of images [B, C, H, W], and {list(images.shape)} has none on one side")
    values = images.double()
    down, across = (values.diff(dim=dim).square().mean((1, 2, 3)) for dim in (-2, -1))
    return down + across


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"need two image batches [B, C, H, W] of one shape, not {list(a.shape)} and {list(b.shape)}: resize one first")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"need float images in [0, 1], not {a.dtype} and {b.dtype}: divide 8-bit values by 255")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of x [..., H, W] over the windows that lie inside: [..., H - 10, W - 10]; the window is separable.

    A sum of shifted copies: 7 to 15 times faster on the CPU than a convolution, which has no fast float64 there.
    """
    offset = torch.arange(SSIM_SIZE, dtype=torch.float64) - SSIM_SIZE // 2
    window = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    for axis in (-1, -2):
        inside = x.shape[axis] - SSIM_SIZE + 1
        x = sum((weight * x.narrow(axis, k, inside) for k, weight in enumerate(weights[1:], 1)), weights[0] * x.narrow(axis, 0, inside))
    return x


def _gradient(x: Tensor) -> Tensor:
    luma = (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x
    across = x.new_tensor([1.0, 0.0, -1.0]).expand(3, 3) / 3
    grey = F.avg_pool2d(luma, 2)
    gradients = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return gradients.square().sum(1).sqrt()
