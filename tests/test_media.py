"""Sheets pixel by pixel, films read back, and what cannot be written: one line, and no half of a file."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from diffprobe.controls import media
from diffprobe.errors import UserError
from tests.test_store import file_limit

has_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def flat(*values: float, height: int = 6, width: int = 4) -> torch.Tensor:
    """Frames of one grey each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, height, width)


def smooth(count: int, height: int, width: int) -> torch.Tensor:
    """Frames of a coloured slope that moves a little from one to the next."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([torch.stack([(x + shift) / 2, y, (x + y + shift) / 3]) for shift in torch.linspace(0, 1, count)])


def test_a_strip_has_every_frame_and_white_gutters_between() -> None:
    sheet = media.sheet(flat(0.0, 0.4, 1.2))
    assert sheet.shape == (6, 3 * 4 + 2, 3)
    assert sheet[0, :, 1].tolist() == [0] * 4 + [255] + [102] * 4 + [255] + [255] * 4


def test_frames_are_neither_turned_nor_mirrored_and_keep_their_colours() -> None:
    frames = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    sheet = torch.from_numpy(media.sheet(frames)).permute(2, 0, 1) / 255
    assert torch.allclose(sheet[:, :, :7], frames[0], atol=0.5 / 255 + 1e-6)
    assert torch.allclose(sheet[:, :, 8:], frames[1], atol=0.5 / 255 + 1e-6)


def test_a_triangle_has_its_rows_in_the_middle() -> None:
    sheet = media.sheet(flat(0.0, 0.2, 0.4), [1, 2])
    assert sheet.shape == (6 + 1 + 6, 4 + 1 + 4, 3)
    assert sheet[0, :, 0].tolist() == [255] * 2 + [0] * 4 + [255] * 3
    assert sheet[6, :, 0].tolist() == [255] * 9
    assert sheet[12, :, 0].tolist() == [51] * 4 + [255] + [102] * 4


def test_gutters_grow_with_the_pictures() -> None:
    assert media.sheet(torch.zeros(2, 3, 8, 128)).shape == (8, 2 * 128 + 3, 3)


@pytest.mark.parametrize("rows", [[1], [2, 2], [3, 0]])
def test_rows_that_do_not_hold_all_frames_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="do not hold 3 frames: give how many each row holds"):
        media.sheet(flat(0.0, 0.2, 0.4), rows)


def test_a_png_comes_back_exactly(tmp_path: Path) -> None:
    frames = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    path = media.write(tmp_path / "new" / "strip.png", frames, rows=[1, 2])
    assert np.array_equal(np.asarray(Image.open(path)), media.sheet(frames, [1, 2]))


@pytest.mark.parametrize(("fps", "total"), [(10.0, 700), (12.0, 580), (30.0, 230), (0.5, 14_000)])
def test_a_gif_has_all_frames_for_as_long_as_they_should_be_seen(tmp_path: Path, fps: float, total: int) -> None:
    with Image.open(media.write(tmp_path / "a.GIF", smooth(7, 9, 11), fps=fps)) as film:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
        assert (film.size, film.info["loop"]) == ((11, 9), 0)
    assert len(durations) == 7
    assert sum(durations) == total
    assert max(durations) - min(durations) <= 10


def test_a_gif_keeps_its_colours(tmp_path: Path) -> None:
    frames = smooth(4, 64, 64)
    with Image.open(media.write(tmp_path / "a.gif", frames)) as film:
        seen = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)])
    truth = (frames * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(seen - truth).mean() < 4


def test_a_gif_of_one_frame_and_of_equal_frames(tmp_path: Path) -> None:
    """Equal neighbours become one that is seen for longer: what is seen is the same."""
    with Image.open(media.write(tmp_path / "one.gif", flat(0.5), fps=10)) as film:
        assert getattr(film, "n_frames", 1) == 1
    with Image.open(media.write(tmp_path / "same.gif", flat(0.5, 0.5, 0.5, 0.9), fps=10)) as film:
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) == 400


@has_ffmpeg
@pytest.mark.parametrize(("height", "width", "allowed"), [(64, 64, 2), (63, 65, 2), (5, 7, 16)])  # colours have half the resolution
def test_an_mp4_has_all_frames_their_colours_and_even_sides(tmp_path: Path, height: int, width: int, allowed: float) -> None:
    frames = smooth(9, height, width)
    path = media.write(tmp_path / "a.mp4", frames, fps=12)
    shown = subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    ).stdout
    even = (height + height % 2, width + width % 2)
    seen = np.frombuffer(shown, np.uint8).reshape(9, *even, 3)
    truth = (frames * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(seen[:, :height, :width] - truth).mean() < allowed
    asked = "stream=codec_name,pix_fmt,r_frame_rate,color_space"
    told = subprocess.run(
        ["ffprobe", "-loglevel", "error", "-show_entries", asked, path], capture_output=True, text=True, check=True
    ).stdout
    assert {"codec_name=h264", "pix_fmt=yuv420p", "r_frame_rate=12/1", "color_space=bt709"} <= set(told.split())


@has_ffmpeg
def test_an_mp4_of_one_frame(tmp_path: Path) -> None:
    assert media.write(tmp_path / "a.mp4", flat(0.5)).stat().st_size > 500


def test_without_ffmpeg_a_gif_is_named_as_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"needs the program ffmpeg.*or write a \.gif") as error:
        media.write(tmp_path / "a.mp4", flat(0.5))
    assert error.value.exit_code == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("patience", ["cat > /dev/null", "true"])  # one that reads all before it fails, and one that hangs up
def test_where_ffmpeg_fails_its_last_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: str) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{patience}\necho first >&2\necho \"Unknown encoder 'libx264'\" >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"ffmpeg failed \(Unknown encoder 'libx264'\): mend it, or write a \.gif") as error:
        media.write(tmp_path / "a.mp4", smooth(40, 128, 128))
    assert error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("name", "fps", "told"),
    [
        ("a.webm", 12, r"'.*a.webm' is no picture or film: end it in \.png \(a sheet\), \.gif or \.mp4"),
        ("a", 12, "is no picture or film"),
        ("a.gif", 0, "more than 0 frames a second, not 0"),
        ("a.mp4", float("nan"), "more than 0 frames a second, not nan"),
        ("a.gif", 60, "a .gif shows at most 50 frames a second, not 60: give a lower fps, or write an .mp4"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, name: str, fps: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        media.write(tmp_path / name, flat(0.5), fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.gif", pytest.param("a.mp4", marks=has_ffmpeg)])
def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"before")
    frames = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with file_limit(2000), pytest.raises(UserError) as error:
        media.write(tmp_path / name, frames)
    assert error.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"before"


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write to .*a\.png: .*choose another --out"):
        media.write(tmp_path / "a.png", flat(0.5))
