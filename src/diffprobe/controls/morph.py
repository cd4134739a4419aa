"""Morphs between images: inverted to noise, mixed there by a scheme, generated again, and spaced so that every step looks as large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffprobe import images
from diffprobe.controls import media
from diffprobe.controls.frames import End, Maker, maker
from diffprobe.controls.spacing import PIXELS, ROUNDS, Array, Ruler, allotted, equal, evenly, ruler, weights
from diffprobe.errors import UserError
from diffprobe.images import Picture, Source
from diffprobe.inversion import Inversion
from diffprobe.measures.interpolation import Scheme
from diffprobe.model import Model, Rig
from diffprobe.probes.looks import native, resized

Images = Sequence[str | Path | Picture] | Tensor
Report = Callable[[int, int], None]  # frames generated so far, and in all


@dataclass(frozen=True)
class Morphing:
    """How to morph. Raises UserError for what is out of range.

    `frames`: of two images from the first to the second, both included; of three on a walk 1 -> 2 -> 3 -> 1, whose last frame is
    one step before the first again; of three with `triangle` on an edge of a triangle of mixtures. `inversion`: its
    `guidance_scale` holds both ways, climbing and generating. `even`: what the frames of a walk are evenly spaced in, "pixels" or an
    instrument of the rig, for four times the work; None: in the weights.
    """

    frames: int = 9
    scheme: str = "nin/channel"
    inversion: Inversion = field(default_factory=lambda: Inversion("fixed-point"))
    even: str | None = PIXELS
    triangle: bool = False

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"a morph has at least 2 frames, its ends, not {self.frames}: give more")
        try:
            Scheme.parse(self.scheme)
        except ValueError as error:
            raise UserError(str(error)) from error

    def check(self, images: int, prompts: int) -> None:
        """Raise UserError where so many images with so many prompts cannot be morphed like this."""
        if images not in (2, 3):
            raise UserError(f"a morph is between two or three images, not {images}: give as many")
        if prompts not in (1, images):
            raise UserError(f"{images} images and {prompts} prompts: give one prompt for all, or one an image")
        if self.triangle and images != 3:
            raise UserError("a triangle has three images at its corners: give a third")
        if not self.triangle and self.frames < images:
            raise UserError(f"a walk over {images} images has at least {images} frames, not {self.frames}: give more")


@dataclass(frozen=True, eq=False)
class Morph:
    """Frames [F, 3, H, W] in [0, 1], float32 on the CPU, the weights [F, N] of the N images in each, and one of `ends` an image.

    `distances` float64 are those between neighbours, and of a closed walk from the last to the first, in what the frames are evenly
    spaced in (pixels where in nothing); `before` the same with weights in equal steps. A triangle has none, and has `rows`: how many
    frames are in each.
    """

    frames: Tensor
    weights: Tensor
    distances: Tensor
    before: Tensor
    ends: tuple[End, ...]
    how: Morphing
    rows: tuple[int, ...] = ()

    @property
    def unevenness(self) -> tuple[float, float]:
        """The largest distance over the mean one, with weights in equal steps and as it is: 1 is even; nan where nothing moves."""
        before, after = (float(steps.max() / steps.mean()) if len(steps) else float("nan") for steps in (self.before, self.distances))
        return before, after

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each end that is not the image given, with what to do about it."""
        return tuple(_warning(end, self.how) for end in self.ends if end.lost)

    def save(self, path: Path | str, *, fps: float = media.FPS) -> Path:
        """Write a .png (a strip, or the triangle), a .gif or an .mp4. Raises UserError where that cannot be."""
        kind = media.kind_of(path, fps)
        if self.rows and kind != ".png":
            raise UserError(f"a triangle is a sheet and no film: save it as .png instead of {kind}, or morph without triangle")
        return media.write(path, self.frames, rows=self.rows, fps=fps)


def morph(
    rig: Rig, pictures: Images, prompts: str | Sequence[str] = "", how: Morphing | None = None, report: Report | None = None
) -> Morph:
    """Morph two or three images: files, pictures of `diffprobe.images`, or a tensor [N, 3, H, W] in [0, 1].

    They are resized to the model's own size, of what is not square the middle. `prompts`: one for all, or one an image; different
    ones are mixed like the latents. Where a frame has one image's weight alone it is made of that image's own noise: an end is
    its reconstruction under every scheme that reproduces its inputs. Raises UserError where the model cannot do it.
    """
    how = how or Morphing()
    said = [prompts] if isinstance(prompts, str) else list(prompts)
    how.check(len(pictures), len(said))
    _check(rig.model)
    said = said * len(pictures) if len(said) == 1 else said
    measured = ruler(rig, how.even or PIXELS)
    with torch.no_grad():
        make = maker(rig, _seen(pictures, native(rig.model)), said, how.inversion, Scheme.parse(how.scheme))
        if how.triangle:
            return _triangle(make, how, _Told(report, how.frames * (how.frames + 1) // 2))
        return _walk(make, measured, how, _Told(report, how.frames * (1 if how.even is None else 2 + ROUNDS)))


def _walk(make: Maker, measured: Ruler, how: Morphing, told: _Told) -> Morph:
    """The way from corner to corner, and the frames on it."""
    corners = (0, 1) if len(make.names) == 2 else (0, 1, 2, 0)
    legs, closed = len(corners) - 1, corners[0] == corners[-1]
    steps = how.frames - (not closed)

    def look(places: Array) -> Tensor:
        parts = []
        for made in make(weights(places, corners)):
            parts.append(measured.see(made.frames))
            told(len(made.frames))
        return torch.cat(parts)

    places, before = equal(allotted(steps, [1.0] * legs)), None
    if how.even is not None and steps > legs:
        places, before = evenly(look, measured.apart, steps, legs)
    mixed = weights(places[:-1] if closed else places, corners)
    frames, ends = _collected(make, mixed, told)
    seen = torch.cat([measured.see(part) for part in frames.split(make.rig.batch_size)])
    after = torch.cat([seen, seen[:1]]) if closed else seen
    distances = measured.apart(after[:-1], after[1:])
    return Morph(frames, mixed, distances, distances if before is None else before, ends, how)


def _triangle(make: Maker, how: Morphing, told: _Told) -> Morph:
    """Rows of 1, 2, ... mixtures: the first image at the top, the second and the third at the ends of the last row."""
    last, none = how.frames - 1, torch.zeros(0, dtype=torch.float64)
    places = [(last - row, row - column, column) for row in range(how.frames) for column in range(row + 1)]
    mixed = torch.tensor(places, dtype=torch.float64) / last
    frames, ends = _collected(make, mixed, told)
    return Morph(frames, mixed, none, none, ends, how, tuple(range(1, how.frames + 1)))


def _collected(make: Maker, mixed: Tensor, told: _Told) -> tuple[Tensor, tuple[End, ...]]:
    """All frames of weights [F, N], held once, and the end of each image."""
    frames, ends, done = torch.empty(0), dict[int, End](), 0
    for made in make(mixed):
        if not done:
            frames = torch.empty(len(mixed), *made.frames.shape[1:])
        frames[done : done + len(made.frames)] = made.frames
        for row, image in (mixed[done : done + len(made.frames)] == 1).nonzero().tolist():
            ends[image] = make.end(image, made.frames[row], made.clean[row])
        done += len(made.frames)
        told(len(made.frames))
    return frames, tuple(ends[image] for image in sorted(ends))


class _Told:
    """Counts frames towards all that a morph generates."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, more: int) -> None:
        self._done += more
        if self._report is not None:
            self._report(self._done, max(self._done, self._total))


def _seen(pictures: Images, size: int) -> tuple[list[str], Tensor]:
    """The names and the pixels [N, 3, size, size] of images."""
    if isinstance(pictures, Tensor):
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise UserError(f"images {list(pictures.shape)} are no batch of pictures: give [N, 3, H, W] in [0, 1]")
        side = min(pictures.shape[-2:])
        top, left = ((whole - side) // 2 for whole in pictures.shape[-2:])
        square = pictures[..., top : top + side, left : left + side].float().cpu()
        return [f"image {number}" for number in range(1, len(pictures) + 1)], resized(square, size).clamp(0, 1)
    sources = [Source(str(one), images.digest(one)) if isinstance(one, str | Path) else one for one in pictures]
    return [images.name(source) for source in sources], images.load(sources, size)


def _check(model: Model) -> None:
    """Raise UserError where a model cannot be morphed with."""
    lacking = [name for name in ("path", "denoiser", "codec", "condition", "shape") if getattr(model, name) is None]
    if lacking:
        raise UserError(f"{model.name} has no {' and no '.join(lacking)}, which a morph needs: choose another model")


def _warning(end: End, how: Morphing) -> str:
    """What is wrong with an end that is not its image, and the nearest remedy."""
    told = f"the morph does not arrive at {end.name} ({end.psnr:.1f} dB)"
    if end.pixels < 2 * end.codec:
        return f"{told}: the model's autoencoder alone gets no nearer, and only another model could"
    if not Scheme.parse(how.scheme).reproduces:
        return f"{told}: the scheme '{how.scheme}' does not give back its inputs; 'nin/channel' does"
    return f"{told}: try {_REMEDIES[how.inversion.method]}"


_REMEDIES = {
    "ddim": "more steps, or the inversion 'fixed-point'",
    "fixed-point": "more steps, a guidance scale nearer to 1, or the inversion 'null-text'",
    "null-text": "more steps, or the inversion 'fixed-point'",
    "negative-prompt": "more steps, or the inversion 'fixed-point'",
}
