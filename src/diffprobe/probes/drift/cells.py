"""What the drift probe measures: the originals once, the decoder's own response to noise, and the edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import images, rng
from diffprobe.errors import UserError
from diffprobe.images import Picture, caption, content, domain, name
from diffprobe.measures import drift, similarity
from diffprobe.model import EditSettings, Level, Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.drift.editors import PIPELINE, editor_of, evaluations_of, level_of
from diffprobe.probes.drift.looks import DIRECTIONS, apart, compare, embedded, gains, linear
from diffprobe.probes.looks import decode, encoded, features, flaw, native, resized, valid, vectors, webp


@dataclass(frozen=True)
class Originals:
    """A few images seen once: their encoding, what the codec alone does to them, their features, the decoder's gain there.

    Of a model without a codec, whose editor takes the images themselves, there are the features alone.
    `resolution` is what the pipeline works at (None: its native size), `measured` what images are compared at (None: the same).
    `gain` is left out where no drift is decomposed: it costs eight decodings an image.
    """

    version: ClassVar[int] = 1
    sources: tuple[Picture, ...]
    resolution: int | None
    measured: int | None
    keep: bool
    gain: bool = True

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n = len(self.sources)
        return Cost(samples=n, decodings=n * (1 + 2 * DIRECTIONS * self.gain), bytes=n * 24_000)

    def measure(self, rig: Rig) -> pa.Table:
        seen, flags = _images(rig, self)
        columns: dict[str, Any] = {
            "image": [name(source) for source in self.sources],
            "domain": [domain(source) for source in self.sources],
            "flag": flags,
        }
        rebuilt = None
        if rig.model.codec is not None:
            latents = encoded(rig, rig.model, resized(seen, _working_size(rig, self)))
            latents = latents.clone(memory_format=torch.contiguous_format)  # laid out as they will be read back, to the bit
            rebuilt = resized(_rebuilt(rig, self, latents), seen.shape[-1]).clamp(0, 1)
            columns |= {"latent": vectors(latents.flatten(1)), "shape": [list(latents.shape[1:])] * len(latents)}
            columns |= {**compare(seen, rebuilt, flags), **apart(rig, seen, rebuilt, flags)}
            if self.gain:
                columns["gain"] = gains(rig, latents)
        for label, embedder in rig.embedders.items():
            before = features(rig, embedder, seen)
            columns[f"feature:{label}"] = vectors(before)
            if rebuilt is not None:
                columns[f"cosine:{label}"] = valid(similarity.cosine_distance(before, features(rig, embedder, rebuilt)), flags)
        columns["picture"] = [webp(image) if self.keep else None for image in seen]
        return pa.table(columns)


@dataclass(frozen=True)
class DecoderNoise:
    """What the decoder alone makes of noise as strong as an edit starts with: mean((D(z0 + sigma eps) - D(z0))^2)."""

    version: ClassVar[int] = 1
    originals: Originals
    strength: float
    num_inference_steps: int
    reference_steps: int | None
    seeds: tuple[int, ...]

    def inputs(self) -> tuple[Cell, ...]:
        return (self.originals,)

    def cost(self) -> Cost:
        return Cost(samples=len(self.seeds), decodings=len(self.seeds), bytes=len(self.seeds) * 60 + 2000)

    def measure(self, rig: Rig, originals: pa.Table) -> pa.Table:
        assert rig.model.codec is not None
        latents, flags = unpack(originals)
        base = _rebuilt(rig, self.originals, latents)
        strength = equal_start(rig, self.strength, self.num_inference_steps, self.reference_steps)
        level = level_of(rig.model, strength, self.num_inference_steps)
        noisy = latents + level.sigma * rng.normal(latents.shape[1:], "drift.decoder", self.seeds)
        values = similarity.mse(base, decode(rig, noisy))
        n = len(latents)
        return pa.table(
            {
                "image": originals["image"],
                "seed": list(self.seeds),
                "strength": [strength] * n,
                "steps": [level.steps] * n,
                "sigma": [level.sigma] * n,
                "num_inference_steps": [self.num_inference_steps] * n,
                "decoder_only": valid(values, flags),
                "flag": flags,
            }
        )


@dataclass(frozen=True)
class Edits:
    """An editor told to change nothing: one prompt, one strength, a few images, a seed for each.

    `editor` is the deployed pipeline, or a way of inversion, which draws nothing. With `reference_steps` the strength is
    understood at that many steps, and translated to the strength that starts nearest to the same noise level at
    `num_inference_steps`. `prompt` None is the image's own caption.
    """

    version: ClassVar[int] = 1
    originals: Originals
    prompt_set: str
    prompt: str | None
    negative_prompt: str
    strength: float
    num_inference_steps: int
    reference_steps: int | None
    guidance_scale: float
    seeds: tuple[int, ...]
    budget: bool
    editor: str = PIPELINE

    def inputs(self) -> tuple[Cell, ...]:
        return (self.originals,)

    def cost(self) -> Cost:
        n = len(self.seeds)
        steps = max(1, int(self.num_inference_steps * self.strength)) * evaluations_of(self.editor, self.guidance_scale)
        return Cost(n, n * steps, n * (4 if self.budget else 1), n * (12_000 if self.originals.keep else 400) + 4000)

    def measure(self, rig: Rig, originals: pa.Table) -> pa.Table:
        seen, _ = _images(rig, self.originals)
        if rig.model.codec is None:
            latents, flags = resized(seen, _working_size(rig, self.originals)), originals["flag"].to_pylist()
        else:
            latents, flags = unpack(originals)
        prompts = [caption(source) if self.prompt is None else self.prompt for source in self.originals.sources]
        strength = equal_start(rig, self.strength, self.num_inference_steps, self.reference_steps)
        edited, moved, level, guided = _edit(rig, self, latents, prompts, strength)
        shown = resized(edited, seen.shape[-1]).clamp(0, 1)
        flags = [flag or flaw(image) for flag, image in zip(flags, edited, strict=True)]
        columns: dict[str, Any] = {
            "image": originals["image"],
            "content": [content(source) for source in self.originals.sources],
            "domain": originals["domain"],
            "prompt_set": [self.prompt_set] * len(flags),
            "prompt": prompts,
            "seed": list(self.seeds),
            **_constants(self, strength, level, guided, len(flags)),
            "flag": flags,
            **compare(seen, shown, flags),
            **apart(rig, seen, shown, flags),
            **embedded(rig, originals, shown, prompts, flags),
        }
        if self.budget:
            base = _rebuilt(rig, self.originals, latents)
            target = resized(seen, edited.shape[-1])
            parts = drift.drift_budget(target, base, edited)
            columns |= {part: valid(getattr(parts, part), flags) for part in ("total", "floor", "move", "cross")}
            columns["energy"] = valid((moved - latents).double().square().flatten(1).sum(1), flags)
            columns["linear"] = valid(linear(rig, latents, moved - latents), flags)
        columns["picture"] = [webp(image) if self.originals.keep and not flag else None for image, flag in zip(shown, flags, strict=True)]
        return pa.table(columns)


def equal_start(rig: Rig, strength: float, steps: int, reference: int | None) -> float:
    """The strength that starts nearest (in log sigma) to where `strength` starts at `reference` steps; itself where that is None."""
    if reference is None or reference == steps:
        return strength
    goal = np.log(level_of(rig.model, strength, reference).sigma)
    choices = [(k + 0.5) / steps for k in range(1, steps)] + [1.0]
    starts = [level_of(rig.model, choice, steps).sigma for choice in choices]
    return choices[int(np.argmin([abs(np.log(sigma) - goal) if sigma > 0 else np.inf for sigma in starts]))]


def unpack(originals: pa.Table) -> tuple[Tensor, list[str | None]]:
    """The latents [B, C, h, w] and the flags of a record of Originals."""
    shape = originals["shape"][0].as_py()
    flat = np.stack(originals["latent"].to_numpy(zero_copy_only=False)).astype(np.float32)
    return torch.from_numpy(flat).view(-1, *shape), originals["flag"].to_pylist()


def _images(rig: Rig, cell: Originals) -> tuple[Tensor, list[str | None]]:
    """The images [B, 3, S, S] as they are compared, and a flag for each that could not be read."""
    size = cell.measured or _working_size(rig, cell)

    def read() -> tuple[Tensor, list[str | None]]:
        found, flags = torch.full((len(cell.sources), 3, size, size), 0.5), list[str | None]()
        for i, source in enumerate(cell.sources):
            try:
                found[i] = images.load([source], size)[0]
                flags.append(None)
            except UserError as error:
                flags.append(str(error))
        return found, flags

    return rig.memo(("drift.images", cell), read)


def _rebuilt(rig: Rig, cell: Originals, latents: Tensor) -> Tensor:
    """D(z0), unclamped, at the pipeline's resolution."""
    return rig.memo(("drift.rebuilt", cell), lambda: decode(rig, latents))


def _edit(rig: Rig, cell: Edits, latents: Tensor, prompts: Sequence[str], strength: float) -> tuple[Tensor, Tensor, Level, bool | None]:
    editor = editor_of(rig.model, cell.editor)
    settings = EditSettings(strength, cell.num_inference_steps, cell.guidance_scale, cell.negative_prompt)
    done = [
        editor.edit(latents[i : i + rig.batch_size], prompts[i : i + rig.batch_size], cell.seeds[i : i + rig.batch_size], settings)
        for i in range(0, len(latents), rig.batch_size)
    ]
    edited = torch.cat([part.images.float().cpu() for part in done])
    moved = torch.cat([latents[:0] if part.latents is None else part.latents.float().cpu() for part in done])
    return edited, moved, done[0].level, done[0].guided


def _working_size(rig: Rig, cell: Originals) -> int:
    return cell.resolution or native(rig.model)


def _constants(cell: Edits, strength: float, level: Level, guided: bool | None, n: int) -> dict[str, Any]:
    """What is the same in all rows; what the editor does not say is null, and of the type that it has elsewhere."""
    values = {
        "editor": cell.editor,
        "strength": strength,
        "requested_strength": cell.strength,
        "num_inference_steps": cell.num_inference_steps,
        "steps": level.steps,
        "t_start": level.t,
        "alpha": level.alpha,
        "sigma": level.sigma,
        "guidance_scale": cell.guidance_scale,
        "guided": guided,
        "resolution": cell.originals.resolution or 0,
    }
    untold = {} if level.told else {"steps": pa.int64(), "t_start": pa.float64(), "alpha": pa.float64(), "sigma": pa.float64()}
    types = {"guided": pa.bool_(), **untold}
    return {column: pa.array([None if column in untold else value] * n, types.get(column)) for column, value in values.items()}
