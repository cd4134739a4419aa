"""What a geometry guide learns from: local scaling psi of the decoder, the costly part, kept in a file as it grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffprobe import rng
from diffprobe.errors import UserError
from diffprobe.measures.geometry import directions, jacobian_spectrum, local_scaling
from diffprobe.model import Codec, Model
from diffprobe.paths import NoisePath, VariancePreserving

FEWEST = 20
#: The levels among which those of an image are drawn.
LADDER = 1000
_CHUNK = 16
_KEY = "diffprobe.guide_labels"


@dataclass(frozen=True)
class LabelSettings:
    """What is measured where: `levels` noise levels an image, psi on `directions` output directions (all of them where there are fewer).

    `target` "clean" is psi at the image's own latent, whatever noise it is shown under: what the sample is to become. "noised", the
    study's, is psi at the noised latent itself, at `levels` times the cost; it hardly moves the samples (docs/geometry-guidance.md).
    """

    levels: int = 10
    directions: int = 120
    direction_seed: int = 0
    target: Literal["noised", "clean"] = "clean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.levels < 1 or self.directions < 1:
            raise UserError(f"levels and directions are 1 or more, not {self.levels} and {self.directions}")
        if self.target not in ("noised", "clean"):
            raise UserError(f"unknown target '{self.target}': choose 'noised' or 'clean'")

    def cost(self, images: int) -> int:
        """Reverse passes through the decoder that the labels of so many images take: each about two decodings."""
        return images * self.directions * (self.levels if self.target == "noised" else 1)


class Labels(NamedTuple):
    """Latents [n, C, h, w], the levels drawn for each as log(sigma/alpha) [n, levels], and psi [n, levels]; float64 both."""

    latents: Tensor
    log_ratio: Tensor
    psi: Tensor
    settings: LabelSettings

    def noised(self, rows: Tensor, level: int) -> Tensor:
        """The unit latents at one drawn level of some images, [len(rows), C, h, w] float32."""
        noise = rng.normal(self.latents.shape[1:], f"guide.noise.{self.settings.seed}.{level}", rows.tolist())
        return unit(self.latents[rows], self.log_ratio[rows, level], noise)


def labelled(model: Model, latents: Tensor, settings: LabelSettings, cache: Path | str | None = None) -> Labels:
    """psi of the decoder for latents [n, C, h, w] as `settings` say; the cost is `settings.cost(n)` reverse passes.

    f = 2 decode - 1, so that outputs are in [-1, 1]; a noised latent is x_t / sqrt(alpha^2 + sigma^2), on every path. With a
    `cache` what was measured is kept there as it grows, and a second call goes on from it. Raises UserError where the model lacks
    a codec or a path, for fewer than 20 latents, for a cache of other labels, and where psi is not finite or the same everywhere.
    """
    path, codec = _needs(model)
    if len(latents) < FEWEST:
        raise UserError(f"a guide is trained on {FEWEST} images or more, not {len(latents)}: give more")
    latents = latents.detach().float().cpu()
    blank = torch.full((len(latents), settings.levels if settings.target == "noised" else 1), torch.nan, dtype=torch.float64)
    labels = Labels(latents, _levels(path, len(latents), settings), blank, settings)
    file, key = None if cache is None else Path(cache), _digest(model, labels)
    if file is not None and file.exists():
        labels = labels._replace(psi=_read(file, key, blank.shape))
    measured = _measured(model, codec, labels, file, key)
    if settings.target == "clean":
        measured = measured.expand(-1, settings.levels)
    _check(measured)
    return labels._replace(psi=measured)


def unit(latents: Tensor, log_ratio: Tensor, noise: Tensor) -> Tensor:
    """(x0 + r noise) / sqrt(1 + r^2), r = sigma/alpha [B]: x_t over sqrt(alpha^2 + sigma^2), whatever the path."""
    ratio = log_ratio.exp().reshape(-1, *[1] * (latents.ndim - 1))
    return ((latents + ratio * noise) / (1 + ratio.square()).sqrt()).float()


def ladder(path: NoisePath) -> NDArray[np.float64]:
    """log(sigma/alpha) of a path's own levels, up to 1000 of them, pure noise left out."""
    most = len(path.alphas_cumprod) if isinstance(path, VariancePreserving) else LADDER
    ratios: NDArray[np.float64] = np.array([float(path.ratio(t)) for t in path.levels(min(LADDER, most))])
    return np.asarray(np.log(ratios[np.isfinite(ratios) & (ratios > 0)]))


def _needs(model: Model) -> tuple[NoisePath, Codec]:
    for name in ("codec", "path"):
        if getattr(model, name) is None:
            raise UserError(
                f"guidance by geometry needs a {name}; {model.name} has none: give a model with an autoencoder and a noise path"
            )
    assert model.path is not None
    assert model.codec is not None
    return model.path, model.codec


def _levels(path: NoisePath, count: int, settings: LabelSettings) -> Tensor:
    """Levels drawn for each image among the path's own, log(sigma/alpha) float64 [n, levels]."""
    known = ladder(path)
    draws = [rng.stream("guide.levels", settings.seed, image).integers(len(known), size=settings.levels) for image in range(count)]
    return torch.from_numpy(known[np.stack(draws)])


def _measured(model: Model, codec: Codec, labels: Labels, file: Path | None, key: str) -> Tensor:
    """psi of every row that has none yet."""
    psi, settings = labels.psi.clone(), labels.settings
    missing = psi.isnan().any(1).nonzero()[:, 0]
    frame: Tensor | None = None

    def f(z: Tensor) -> Tensor:
        return 2 * codec.decode(z) - 1

    for rows in missing.split(_CHUNK) if len(missing) else ():
        for level in range(psi.shape[1]):
            place = labels.noised(rows, level) if settings.target == "noised" else labels.latents[rows]
            place = place.to(model.device)
            if frame is None:
                with torch.no_grad():
                    outputs = f(place[:1]).numel()
                frame = directions(outputs, min(settings.directions, outputs), settings.direction_seed).to(model.device)
            try:
                psi[rows, level] = local_scaling(jacobian_spectrum(f, place, frame)).cpu().double()
            except (ValueError, MemoryError) as error:
                raise UserError(f"psi of {model.name}'s decoder cannot be measured: {error}") from error
        if file is not None:
            _write(file, key, psi)
    return psi


def _check(psi: Tensor) -> None:
    bad = int((~psi.isfinite()).sum())
    if bad:
        raise UserError(f"psi is not finite at {bad} of {psi.numel()} latents: this decoder gives values that are none, or is dead there")
    low, high = float(psi.min()), float(psi.max())
    if high - low <= 1e-5 * max(1.0, abs(low)):
        raise UserError(f"psi is {low:.4g} at every latent: a decoder that stretches alike everywhere has nothing to be guided by")


def _digest(model: Model, labels: Labels) -> str:
    """What the labels depend on: the model's identity, the latents, the levels and the settings."""
    told: Mapping[str, Any] = {"model": dict(model.identity) or model.name, **asdict(labels.settings)}
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for part in (labels.latents, labels.log_ratio):
        total.update(np.ascontiguousarray(part.numpy()).tobytes())
    return total.hexdigest()


def _read(file: Path, key: str, shape: torch.Size) -> Tensor:
    try:
        with safe_open(file, framework="pt") as kept:
            found = (kept.metadata() or {}).get(_KEY)
            psi: Tensor | None = kept.get_tensor("psi") if found == key else None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} holds no labels that can be read: remove it, or name another file") from error
    if psi is None or psi.shape != shape:
        raise UserError(f"{file} holds the labels of other images, settings or another model: name another file")
    return psi


def _write(file: Path, key: str, psi: Tensor) -> None:
    partial = file.with_name(f"{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"psi": psi}, partial, metadata={_KEY: key})
    partial.replace(file)
