"""Morphs: known answers in the Gaussian world, where noise is a linear map of the image; the embedded model; and the command."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffprobe import images, worlds
from diffprobe.adapters.conditions import TextCondition
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load
from diffprobe.cli import main
from diffprobe.controls import Morph, Morphing, morph
from diffprobe.controls.frames import End, mixed_condition
from diffprobe.errors import UserError
from diffprobe.images import Rendered
from diffprobe.inversion import Inversion
from diffprobe.measures.interpolation import NORMS
from diffprobe.model import Model, Rig
from tests.small import Pixels, gaussian

has_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
LINEAR = Morphing(5, "none", Inversion("fixed-point", 10, iterations=20), None)


def likely(count: int, seed: int = 3) -> Tensor:
    """Images [N, 3, 8, 8] that the Gaussian world draws, and which its codec therefore gives back."""
    world = exact_model("gaussian")
    assert world.codec is not None
    draws = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    variances = torch.tensor([1.0] * 8 + [0.05] * 16 + [0.001] * 40)
    return world.codec.decode(0.6 * draws * variances.sqrt().view(1, 8, 8)).clamp(0, 1)


@pytest.fixture(scope="module")
def embedded() -> Rig:
    return Rig(load("embedded", device="cpu"), {}, 8)


def scenes(count: int) -> list[Rendered]:
    return [Rendered(9, index) for index in range(count)]


# Known answers


def test_in_the_gaussian_world_a_plain_morph_is_a_cross_fade() -> None:
    """Noise is a linear map of the image there, and so is what is generated of it."""
    given = likely(2)
    found = morph(gaussian(), given, how=LINEAR)
    t = torch.linspace(0, 1, 5).view(-1, 1, 1, 1)
    assert torch.allclose(found.frames, (1 - t) * given[0] + t * given[1], atol=1e-4)
    assert torch.allclose(found.distances, found.distances.mean(), rtol=1e-3)
    assert found.distances is found.before
    assert torch.equal(found.weights, torch.tensor([[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]], dtype=torch.float64))
    assert [end.name for end in found.ends] == ["image 1", "image 2"]
    assert max(end.latent for end in found.ends) < 1e-6
    assert max(end.pixels for end in found.ends) < 1e-6
    assert not found.warnings


def test_a_triangle_is_barycentric() -> None:
    given = likely(3)
    found = morph(gaussian(), given, how=replace(LINEAR, frames=4, triangle=True))
    assert (found.frames.shape, found.rows, len(found.distances)) == ((10, 3, 8, 8), (1, 2, 3, 4), 0)
    assert torch.allclose(found.weights.sum(1), torch.ones(10, dtype=torch.float64))
    assert bool((found.weights >= 0).all())
    assert found.weights[[0, 6, 9]].tolist() == torch.eye(3).tolist()
    assert found.weights[4].tolist() == pytest.approx([1 / 3] * 3)
    assert torch.allclose(found.frames, torch.einsum("fn,nchw->fchw", found.weights.float(), given), atol=1e-4)
    assert len(found.ends) == 3


def test_a_walk_goes_round_and_ends_one_step_before_it_began() -> None:
    given = likely(3)
    found = morph(gaussian(), given, how=replace(LINEAR, frames=6))
    half = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [0.5, 0, 0.5]]
    assert found.weights.tolist() == half
    assert torch.allclose(found.frames[5], (given[0] + given[2]) / 2, atol=1e-4)
    assert len(found.distances) == 6
    assert float(found.distances[5]) == pytest.approx(float((found.frames[5] - found.frames[0]).square().mean().sqrt()), rel=1e-5)


def test_an_even_walk_gives_long_legs_more_frames_and_keeps_its_corners() -> None:
    a, b = likely(2)
    near = a + 0.2 * (b - a)
    found = morph(gaussian(), torch.stack([a, near, b]), how=replace(LINEAR, frames=20, even="pixels"))
    corners = [int((found.weights[:, image] == 1).nonzero()) for image in range(3)]
    assert corners == [0, 2, 10]  # lengths 1, 4 and 5
    assert found.unevenness[1] < 1.05 < found.unevenness[0]
    assert torch.allclose(found.frames[corners], torch.stack([a, near, b]), atol=1e-4)


class Cubed:
    """The Gaussian world's codec behind a cube: of an image and its negative the frames are 0.5 + (1 - 2 t)^3 (a - 0.5)."""

    def __init__(self) -> None:
        inner = exact_model("gaussian").codec
        assert inner is not None
        self.inner, self.batches = inner, list[int]()

    def encode(self, pictures: Tensor) -> Tensor:
        latents = self.inner.encode(pictures)
        return latents.sign() * latents.abs().pow(1 / 3)

    def decode(self, latents: Tensor) -> Tensor:
        self.batches.append(len(latents))
        return self.inner.decode(latents.pow(3))


def test_even_frames_of_a_known_change_stand_where_they_must() -> None:
    codec, world = Cubed(), gaussian()
    rig = Rig(replace(world.model, codec=codec), {"pixels 4": Pixels()}, 7)
    (a,) = likely(1)
    given = torch.stack([a, 1 - a])
    found = morph(rig, given, how=replace(LINEAR, frames=25, even="pixels"))
    truth = 0.5 - 0.5 * np.cbrt(1 - 2 * np.linspace(0, 1, 25))
    assert found.weights[:, 1].numpy() == pytest.approx(truth, abs=0.01)
    assert found.unevenness == pytest.approx((3, 1), rel=0.1)
    assert torch.allclose(found.frames[[0, -1]], given, atol=1e-3)
    assert max(codec.batches) <= 7
    uneven = morph(rig, given, how=replace(LINEAR, frames=25))
    assert torch.allclose(found.before, uneven.distances, rtol=1e-4)
    by_features = morph(rig, given, how=replace(LINEAR, frames=25, even="pixels 4"))
    assert by_features.unevenness[1] < 1.2 < by_features.unevenness[0]
    assert not torch.allclose(by_features.weights, found.weights, atol=1e-3)


# Invariances


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mean", ["none", "channel"])
def test_the_ends_are_the_inputs_wherever_the_scheme_gives_them_back(norm: str, mean: str) -> None:
    given = likely(2)
    found = morph(gaussian(), given, how=replace(LINEAR, frames=3, scheme=f"{norm}/{mean}"))
    apart = (found.frames[[0, 2]] - given).abs().amax((1, 2, 3))
    assert bool((apart < 1e-4).all()) == (norm != "fix")


def test_equal_images_give_equal_frames_and_one_image_reversed_the_morph_reversed() -> None:
    a, b = likely(2)
    same = morph(gaussian(), torch.stack([a, a]), how=replace(LINEAR, scheme="slerp", even="pixels"))
    assert torch.allclose(same.frames, same.frames[:1].expand(5, 3, 8, 8), atol=1e-5)
    there, back = (morph(gaussian(), torch.stack(pair), how=replace(LINEAR, scheme="nin/channel")) for pair in ((a, b), (b, a)))
    assert torch.allclose(there.frames, back.frames.flip(0), atol=1e-5)


def test_equal_images_have_no_steps_to_speak_of() -> None:
    a = likely(1)
    found = morph(gaussian(), torch.cat([a, a]), how=LINEAR)
    still = replace(found, distances=torch.zeros(4), before=torch.zeros(4))
    assert all(np.isnan(value) for value in still.unevenness)


def test_any_batch_size_gives_the_same() -> None:
    given = likely(3)
    one, many = (morph(gaussian(size), given, how=replace(LINEAR, frames=7, even="pixels")) for size in (1, 16))
    assert torch.allclose(one.frames, many.frames, atol=1e-5)
    assert torch.allclose(one.weights, many.weights, atol=1e-4)
    assert [end.pixels for end in one.ends] == pytest.approx([end.pixels for end in many.ends], abs=1e-8)


def test_files_and_tensors_give_the_same_and_sizes_may_differ(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 255, (2, 11, 24, 3), np.uint8)
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for file, pixels in zip(files, rows, strict=True):
        Image.fromarray(pixels).save(file)
    by_file = morph(gaussian(), files, how=LINEAR)
    by_tensor = morph(gaussian(), torch.from_numpy(rows).permute(0, 3, 1, 2) / 255, how=LINEAR)
    assert torch.allclose(by_file.frames, by_tensor.frames, atol=1e-5)
    assert [end.name for end in by_file.ends] == [str(file) for file in files]


def counted(how: Morphing) -> list[tuple[int, int]]:
    counts: list[tuple[int, int]] = []
    morph(gaussian(2), likely(3 if how.triangle else 2), how=how, report=lambda done, total: counts.append((done, total)))
    return counts


def test_all_frames_are_counted() -> None:
    for how, planned in ((LINEAR, 5), (replace(LINEAR, even="pixels"), 20), (replace(LINEAR, frames=3, triangle=True), 6)):
        counts = counted(how)
        assert counts[-1][0] in range(planned - 2, planned + 1)  # places that coincide are looked at once
        assert {total for _, total in counts} == {planned}
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)


# Prompts, guidance and inversions, on the embedded model


def test_each_end_is_what_its_own_prompt_makes_of_it(embedded: Rig) -> None:
    sources, how = scenes(2), Morphing(3, inversion=Inversion("ddim", 4, 3.0), even=None)
    a, b = (images.caption(source) for source in sources)
    found = morph(embedded, sources, [a, b], how)
    assert torch.allclose(found.frames[0], morph(embedded, sources, a, how).frames[0], atol=1e-4)
    assert torch.allclose(found.frames[2], morph(embedded, sources, [b], how).frames[2], atol=1e-4)
    assert not torch.allclose(found.frames[1], morph(embedded, sources, a, how).frames[1], atol=0.01)


def test_equal_prompts_are_one_prompt(embedded: Rig) -> None:
    how = Morphing(2, inversion=Inversion("ddim", 3))
    one, two = (morph(embedded, scenes(2), prompt, how) for prompt in ("a star", ["a star", "a star"]))
    assert torch.equal(one.frames, two.frames)


def test_null_text_states_go_with_their_images(embedded: Rig) -> None:
    """The ends come nearer than without them, and the middle is made with the mean of both."""
    sources = scenes(2)
    told = [images.caption(source) for source in sources]
    plain, tuned = (
        morph(embedded, sources, told, Morphing(3, inversion=Inversion(method, 5, 4.0, iterations=4), even=None))
        for method in ("ddim", "null-text")
    )
    for without, with_states in zip(plain.ends, tuned.ends, strict=True):
        assert with_states.latent < without.latent
    assert bool(torch.isfinite(tuned.frames).all())


def test_conditions_mix_linearly_and_keep_their_kind() -> None:
    states, pooled = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0], [3.0]])
    weights = torch.tensor([[1, 0], [0.25, 0.75]], dtype=torch.float64)
    found = mixed_condition(TextCondition(states.bfloat16(), pooled), weights)
    assert isinstance(found, TextCondition)
    assert (found.states.dtype, found.states.shape) == (torch.bfloat16, (2, 4, 3))
    assert torch.equal(found.states[0], states.bfloat16()[0])
    assert found.pooled is not None
    assert found.pooled.tolist() == [[1.0], [2.5]]
    assert torch.allclose(mixed_condition(states, weights)[1], 0.25 * states[0] + 0.75 * states[1])


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_pipelines_with_pooled_text_take_a_prompt_an_image(pipelines: Callable[[str], Path], family: str) -> None:
    rig = Rig(load(str(pipelines(family)), device="cpu"), {}, 2)
    how = Morphing(3, inversion=Inversion("null-text", 2, 3.0, iterations=1))
    given = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    found, alone = (morph(rig, given, prompts, how) for prompts in (["a cat", "a dog"], "a cat"))
    assert torch.allclose(found.frames[0], alone.frames[0], atol=1e-4)
    assert not torch.equal(found.frames[2], alone.frames[2])


@pytest.mark.parametrize("classes", [torch.tensor([3, 5]), torch.ones(2, 4, dtype=torch.bool), None])
def test_classes_do_not_mix(classes: Tensor | None) -> None:
    with pytest.raises(UserError, match="conditions are classes, which do not mix: give one prompt for all images"):
        mixed_condition(classes, torch.eye(2))


def test_prompts_of_two_classes_are_refused_before_anything_is_inverted() -> None:
    def never(x: Tensor, t: Tensor | float, cond: object = None) -> Tensor:
        raise AssertionError("it was asked")

    rig = Rig(replace(exact_model("gmm"), denoiser=never), {})
    with pytest.raises(UserError, match="give one prompt for all images"):
        morph(rig, likely(2), ["class 0", "class 1"], LINEAR)


# Warnings and refusals


def warned(end: End, **changes: object) -> tuple[str, ...]:
    none = torch.zeros(0)
    return Morph(none, none, none, none, (end,), Morphing(**changes)).warnings  # type: ignore[arg-type]


def test_an_end_that_is_another_image_is_told_with_the_remedy() -> None:
    lost = End("a.png", 1.0, 0.05, 0.001)
    (line,) = warned(lost, inversion=Inversion("ddim"))
    assert line == "the morph does not arrive at a.png (13.0 dB): try more steps, or the inversion 'fixed-point'"
    assert "a guidance scale nearer to 1, or the inversion 'null-text'" in warned(lost, inversion=Inversion("fixed-point", 20, 7.5))[0]
    assert "the scheme 'fix' does not give back its inputs; 'nin/channel' does" in warned(lost, scheme="fix")[0]
    assert "the model's autoencoder alone gets no nearer" in warned(replace(lost, codec=0.04))[0]


@pytest.mark.parametrize(
    ("pixels", "codec", "lost"), [(0.011, 0.01, True), (0.009, 0.004, False), (0.004, 0.0005, True), (0.002, 0.0, False)]
)
def test_what_counts_as_lost(pixels: float, codec: float, lost: bool) -> None:
    assert End("a", 0.0, pixels, codec).lost is lost
    assert bool(warned(End("a", 0.0, pixels, codec))) is lost


def test_decibels() -> None:
    assert End("a", 0.0, 0.01, 0.0).psnr == pytest.approx(20)
    assert End("a", 0.0, 0.0, 0.0).psnr == float("inf")


@pytest.mark.parametrize(
    ("count", "prompts", "how", "told"),
    [
        (1, "", LINEAR, "a morph is between two or three images, not 1"),
        (4, "", LINEAR, "a morph is between two or three images, not 4"),
        (3, ["a", "b"], LINEAR, "3 images and 2 prompts: give one prompt for all, or one an image"),
        (2, "", replace(LINEAR, triangle=True), "a triangle has three images at its corners: give a third"),
        (3, "", replace(LINEAR, frames=2), "a walk over 3 images has at least 3 frames, not 2"),
        (2, "", replace(LINEAR, even="clip"), "unknown instrument for the spacing 'clip'"),
    ],
)
def test_bad_input_is_one_line(count: int, prompts: str | list[str], how: Morphing, told: str) -> None:
    with pytest.raises(UserError, match=told):
        morph(gaussian(), likely(count), prompts, how)


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(UserError, match="at least 2 frames, its ends, not 1"):
        Morphing(1)
    with pytest.raises(UserError, match="nix"):
        Morphing(scheme="nix/channel")
    with pytest.raises(UserError, match=r"images \[2, 8, 8\] are no batch of pictures"):
        morph(gaussian(), torch.rand(2, 8, 8), how=LINEAR)


@pytest.mark.parametrize("part", ["denoiser", "path", "codec", "condition", "shape"])
def test_a_model_that_lacks_a_part_is_told(part: str) -> None:
    lacking: Model = replace(exact_model("gaussian"), **{part: None})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"exact:gaussian has no {part}, which a morph needs"):
        morph(Rig(lacking, {}), likely(2), how=LINEAR)


def test_more_steps_than_the_path_has_are_one_line() -> None:
    with pytest.raises(UserError, match="choose at least 1 and at most 1000"):
        morph(gaussian(), likely(2), how=replace(LINEAR, inversion=Inversion("ddim", 2000)))


def test_a_triangle_is_saved_as_a_sheet_alone(tmp_path: Path) -> None:
    found = morph(gaussian(), likely(3), how=replace(LINEAR, frames=2, triangle=True))
    with Image.open(found.save(tmp_path / "a.png")) as sheet:
        assert sheet.size == (17, 17)
    with pytest.raises(UserError, match=r"a triangle is a sheet and no film: save it as \.png instead of \.gif"):
        found.save(tmp_path / "a.gif")


# The command


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`diffprobe morph` in this process, in a folder with a.png, b.png and c.png."""
    for name, scene in zip("abc", worlds.scenes(3, 9), strict=True):
        Image.fromarray(scene.image).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffprobe", "morph", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    return run


def test_the_command_makes_a_strip(command: Command, tmp_path: Path) -> None:
    code, told, err = command("a.png", "b.png", "--out", "out/strip.png", "--steps", "3", "--frames", "5", "--device", "cpu")
    assert (code, err) == (0, "")
    assert told.startswith("out/strip.png: 5 frames; against the images given, a.png ")
    assert "the largest step is " in told
    assert "with weights in equal steps" in told
    with Image.open(tmp_path / "out" / "strip.png") as strip:
        assert strip.size == (5 * 64 + 4 * 2, 64)
        shown = np.asarray(strip).astype(float)
    given = np.asarray(Image.open(tmp_path / "a.png")).astype(float)
    assert np.abs(shown[:, :64] - given).mean() < 12


def test_the_command_makes_a_triangle_a_gif_and_says_what_is_lost(command: Command, tmp_path: Path) -> None:
    world = ["a.png", "b.png", "c.png", "--model", "exact:gaussian", "--steps", "5"]
    code, told, _ = command(*world, "--out", "t.png")
    assert (code, told.count("\n")) == (0, 4)
    assert told.startswith("t.png: 15 frames;")
    assert "warning: the morph does not arrive at a.png" in told
    with Image.open(tmp_path / "t.png") as sheet:
        assert sheet.size == (5 * 8 + 4, 5 * 8 + 4)
    code, told, _ = command(*world, "--out", "w.gif", "--frames", "9", "--fps", "10", "--no-even")
    assert code == 0
    assert "the largest step is" in told
    assert "equal steps" not in told
    with Image.open(tmp_path / "w.gif") as film:
        assert film.size == (8, 8)
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) == 900


@has_ffmpeg
def test_the_command_makes_a_film_spaced_by_an_embedder_with_a_prompt_an_image(command: Command, tmp_path: Path) -> None:
    settings = ["--steps", "3", "--frames", "3", "--inversion", "ddim", "--scheme", "slerp", "--embedder", "embedded", "--device", "cpu"]
    code, told, err = command("a.png", "b.png", "--out", "m.mp4", "--prompt", "a star", "--prompt", "a circle", *settings)
    assert (code, err) == (0, "")
    assert told.startswith("m.mp4: 3 frames;")
    assert (tmp_path / "m.mp4").stat().st_size > 500


def test_pictures_of_any_kind_are_taken(command: Command, tmp_path: Path) -> None:
    Image.new("RGBA", (31, 17), (200, 40, 40, 128)).save(tmp_path / "thin.png")
    Image.new("L", (5, 9), 90).save(tmp_path / "grey.png")
    code, told, _ = command("thin.png", "grey.png", "--model", "exact:gaussian", "--out", "o.png", "--steps", "3", "--frames", "2")
    assert (code, told[:16]) == (0, "o.png: 2 frames;")


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["a.png", "--out", "o.png"], "a morph is between two or three images, not 1: give as many", 2),
        (["a.png", "b.png", "c.png", "a.png", "--out", "o.png"], "a morph is between two or three images, not 4", 2),
        (["a.png", "b.png", "--out", "o.webm"], "end it in .png (a sheet), .gif or .mp4 (a film)", 2),
        (["a.png", "b.png", "--out", "a.png"], "--out a.png is one of the images: choose another name", 2),
        (["a.png", "none.png", "--out", "o.png"], "cannot read none.png", 2),
        (["a.png", "broken.png", "--out", "o.png"], "broken.png is no image that can be read", 2),
        (["a.png", "half.png", "--out", "o.png"], "half.png is damaged", 2),
        (["a.png", "b.png", "--out", "o.png", "--scheme", "nix"], "nix", 2),
        (["a.png", "b.png", "--out", "o.png", "--inversion", "ddmi"], "unknown inversion 'ddmi': did you mean 'ddim'?", 2),
        (["a.png", "b.png", "--out", "o.png", "--steps", "0"], "num_inference_steps 0 must be at least 1", 2),
        (["a.png", "b.png", "--out", "o.png", "--frames", "1"], "a morph has at least 2 frames", 2),
        (["a.png", "b.png", "--out", "o.gif", "--fps", "0"], "more than 0 frames a second", 2),
        (["a.png", "b.png", "--out", "o.png", "--embedder", "embedded", "--no-even"], "leave one of them out", 2),
        (["a.png", "b.png", "--out", "o.png", "--prompt", "x", "--prompt", "y", "--prompt", "z"], "2 images and 3 prompts", 2),
    ],
)
def test_bad_arguments_are_one_line_before_a_model_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], told: str, code: int
) -> None:
    def never(*_: object, **__: object) -> Model:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("diffprobe.adapters.load.load", never)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found, out, err = command(*arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert told in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_film_without_ffmpeg_is_told_before_a_model_is_loaded(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("diffprobe.adapters.load.load", None)
    code, _, err = command("a.png", "b.png", "--out", "o.mp4")
    assert (code, err.count("\n")) == (4, 1)
    assert "or write a .gif" in err


def test_an_autoencoder_alone_cannot_morph(command: Command, pipelines: Callable[[str], Path]) -> None:
    code, _, err = command("a.png", "b.png", "--out", "o.png", "--model", str(pipelines("vae")))
    assert (code, err) == (2, "diffprobe: vae has no path and no denoiser and no condition, which a morph needs: choose another model\n")


def test_an_interruption_writes_nothing(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> Model:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffprobe.adapters.load.load", interrupted)
    assert command("a.png", "b.png", "--out", "o.png") == (3, "", "diffprobe: interrupted; o.png was not written\n")
    assert not (tmp_path / "o.png").exists()


def test_help_answers_at_once_and_names_what_there_is() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = """
import sys
from diffprobe.cli import main
sys.argv = ["diffprobe", "morph", "--help"]
try:
    main()
finally:
    print(sorted({"torch", "diffusers", "transformers", "pandas", "pyarrow", "scipy", "PIL", "numpy"} & set(sys.modules)))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.splitlines()[-1] == "[]", "imports what it does not need"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for option in (
        "--out",
        "--model",
        "--prompt",
        "--frames",
        "--scheme",
        "--inversion",
        "--steps",
        "--guidance-scale",
        "--no-even",
        "--fps",
    ):
        assert option in told
