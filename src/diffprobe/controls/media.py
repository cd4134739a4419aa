"""Frames as users look at them: a sheet of pictures as PNG, a film as GIF, or as H.264 by the system's ffmpeg."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from diffprobe.errors import UserError
from diffprobe.files import explained, whole

KINDS = (".png", ".gif", ".mp4")
FPS = 12.0
_GIF_MOST = 50.0  # browsers show what is meant to be faster at 10 frames a second
_NO_FFMPEG = "a film as .mp4 needs the program ffmpeg, which is not on the PATH: install it, or write a .gif"

Pixels = npt.NDArray[np.uint8]


def kind_of(path: Path | str, fps: float = FPS) -> str:
    """The kind of file that a path means, one of KINDS. Raises UserError for another, and for what cannot be written here."""
    kind = Path(path).suffix.lower()
    if kind not in KINDS:
        raise UserError(f"'{path}' is no picture or film: end it in .png (a sheet), .gif or .mp4 (a film)")
    if kind == ".png":
        return kind
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"a film has more than 0 frames a second, not {fps:g}: give fps = {FPS:g}, say")
    if kind == ".gif" and fps > _GIF_MOST:
        raise UserError(f"a .gif shows at most {_GIF_MOST:g} frames a second, not {fps:g}: give a lower fps, or write an .mp4")
    if kind == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserError(_NO_FFMPEG, exit_code=4)
    return kind


def write(path: Path | str, frames: Tensor, *, rows: Sequence[int] = (), fps: float = FPS) -> Path:
    """Write frames [F, 3, H, W] in [0, 1] to a file, whole or not at all; folders that it lies in are made.

    A .png is a `sheet` of `rows`, all frames in one where none are given; a .gif repeats for ever; an .mp4 is H.264. Values beyond
    [0, 1] are clamped. Raises UserError where the file cannot be written (exit code 4 where the machine cannot do it).
    """
    target, kind = Path(path), kind_of(path, fps)
    with explained(target), whole(target) as partial:
        if kind == ".png":
            Image.fromarray(sheet(frames, rows)).save(partial, "PNG", optimize=True)
        elif kind == ".gif":
            _gif(partial, frames, fps)
        else:
            _mp4(partial, frames, fps)
    return target


def sheet(frames: Tensor, rows: Sequence[int] = ()) -> Pixels:
    """Frames [F, 3, H, W] in rows of so many, each row in the middle, on white with thin gutters: uint8 [H', W', 3].

    A gutter is 1 + max(H, W) // 64 pixels. Raises ValueError where the rows do not hold all frames.
    """
    held = list(rows) or [len(frames)]
    if not len(frames) or sum(held) != len(frames) or min(held) < 1:
        raise ValueError(f"rows of {held} do not hold {len(frames)} frames: give how many each row holds, {len(frames)} in all")
    height, width = frames.shape[-2:]
    gutter = 1 + max(height, width) // 64
    across = max(held) * (width + gutter) - gutter
    out = np.full((len(held) * (height + gutter) - gutter, across, 3), 255, np.uint8)
    pictures = _pixels(frames)
    for row, count in enumerate(held):
        top, left = row * (height + gutter), (across - count * (width + gutter) + gutter) // 2
        for column in range(count):
            begin = left + column * (width + gutter)
            out[top : top + height, begin : begin + width] = next(pictures)
    return out


def _pixels(frames: Tensor) -> Iterator[Pixels]:
    """One frame after the other, uint8 [H, W, 3]: of a long film no second copy is held."""
    for frame in frames:
        yield np.ascontiguousarray((frame.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _gif(path: Path, frames: Tensor, fps: float) -> None:
    """A palette of its own for every frame; durations are whole hundredths of a second that add up to the film's."""
    ends = [round(100 * (index + 1) / fps) for index in range(len(frames))]
    durations = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    first, *others = (Image.fromarray(pixels).quantize(256) for pixels in _pixels(frames))
    timing = {"duration": durations if others else durations[0], "loop": 0, "disposal": 1}
    first.save(path, "GIF", save_all=True, append_images=others, optimize=False, **timing)


def _mp4(path: Path, frames: Tensor, fps: float) -> None:
    """Raw frames into ffmpeg: sides made even by repeating the last row or column, colours tagged as they are encoded (BT.709)."""
    height, width = (side + side % 2 for side in frames.shape[-2:])
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:.6g}", "-i", "-"]
    tags = [part for name in ("colorspace", "color_primaries", "color_trc") for part in (f"-{name}", "bt709")]
    coded = [
        "-vf",
        "scale=out_color_matrix=bt709",
        "-c:v",
        "libx264",
        "-crf",
        "16",
        "-pix_fmt",
        "yuv420p",
        *tags,
        "-movflags",
        "+faststart",
    ]
    command = ["ffmpeg", "-nostdin", "-y", "-loglevel", "error", *given, "-an", *coded, "-f", "mp4", str(path.resolve())]
    padding = ((0, height - frames.shape[-2]), (0, width - frames.shape[-1]), (0, 0))
    _piped(command, (np.pad(pixels, padding, "edge").tobytes() for pixels in _pixels(frames)))


def _piped(command: Sequence[str], parts: Iterable[bytes]) -> None:
    """Run a program with bytes on its standard input; raises UserError (exit code 4) with its last words where it fails."""
    with TemporaryFile() as told:  # no pipe, which would fill up while this end writes
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=told)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:  # a program that gives up before the end says why itself
                pipe.writelines(parts)
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        if code:
            told.seek(0)
            lines = told.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"ffmpeg failed ({lines[-1] if lines else f'exit code {code}'}): mend it, or write a .gif", exit_code=4)
