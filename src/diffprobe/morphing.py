"""The command `diffprobe morph`: a morph between two or three images, as a strip, a triangle or a film."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from diffprobe.errors import UserError

if TYPE_CHECKING:
    from diffprobe.controls.morph import Morph, Morphing, Report

out = Console(highlight=False, soft_wrap=True, markup=False)

_FRAMES = {"strip": 9, "triangle": 5, "film": 25}


def morph(  # noqa: PLR0913, PLR0917
    images: Annotated[list[Path], typer.Argument(help="Two images, or three.", show_default=False)],
    out_file: Annotated[Path, typer.Option("--out", help="A .png (a strip; a triangle of three images), a .gif or an .mp4.")],
    model: Annotated[str, typer.Option(help="A name from `diffprobe models`, a folder of a saved pipeline, or a hub id.")] = "embedded",
    prompt: Annotated[list[str] | None, typer.Option(help="One for all images, or one for each in their order.", show_default="''")] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Of the strip or the film; of the triangle those on an edge.", show_default="9 of a strip, 5 of an edge, 25 of a film"
        ),
    ] = None,
    scheme: Annotated[
        str, typer.Option(help="How noise is mixed: none, fix, nin, slerp, lol, blend; /global, /channel, /lowpass.")
    ] = "nin/channel",
    inversion: Annotated[str, typer.Option(help="ddim, fixed-point, null-text or negative-prompt.")] = "fixed-point",
    steps: Annotated[int, typer.Option(help="Of the inversion and of the generation.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Of the inversion and of the generation; 1 is none.")] = 1.0,
    even: Annotated[bool, typer.Option(help="Space the frames so that all steps look as large, for four times the work.")] = True,
    embedder: Annotated[str | None, typer.Option(help="Who judges the steps: embedded, lpips, ...", show_default="pixels")] = None,
    fps: Annotated[float, typer.Option(help="Frames a second of a film.")] = 12.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Morph between two images, or three: inverted to noise, mixed there, and generated again."""
    from diffprobe.controls.media import kind_of
    from diffprobe.controls.morph import Morphing
    from diffprobe.controls.spacing import PIXELS
    from diffprobe.inversion import Inversion

    kind = "film" if kind_of(out_file, fps) != ".png" else "triangle" if len(images) == 3 else "strip"
    if embedder is not None and not even:
        raise UserError("--embedder judges the steps, which --no-even leaves as they are: leave one of them out")
    spacing = (embedder or PIXELS) if even else None
    how = Morphing(
        frames=_FRAMES[kind] if frames is None else frames,
        scheme=scheme,
        inversion=Inversion(inversion, steps, guidance_scale),
        even=spacing,
        triangle=kind == "triangle",
    )
    prompts = prompt or [""]
    how.check(len(images), len(prompts))
    try:
        found = _morphed(images, out_file, prompts, how, (model, device, embedder))
        path = found.save(out_file, fps=fps)
    except KeyboardInterrupt:
        raise UserError(f"interrupted; {out_file} was not written", exit_code=3) from None
    out.print(f"{path}: {_told(found)}", markup=False)
    for line in found.warnings:
        out.print(f"warning: {line}", markup=False)


def _morphed(files: Sequence[Path], target: Path, prompts: Sequence[str], how: Morphing, names: tuple[str, str, str | None]) -> Morph:
    """Read the files before the model, `names` = (model, device, embedder), is loaded; then morph."""
    from diffprobe import images
    from diffprobe.adapters.load import load, rig
    from diffprobe.controls.morph import morph
    from diffprobe.images import Source

    if any(target.resolve() == file.resolve() for file in files):
        raise UserError(f"--out {target} is one of the images: choose another name")
    sources = [Source(str(file), images.digest(file)) for file in files]
    images.load(sources, 1)
    model, device, embedder = names
    worker = rig(load(model, device=device), () if embedder is None else (embedder,))
    with _progress() as told:
        return morph(worker, sources, prompts, how, told)


@contextmanager
def _progress() -> Iterator[Report | None]:
    """What is going on, on a terminal."""
    if not out.is_terminal:
        yield None
        return
    with out.status("inverting") as status:
        yield lambda done, planned: status.update(f"{done} of {planned} frames")


def _told(found: Morph) -> str:
    """How many frames, how near the ends are to the images, and how even the steps are."""
    ends = ", ".join(f"{end.name} {end.psnr:.1f} dB (mean squared error {end.pixels:.2g})" for end in found.ends)
    before, after = found.unevenness
    steps = f"; the largest step is {after:.2f} times the mean one"
    if found.how.even is not None:
        steps += f", {before:.2f} with weights in equal steps"
    return f"{len(found.frames)} frames; against the images given, {ends}{steps if isfinite(after) else ''}"
