"""Editing by inversion: up to the level of a strength without noise, and down again under the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isclose
from typing import ClassVar

import torch
from torch import Tensor

from diffprobe.errors import UserError
from diffprobe.inversion.climb import levels
from diffprobe.inversion.invert import Inversion, invert, replay
from diffprobe.model import Edited, EditSettings, Level, Model
from diffprobe.paths import executed_steps
from diffprobe.sampling import guides


@dataclass(frozen=True, eq=False)
class InversionEditor:
    """An image editor that climbs to where the deployed pipeline would begin, instead of adding noise, and comes down as `replay` does.

    It climbs under the edit's own prompt. Where the model has an editor with a strength axis, that one says at which level a strength
    begins; the steps from there are those of the model's path. Of `how` it takes the method, its iterations, and the guidance at which
    "ddim" climbs. All else is each edit's own: the way down is guided as deployed, "fixed-point" climbs by the very steps that come
    down, guidance included, and "null-text" is tuned for it.
    """

    model: Model
    how: Inversion = field(default_factory=Inversion)
    strength_axis: ClassVar[bool] = True

    @cached_property
    def size(self) -> int:
        """The model's native side in pixels."""
        if self.model.editor is not None:
            return self.model.editor.size
        codec, shape = self.model.codec, self.model.shape
        if codec is None or shape is None:
            raise UserError(f"{self.model.name} has no editor, and no codec and shape that tell its native size: give the model one")
        with torch.no_grad():
            return int(codec.decode(torch.zeros(1, *shape, device=self.model.device)).shape[-1])

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """Where an edit begins; no step is executed at a strength that the pipeline would round to none."""
        level, times = self._start(strength, num_inference_steps)
        return level._replace(steps=len(times))

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        """Edit latents [B, C, h, w] under a prompt each. Nothing is drawn, so the seeds change nothing."""
        level, times = self._start(settings.strength, settings.num_inference_steps)
        if not times:
            raise UserError(f"strength {settings.strength} runs no step of {settings.num_inference_steps}: raise either")
        codec = self.model.codec
        if codec is None:
            raise UserError(f"editing needs a codec, and {self.model.name} has none: choose another model")
        scale = max(settings.guidance_scale, 1.0)  # as deployed: up to 1 there is no guidance
        how = replace(self.how, num_inference_steps=settings.num_inference_steps, negative_prompt=settings.negative_prompt)
        if how.method in {"fixed-point", "null-text"}:
            how = replace(how, guidance_scale=scale)
        found = invert(self.model, latents, prompts, how, times=times)
        edited = replay(self.model, found.latents, prompts, how, guidance_scale=scale, nothing=found.nothing, times=times)
        with torch.no_grad():
            images = codec.decode(edited.to(self.model.device)).float().cpu()
        pushed = self.model.denoiser is not None and guides(self.model.denoiser, scale) and how.method != "negative-prompt"
        return Edited(images, edited, level._replace(steps=len(times)), pushed)

    def _start(self, strength: float, num_inference_steps: int) -> tuple[Level, tuple[float, ...]]:
        """The level of a strength, and the times from it to data."""
        path, editor = self.model.path, self.model.editor
        if path is None:
            raise UserError(f"inversion needs a path; {self.model.name} has none: choose another model")
        all_times = levels(path, num_inference_steps)
        if editor is None or not editor.strength_axis:
            times = all_times[num_inference_steps - executed_steps(strength, num_inference_steps) :]
            if not times:
                return Level(0, None, 1.0, 0.0), ()
            return Level(len(times), times[0], float(path.alpha(times[0])), float(path.ratio(times[0]))), times
        level = editor.level(strength, num_inference_steps)
        times = all_times[num_inference_steps - level.steps :]
        if not times or _same(float(path.ratio(times[0])), level.sigma):
            return level, times
        # Its scheduler makes half steps, or was changed since: the same start, and the path's levels below it.
        first = float(path.time(level.sigma))
        return level, (first, *(t for t in all_times if t < first and not _same(float(path.ratio(t)), level.sigma)))


def _same(a: float, b: float) -> bool:
    """Whether two ratios are one level; pipelines keep theirs in float32."""
    return isclose(a, b, rel_tol=1e-3)
