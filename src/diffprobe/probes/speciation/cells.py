"""What the speciation probe measures: stochastic trajectories, how likely each condition finds them, and what they show on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe.model import Rig, TextEmbedder
from diffprobe.paths import NoisePath
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.looks import LOSSLESS, decode, features, flaw, webp
from diffprobe.probes.speciation.panel import Asked, Followed, alone, follow, states
from diffprobe.probes.speciation.partitions import Push
from diffprobe.sampling import State

_NOISE = 1e30  # stands for sigma infinite


@dataclass(frozen=True)
class Paths:
    """Trajectories of one condition, the first of `conditions`, a seed each; along them, all conditions are evaluated.

    The record has each condition's log likelihood of the path so far, against the first, at every level, and the squared
    distances between their predictions: enough for any partition of these conditions, with any priors. The seeds' noise is the
    same for every condition and every push. A push guides away from `negative_prompt`, which is then among the conditions. One
    condition that is drawn with several groups of others has a `group` for each.
    """

    version: ClassVar[int] = 1
    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    num_inference_steps: int
    push: Push | None = None
    negative_prompt: str = ""
    group: int = 0

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n, k, steps = len(self.seeds), len(self.conditions), self.num_inference_steps
        return Cost(n, n * k * steps, n, n * (8 * steps * k + 4 * steps * k * (k - 1) + 500) + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        found = self._followed(rig)
        n, push = len(self.seeds), self.push
        sound = found.likelihoods.isfinite().flatten(1).all(1) & found.gaps.isfinite().flatten(1).all(1)
        columns: dict[str, Any] = {
            "prompt": [self.conditions[0]] * n,
            "seed": list(self.seeds),
            "group": [self.group] * n,
            "guidance": ["none" if push is None else str(push)] * n,
            "num_inference_steps": [self.num_inference_steps] * n,
            "guidance_scale": [1.0 if push is None else push.scale] * n,
            "guidance_lo": [0.0 if push is None else push.lo] * n,
            "guidance_hi": pa.array([None if push is None else push.hi] * n, pa.float64()),
            "guided_sides": pa.array([None if push is None else push.sides] * n, pa.string()),
            "flag": pa.array([None if fine else "not finite" for fine in sound.tolist()], pa.string()),
            "conditions": pa.array([list(self.conditions)] * n, pa.list_(pa.string())),
            "sigmas": _lists(np.tile(np.array(found.sigma), (n, 1))),
            "log_likelihood": _lists(found.likelihoods.flatten(1).numpy()),
            "gap": _lists(found.gaps.flatten(1).numpy()),
        }
        return pa.table({**columns, **self._likeness(rig, found.arrived)})

    def _followed(self, rig: Rig) -> Followed:
        batch = max(1, 2 * rig.batch_size // len(self.conditions))  # as many rows as guidance would make of a batch of images
        away = self.conditions.index(self.negative_prompt) if self.push is not None else 0
        asked = Asked(self.conditions, self.push, away)
        parts = [follow(rig.model, asked, self.seeds[i : i + batch], self.num_inference_steps) for i in range(0, len(self.seeds), batch)]
        sigma, *columns = zip(*parts, strict=True)
        return Followed(sigma[0], *(torch.cat(column) for column in columns))

    def _likeness(self, rig: Rig, arrived: Tensor) -> dict[str, Any]:
        """How near each final image lies to the words of every condition, in the eyes of the instruments that read; null for no image."""
        readers = {name: one for name, one in rig.embedders.items() if isinstance(one, TextEmbedder)}
        if not readers or rig.model.codec is None or not any(self.conditions):
            return {}
        images = decode(rig, arrived)
        flawed = torch.tensor([flaw(image) is not None for image in images])
        clean = torch.where(images.isfinite(), images, 0.5).clamp(0, 1)
        found = {}
        for name, reader in readers.items():
            texts = torch.nn.functional.normalize(reader.embed_text(list(self.conditions)).double(), dim=-1)
            seen = torch.nn.functional.normalize(features(rig, rig.embedders[name], clean).double(), dim=-1)
            found[f"similarity:{name}"] = _lists((seen @ texts.T).where(~flawed[:, None], torch.nan).numpy())
        return found


@dataclass(frozen=True)
class Snapshots:
    """What the denoiser sees on the way: E[x_0 | x_t] of one condition, decoded, at the levels nearest to `sigmas`.

    Where none are given, at `count` of them, evenly spaced in steps. The trajectories are those of `Paths` with the same seeds.
    """

    version: ClassVar[int] = 1
    prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    count: int
    sigmas: tuple[float, ...] = ()

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n, shown = len(self.seeds), len(self.sigmas) or min(self.count, self.num_inference_steps)
        return Cost(n, n * self.num_inference_steps, n * shown, n * shown * 4_500 + 2_000)

    def steps(self, path: NoisePath) -> set[int]:
        """The steps that are shown, from 0: those chosen, or evenly spaced ones with the first and the last."""
        if not self.sigmas:
            return {int(step) for step in np.linspace(0, self.num_inference_steps - 1, self.count).round()}
        levels = np.array([float(path.ratio(t)) for t in path.levels(self.num_inference_steps)])
        return {int(np.argmin(np.abs(np.log(np.minimum(levels, _NOISE)) - np.log(min(sigma, _NOISE))))) for sigma in self.sigmas}

    def measure(self, rig: Rig) -> pa.Table:
        assert rig.model.path is not None
        rows, shown = list[dict[str, Any]](), self.steps(rig.model.path)
        for begin in range(0, len(self.seeds), rig.batch_size):
            seeds = self.seeds[begin : begin + rig.batch_size]
            with torch.no_grad():
                for state in states(rig.model, alone(rig.model, self.prompt, len(seeds)), seeds, self.num_inference_steps):
                    if state.step in shown:
                        rows += self._shown(rig, state, seeds)
        rows.sort(key=lambda row: (self.seeds.index(row["seed"]), row["step"]))
        kinds = {"prompt": pa.string(), "seed": pa.int64(), "step": pa.int64(), "sigma": pa.float64()}
        return pa.Table.from_pylist(rows, schema=pa.schema({**kinds, "flag": pa.string(), "picture": pa.binary()}))

    def _shown(self, rig: Rig, state: State, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
        assert rig.model.path is not None
        sigma, found = float(rig.model.path.ratio(state.t)), []
        for seed, image in zip(seeds, decode(rig, state.x0), strict=True):
            flag = None if bool(image.isfinite().all()) else "not finite"
            picture = None if flag else webp(image, lossless=max(image.shape[-2:]) <= LOSSLESS)
            found.append({"prompt": self.prompt, "seed": seed, "step": state.step, "sigma": sigma, "flag": flag, "picture": picture})
        return found


def _lists(matrix: npt.NDArray[np.float64]) -> pa.ListArray:
    """Rows [n, m] as a column of lists; their length is no part of its type, since it differs between cells."""
    n, m = matrix.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * m), pa.array(matrix.ravel()))
