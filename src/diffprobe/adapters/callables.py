"""Plain callables behind the protocols of probes: a network, an editor, a generator. What they give is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diffprobe.adapters.denoisers import Convention
from diffprobe.errors import UserError
from diffprobe.model import UNTOLD, Edited, EditSettings, GenerateSettings, Level
from diffprobe.paths import like

Clock = Callable[[Tensor], Tensor]
Condition = Callable[[Sequence[str]], Any]
Edit = Callable[[Tensor, list[str], list[int], EditSettings], Any]
Draw = Callable[[list[str], list[int], GenerateSettings], Any]
_ROUNDING = 0.01  # beyond [0, 1]: bfloat16 has steps of .008 there


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network of whoever's as E[x_0 | x_t], float32: `network(x, t)`, or `network(x, t, cond)` where there are conditions.

    The network gets x [B, ...] in its own number format and t [B] float32. None is the condition of the empty prompt; a tensor of one
    row stands for all. Of an answer with twice x's channels the first half counts: the rest are variances.
    """

    network: Callable[..., Any]
    convention: Convention
    clock: Clock | None
    condition: Condition | None

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        """Raises UserError where the network's answer is no tensor of x's shape."""
        x = x.float()
        times = self.convention.clock(x, t) if self.clock is None else self._shown(self.clock, x, t)
        conds = () if cond is None and self.condition is None else (self._placed(cond, x),)
        raw = _answer(self.network(self.convention.shown(x, t).to(self.dtype), times, *conds), x)
        return self.convention.clean(x, t, raw) / self._weight(x, t)

    def _shown(self, clock: Clock, x: Tensor, t: Tensor | float) -> Tensor:
        """The time as the network counts it, from the path's in float64."""
        times = clock(torch.as_tensor(t, dtype=torch.float64, device="cpu").expand(len(x)))
        return times.to(x.device, torch.float32)

    def _placed(self, cond: Any, x: Tensor) -> Any:
        if cond is None:
            assert self.condition is not None
            cond = self._nothing if isinstance(self._nothing, Tensor) else self.condition([""] * len(x))
        if not isinstance(cond, Tensor):
            return cond
        cond = cond.to(x.device)
        return cond.expand(len(x), *cond.shape[1:]) if cond.ndim == 0 or len(cond) == 1 else cond

    def _weight(self, x: Tensor, t: Tensor | float) -> Tensor | float:
        """What the convention leaves out, which is 1 on the paths that v and velocities come from: the square, or the sum, of the two."""
        kind, path = self.convention.prediction, self.convention.path
        if self.convention.sigma_data is not None or kind not in ("v_prediction", "flow_prediction"):
            return 1.0
        a, s = path.alpha(t), path.sigma(t)
        return like(a.square() + s.square() if kind == "v_prediction" else a + s, x)

    @cached_property
    def _nothing(self) -> Any:
        """The condition of one empty prompt."""
        assert self.condition is not None
        return self.condition([""])

    @cached_property
    def dtype(self) -> torch.dtype:
        """That of the network's weights; float32 where none are seen."""
        weights = self.network.parameters() if isinstance(self.network, nn.Module) else ()
        return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


@dataclass(frozen=True, eq=False)
class CallableEditor:
    """An editor of images: `call(images, prompts, seeds, settings)` gives as many images of the same size, as `pictures` takes them.

    It is handed a copy of its images, [B, 3, H, W] float32 in [0, 1] on the CPU. It says nothing of noise levels.
    """

    call: Edit
    size: int
    strength_axis: bool = True

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """UNTOLD: how a service understands a strength is not known."""
        return UNTOLD

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        """Edit images, which are the latents of a model without a codec. Raises UserError for what comes back and is no image of each."""
        with torch.no_grad():
            given = self.call(latents.detach().cpu().clone(), list(prompts), list(seeds), settings)
        return Edited(pictures(given, "editor", (len(latents), *latents.shape[-2:])), None, UNTOLD, None)


@dataclass(frozen=True, eq=False)
class CallableGenerator:
    """A generator: `call(prompts, seeds, settings)` gives an image each, as `pictures` takes them, of the settings' height and width.

    `size` is the side in pixels where a study leaves them out: the callable is always told both.
    """

    call: Draw
    size: int

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a prompt and seed; raises UserError for what comes back and is no image of each."""
        height, width = (self.size if side is None else side for side in (settings.height, settings.width))
        with torch.no_grad():
            given = self.call(list(prompts), list(seeds), replace(settings, height=height, width=width))
        return pictures(given, "generator", (len(prompts), height, width))


def pictures(given: Any, who: str, wanted: tuple[int, int, int]) -> Tensor:
    """Images [B, 3, H, W] float32 in [0, 1] on the CPU, of `wanted` (B, H, W), from what a callable gave.

    That is a tensor [B, 3, H, W], an array [B, H, W, 3] or [B, 3, H, W], or a list of such images or of PIL's; floats in [0, 1], or whole
    numbers of 8 bits. Values that are not finite stay, for a probe to flag. Raises UserError, which calls the giver `who`.
    """
    if not isinstance(given, Tensor | np.ndarray | list | tuple) or (isinstance(given, Tensor | np.ndarray) and given.ndim == 0):
        raise UserError(f"the {who} gave {described(given)}: give a tensor [B, 3, H, W], an array, or a list of images")
    count, height, width = wanted
    if len(given) != count:
        raise UserError(f"the {who} gave {len(given)} images for {count} prompts: give one for each, in their order")
    images = [_picture(one, who) for one in given]
    for image in images:
        if image.shape != (3, height, width):
            raise UserError(f"the {who} gave an image {list(image.shape)}, not [3, {height}, {width}]: give red, green, blue of that size")
    found = torch.stack(images)
    sound = found.isfinite()
    low, high = (float(edge) for edge in found[sound].aminmax()) if bool(sound.any()) else (0.0, 1.0)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise UserError(f"the {who} gave values from {low:.3g} to {high:.3g}: give floats in [0, 1], or whole numbers of 8 bits")
    return torch.where(sound, found.clamp(0, 1), found)


def _picture(one: Any, who: str) -> Tensor:
    """One image [3, H, W] float32 on the CPU, its values not checked."""
    if isinstance(one, Image.Image):
        if one.mode.startswith(("I", "F")):  # of 16 or 32 bits, which Pillow would cut off at 255
            raise UserError(f"the {who} gave a PIL image of mode {one.mode}: give one of 8 bits, such as RGB")
        one = np.array(one.convert("RGB"))
    if not isinstance(one, Tensor | np.ndarray) or one.ndim != 3:
        raise UserError(f"the {who} gave {described(one)} for an image: give [3, H, W], [H, W, 3] or a PIL image")
    last = isinstance(one, np.ndarray) and one.shape[-1] == 3
    kind = str(one.dtype).removeprefix("torch.")
    if kind != "uint8" and not kind.startswith(("float", "bfloat")):
        raise UserError(f"the {who} gave numbers of type {kind}: give floats in [0, 1], or whole numbers of 8 bits (uint8)")
    found = (one.detach().cpu() if isinstance(one, Tensor) else torch.from_numpy(one.astype(np.float32))).float()
    return (found.permute(2, 0, 1) if last else found) / (255 if kind == "uint8" else 1)


def _answer(given: Any, x: Tensor) -> Tensor:
    """What a network predicts, in x's shape: of a tensor, an object with `.sample`, or a tuple; without variances."""
    found = given[0] if isinstance(given, tuple | list) and given else given
    found = found if isinstance(found, Tensor) else getattr(found, "sample", found)
    if isinstance(found, Tensor) and x.ndim > 1 and found.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
        found = found[:, : x.shape[1]]
    if not isinstance(found, Tensor) or found.shape != x.shape:
        raise UserError(
            f"the network gave {described(found)} for x {list(x.shape)}: give a tensor of that shape, its channels once or twice"
        )
    return found


def described(thing: object) -> str:
    """What an error calls something that is not what it should be: a tensor's shape, an array with its own, or a type."""
    if isinstance(thing, Tensor | np.ndarray):
        shape = str(list(thing.shape)) if thing.ndim else "of no dimension"
        return shape if isinstance(thing, Tensor) and thing.ndim else f"{'a tensor' if isinstance(thing, Tensor) else 'an array'} {shape}"
    kind = type(thing).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
