"""What makes the frames of a morph: inverted images, mixed by weights, generated again under prompts that are mixed alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.adapters.conditions import TextCondition
from diffprobe.errors import UserError
from diffprobe.inversion import Inversion, Inverted, invert, replay
from diffprobe.measures.interpolation import Scheme, mix
from diffprobe.model import Model, Rig
from diffprobe.probes.looks import decode, encoded

_UNSEEN = -1e4  # of a logit of attention, for a token that does not count
_OTHER, _WORSE = 0.01, 0.003  # mean squared errors of 20 and 25 dB


@dataclass(frozen=True)
class End:
    """How near the frame at one of the images is to it: mean squared errors of the latents and of the pixels in [0, 1].

    `codec` is that of the image that went through the model's encoder and decoder alone, which an inversion is rarely below.
    """

    name: str
    latent: float
    pixels: float
    codec: float

    @property
    def psnr(self) -> float:
        """10 log10(1/mse) in dB: above 30 the two are hard to tell apart, below 20 they differ plainly."""
        return -10 * math.log10(self.pixels) if self.pixels else math.inf

    @property
    def lost(self) -> bool:
        """Whether it is plainly another image, or clearly worse than what the model's encoder and decoder alone make of it."""
        return self.pixels > _OTHER or self.pixels > max(_WORSE, 4 * self.codec)


class Made(NamedTuple):
    """Some frames [K, 3, H, W] in [0, 1], and the clean latents [K, C, h, w] that were decoded to them; float32 on the CPU."""

    frames: Tensor
    clean: Tensor


@dataclass(frozen=True, eq=False)
class Maker:
    """Frames of weights: `seen` [N, 3, H, W] are the images, `begun` [N, C, h, w] their encodings, `found` those inverted."""

    rig: Rig
    names: Sequence[str]
    seen: Tensor
    begun: Tensor
    found: Inverted
    prompts: Sequence[str]
    how: Inversion
    scheme: Scheme

    def __call__(self, weights: Tensor) -> Iterator[Made]:
        """The frames of weights [F, N], a batch of the rig at a time. Raises UserError where one cannot be mixed or is not finite."""
        for part in weights.split(self.rig.batch_size):
            clean = self._generated(part)
            frames = decode(self.rig, clean).clamp(0, 1)
            if not bool(torch.isfinite(frames).all()):
                raise UserError("a frame is not finite: use a torch_dtype of float32, more steps, or another scheme")
            yield Made(frames, clean)

    def end(self, image: int, frame: Tensor, clean: Tensor) -> End:
        """How near a frame is to the image of this number."""
        seen, begun = self.seen[image], self.begun[image]
        codec = decode(self.rig, begun[None])[0].clamp(0, 1)
        return End(self.names[image], _mse(clean, begun), _mse(frame, seen), _mse(codec, seen))

    def _generated(self, weights: Tensor) -> Tensor:
        """Clean latents [K, C, h, w]."""
        model, how, tuned = self.rig.model, self.how, self.found.nothing
        try:
            latents = mix(self.found.latents, weights, self.scheme, scale=_scale(model, how)).latents
        except ValueError as error:
            raise UserError(f"the images do not mix by '{self.scheme}': {error}") from error
        nothing = None if tuned is None else torch.tensordot(weights.float(), tuned, dims=([1], [1])).movedim(0, 1)
        together = self.prompts[0]
        if len(set(self.prompts)) > 1:
            together = " + ".join(self.prompts)
            model = _saying(model, together, self.prompts, weights)
        return replay(model, latents, [together] * len(weights), how, guidance_scale=how.guidance_scale, nothing=nothing)


def maker(rig: Rig, images: tuple[Sequence[str], Tensor], prompts: Sequence[str], how: Inversion, scheme: Scheme) -> Maker:
    """Invert images, given by name and as [N, 3, H, W] of the model's size, under a prompt each.

    Raises UserError where the model, or its conditions for prompts that differ, cannot do it, or an image gets lost.
    """
    (names, seen), model = images, rig.model
    if len(set(prompts)) > 1 and model.condition is not None:
        mixed_condition(model.condition(list(prompts)), torch.eye(len(prompts)))  # whether it can be, before the work begins
    begun, parts = encoded(rig, model, seen), list[Inverted]()
    for some in (slice(begin, begin + rig.batch_size) for begin in range(0, len(begun), rig.batch_size)):
        parts.append(invert(model, begun[some], prompts[some], how))
    latents = torch.cat([part.latents for part in parts])
    for name, latent in zip(names, latents, strict=True):
        if not bool(torch.isfinite(latent).all()):
            raise UserError(f"the inversion of {name} is not finite: use more steps, a lower guidance scale, or the inversion 'ddim'")
    tuned = [part.nothing for part in parts if part.nothing is not None]
    found = Inverted(latents, torch.cat(tuned, 1) if tuned else None, torch.cat([part.residual for part in parts]))
    return Maker(rig, names, seen, begun, found, prompts, how, scheme)


def mixed_condition(condition: Any, weights: Tensor) -> Any:
    """Conditions of N prompts as those of K mixtures with weights [K, N]: text states, and what is pooled of them, mixed linearly.

    Raises UserError for conditions that are no numbers, such as classes.
    """
    if isinstance(condition, TextCondition):
        return condition.each(lambda part: mixed_condition(part, weights)) if condition.mask is None else _masked(condition, weights)
    if not (isinstance(condition, Tensor) and condition.is_floating_point()):
        raise UserError("this model's conditions are classes, which do not mix: give one prompt for all images")
    return torch.tensordot(weights.to(condition.device, torch.float32), condition.float(), dims=1).to(condition.dtype)


def _masked(condition: TextCondition, weights: Tensor) -> TextCondition:
    """Mixtures of prompts of different lengths: a token's states are the mean of those that count, and it counts as much as these weigh.

    The mask becomes what is added to attention's logits [K, 1, tokens], the log of that weight, so that a mixture goes over into its
    ends: a token of a prompt of little weight is little seen.
    """
    assert condition.mask is not None
    shares = weights.to(condition.states.device, torch.float32)[:, :, None] * condition.mask.float()[None]  # [K, N, tokens]
    whole = shares.sum(1)
    states = torch.einsum("knt,ntd->ktd", shares, condition.states.float()) / whole.clamp_min(1e-12)[..., None]
    return TextCondition(states.to(condition.states.dtype), mask=whole.log().clamp_min(_UNSEEN)[:, None])


def _saying(model: Model, together: str, prompts: Sequence[str], weights: Tensor) -> Model:
    """The model, to which the prompt `together`, said for a whole batch, means the mixtures of `prompts` with weights [K, N]."""
    given = model.condition
    assert given is not None
    mixed = mixed_condition(given(list(prompts)), weights)
    return replace(model, condition=lambda texts: mixed if set(texts) == {together} else given(texts))


def _scale(model: Model, how: Inversion) -> float:
    """The standard deviation of pure noise where the inversion arrives."""
    assert model.path is not None
    t = model.path.levels(how.num_inference_steps)[0]
    return float((model.path.alpha(t).square() + model.path.sigma(t).square()).sqrt())


def _mse(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().square().mean())
