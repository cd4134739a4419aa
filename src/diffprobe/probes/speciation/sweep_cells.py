"""What the guidance sweep measures: the images that each setting of guidance gives, and those that they should be like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import images
from diffprobe.errors import UserError
from diffprobe.images import Rendered, Source
from diffprobe.model import Model, Rig, TextEmbedder
from diffprobe.paths import NoisePath
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.looks import LOSSLESS, decode, features, flaw, valid, vectors, webp
from diffprobe.sampling import Guidance, final, guided, start, trajectory

Range = tuple[float, float | None]
OTHERS = 64  # other prompts that a margin is taken over
_ROLE = "speciation.sweep"


@dataclass(frozen=True)
class Setting:
    """Guidance by `scale` where lo < sigma <= hi (None: no upper end); scale 1 is none.

    `matched`: in place of the sweep's number of steps, as many as cost what guidance on this interval costs with that number, at
    most one network evaluation more.
    """

    scale: float
    lo: float = 0.0
    hi: float | None = None
    matched: Range | None = None

    @property
    def top(self) -> float:
        return math.inf if self.hi is None else self.hi

    @property
    def span(self) -> str:
        """Where it guides, as series of a chart are named."""
        if self.matched is not None:
            return f"full, cost of {sigma(*self.matched)}"
        return "full range" if self.lo == 0 and self.hi is None else sigma(self.lo, self.hi)

    def __str__(self) -> str:
        if self.scale == 1:
            return "unguided"
        if self.matched is not None:
            return f"scale {self.scale:g} at the cost of {sigma(*self.matched)}"
        return f"scale {self.scale:g}" + ("" if self.span == "full range" else f" on {self.span}")

    def steps(self, path: NoisePath, num_inference_steps: int) -> int:
        """How many steps are taken, where the sweep takes `num_inference_steps`."""
        if self.matched is None:
            return num_inference_steps
        return math.ceil((num_inference_steps + guided_levels(path, num_inference_steps, *self.matched)) / 2)


@dataclass(frozen=True)
class Reference:
    """Images that guided ones should be like, in the eyes of the instruments: central squares, at the size of the model's own images."""

    version: ClassVar[int] = 1
    sources: tuple[Source | Rendered, ...]

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n = len(self.sources)
        return Cost(n, decodings=1, bytes=n * 2_500 + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        embedders = _instruments(rig)
        side = min(decode(rig, torch.zeros(1, *(rig.model.shape or ()))).shape[-2:])
        seen: dict[str, list[Tensor]] = {name: [] for name in embedders}
        for begin in range(0, len(self.sources), rig.batch_size):
            batch = images.load(self.sources[begin : begin + rig.batch_size], side)
            for name, embedder in embedders.items():
                seen[name].append(embedder(batch))
        names = [source.path if isinstance(source, Source) else f"scene {source.world_seed}/{source.index}" for source in self.sources]
        return pa.table({"image": names, **{f"feature:{name}": vectors(torch.cat(parts)) for name, parts in seen.items()}})


@dataclass(frozen=True)
class Guided:
    """Images under one setting from pure noise, deterministic (DDIM, Euler): a prompt (name and text) and a seed each.

    An image's likeness is the cosine of its features and its own words'; its margin is that less the greatest likeness to the words
    of `others`, up to 64 that are not its own. Pictures of the first `keep` are stored.
    """

    version: ClassVar[int] = 1
    prompts: tuple[tuple[str, str], ...]
    seeds: tuple[int, ...]
    setting: Setting
    num_inference_steps: int
    negative_prompt: str
    others: tuple[str, ...]
    keep: int

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        """At most: what an interval spares depends on the model's path."""
        n, guides = len(self.seeds), self.setting.scale != 1
        return Cost(n, n * self.num_inference_steps * (2 if guides else 1), n, n * 2_500 + self.keep * 4_500 + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        embedders, setting = _instruments(rig), self.setting
        assert rig.model.path is not None
        steps = setting.steps(rig.model.path, self.num_inference_steps)
        drawn, spent = zip(*(self._drawn(rig, begin, steps) for begin in range(0, len(self.seeds), rig.batch_size)), strict=True)
        pictures = torch.cat(drawn)
        flags, n = [flaw(picture) for picture in pictures], len(self.seeds)
        sound = torch.where(pictures.isfinite(), pictures, 0.5).clamp(0, 1)  # an instrument must not see what is no image
        columns: dict[str, Any] = {
            "prompt_id": [name for name, _ in self.prompts],
            "prompt": [text for _, text in self.prompts],
            "seed": list(self.seeds),
            "num_inference_steps": [steps] * n,
            "guidance_scale": [setting.scale] * n,
            "guidance_lo": [setting.lo] * n,
            "guidance_hi": pa.array([setting.hi] * n, pa.float64()),
            "matched_lo": pa.array([setting.matched[0] if setting.matched else None] * n, pa.float64()),
            "matched_hi": pa.array([setting.matched[1] if setting.matched else None] * n, pa.float64()),
            "evaluations": [spent[0]] * n,
            "flag": pa.array(flags, pa.string()),
        }
        for name, embedder in embedders.items():
            seen = features(rig, embedder, sound)
            columns[f"feature:{name}"] = vectors(seen)
            if isinstance(embedder, TextEmbedder):
                columns |= self._words(name, embedder, seen, flags)
        kept = [
            webp(picture, lossless=max(picture.shape[-2:]) <= LOSSLESS) if place < self.keep and not flags[place] else None
            for place, picture in enumerate(sound)
        ]
        return pa.table({**columns, "picture": pa.array(kept, pa.binary())})

    def _drawn(self, rig: Rig, begin: int, steps: int) -> tuple[Tensor, int]:
        """A batch of images, unclamped, and the network evaluations that each of them took."""
        model, chosen = rig.model, slice(begin, begin + rig.batch_size)
        assert model.path is not None
        assert model.condition is not None
        texts, seeds, setting = [text for _, text in self.prompts[chosen]], self.seeds[chosen], self.setting
        counted = _Counted(model)
        negative = model.condition([self.negative_prompt] * len(texts)) if setting.scale != 1 else None
        denoiser = guided(counted, model.path, Guidance(setting.scale, setting.lo, setting.top, negative))
        times = model.path.levels(steps)
        x = start(model.path, times[0], model.shape or (), seeds, _ROLE).to(model.device, torch.float32)
        with torch.no_grad():
            arrived = final(trajectory(denoiser, model.path, x, times, cond=model.condition(texts)))
        return decode(rig, arrived), counted.calls

    def _words(self, name: str, reader: TextEmbedder, seen: Tensor, flags: Sequence[str | None]) -> dict[str, Any]:
        texts = list(dict.fromkeys([*(text for _, text in self.prompts), *self.others]))
        likeness = _unit(seen) @ _unit(reader.embed_text(texts)).T
        own = torch.tensor([texts.index(text) for _, text in self.prompts])
        rows = torch.arange(len(own))
        rivals = torch.full_like(likeness, -torch.inf)
        for row, (_, text) in enumerate(self.prompts):
            places = [texts.index(other) for other in self.others if other != text][:OTHERS]
            rivals[row, places] = likeness[row, places]
        near = likeness[rows, own]
        margin = near - rivals.amax(1)
        return {
            f"likeness:{name}": pa.array(valid(near, flags), pa.float64()),
            f"margin:{name}": pa.array(valid(margin, flags), pa.float64()),
        }


class _Counted:
    """A denoiser that counts its calls."""

    def __init__(self, model: Model) -> None:
        assert model.denoiser is not None
        self._denoiser, self.calls = model.denoiser, 0

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        self.calls += 1
        return self._denoiser(x, t, cond)


def guided_levels(path: NoisePath, num_inference_steps: int, lo: float, hi: float | None) -> int:
    """How many of the levels of so many steps lie in lo < sigma <= hi."""
    top = math.inf if hi is None else hi
    return sum(lo < float(path.ratio(t)) <= top for t in path.levels(num_inference_steps))


def _instruments(rig: Rig) -> dict[str, Any]:
    if not rig.embedders:
        raise UserError("a guidance sweep needs an instrument that looks at the images: name one under `embedders`, such as 'embedded'")
    return dict(rig.embedders)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=-1)


def sigma(lo: float, hi: float | None) -> str:
    return f"sigma {lo:g} to {'∞' if hi is None else f'{hi:g}'}"
