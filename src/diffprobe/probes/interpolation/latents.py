"""Where latents at the noisiest level come from: images that are inverted, generated ones, noised ones, or noise itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import images, rng
from diffprobe.images import Picture
from diffprobe.inversion import Inversion, replay
from diffprobe.model import Rig
from diffprobe.paths import NoisePath
from diffprobe.probes.looks import decode, encoded
from diffprobe.sampling import start

ROLE = "interpolation"
#: Real images inverted; images that the model made, inverted; encodings noised forwards; and noise that no image is behind.
Origin = Literal["images", "generated", "noised", "noise"]
ORIGINS: tuple[Origin, ...] = ("images", "generated", "noised", "noise")


@dataclass(frozen=True)
class Begun:
    """Images [B, 3, H, W] in [0, 1] and their encodings [B, C, h, w], float32 on the CPU."""

    seen: Tensor
    encoded: Tensor


def role(kind: str, group: str) -> str:
    """What noise is for: every group has some of its own, so that means over groups are means of independent ones."""
    return f"{ROLE}.{kind}.{group}"


def scale_of(path: NoisePath, t: float) -> float:
    """The standard deviation of pure noise at t, as a path lays it on data of unit variance."""
    return float((path.alpha(t).square() + path.sigma(t).square()).sqrt())


def pictured(rig: Rig, sources: Sequence[Picture], size: int) -> Begun:
    """Images of files or scenes."""
    seen = images.load(sources, size)
    return Begun(seen, encoded(rig, rig.model, seen))


def generated(rig: Rig, group: str, prompt: str, seeds: Sequence[int], how: Inversion, look: tuple[float, float]) -> Begun:
    """Images that the model makes of noise, with `look` = (guidance scale, standard deviation of the noise added to their pixels)."""
    guidance_scale, perturbation = look
    path, shape = rig.model.path, rig.model.shape
    assert path is not None
    assert shape is not None
    noise = start(path, path.levels(how.num_inference_steps)[0], shape, seeds, role("generated", group))
    plain = Inversion(num_inference_steps=how.num_inference_steps)
    clean = decode(rig, replayed(rig, noise, [prompt] * len(seeds), plain, guidance_scale))
    disturbed = clean + perturbation * rng.normal(clean.shape[1:], role("perturbation", group), seeds)
    seen = disturbed.clamp(0, 1)
    return Begun(seen, encoded(rig, rig.model, seen))


def replayed(
    rig: Rig, latents: Tensor, prompts: Sequence[str], how: Inversion, guidance_scale: float, nothing: Tensor | None = None
) -> Tensor:
    """The clean latents of noisy ones [B, C, h, w], in batches; nan where these are not finite. `nothing` [steps, B, ...] were tuned."""
    clean, sound = torch.full_like(latents, torch.nan), latents.flatten(1).isfinite().all(1).nonzero().flatten()
    for some in sound.split(rig.batch_size):
        tuned = None if nothing is None else nothing[:, some]
        asked = [prompts[place] for place in some.tolist()]
        clean[some] = replay(rig.model, latents[some], asked, how, guidance_scale=guidance_scale, nothing=tuned)
    return clean


def sides(guidance_scale: float) -> int:
    """The evaluations that a step costs, down."""
    return 1 if guidance_scale == 1 else 2


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of lists as rows [n, D]."""
    return np.stack(column.to_numpy(zero_copy_only=False)).astype(np.float32)


def latents_of(rows: pa.Table) -> Tensor:
    """The latents [B, C, h, w] of a record's rows, pure noise having unit variance."""
    return torch.from_numpy(matrix(rows["latent"])).view(-1, *rows["shape"][0].as_py())


def kept_states(nothing: Tensor) -> dict[str, pa.Array]:
    """Tuned unconditional states [steps, B, ...] as two columns: bytes in half precision, and their shape."""
    rows = nothing.transpose(0, 1).half().contiguous()
    data = [row.numpy().tobytes() for row in rows]
    return {"nothing": pa.array(data, pa.large_binary()), "nothing_shape": pa.array([list(rows.shape[1:])] * len(rows))}


def mixed_states(rows: pa.Table, weights: npt.NDArray[np.float64]) -> Tensor | None:
    """The unconditional states of mixtures, those of their parts mixed linearly, [steps, K, ...]; None where none were tuned."""
    if "nothing" not in rows.column_names:
        return None
    shape, kept = rows["nothing_shape"][0].as_py(), rows["nothing"].combine_chunks()
    mixed = torch.zeros(len(weights), *shape)
    for row, weight in enumerate(weights):  # one mixture's members at a time: states are large
        for place in np.flatnonzero(weight):
            states = np.frombuffer(kept[int(place)].as_buffer(), np.float16).astype(np.float32)
            mixed[row] += float(weight[place]) * torch.from_numpy(states).view(shape)
    return mixed.transpose(0, 1)
