"""The rendered world: scenes by address, whose captions and attributes say what is in them."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diffprobe import rng
from diffprobe.worlds import BACKGROUNDS, COLOURS, DETAILS, RESERVED, SHAPES, SIZES, Attributes, Scene, caption, render, scenes

PLAIN = Attributes("circle", "red", "large", "grey", "none", "colour", 0.0, 0.0, 0.6)


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return scenes(400, seed=3)


def drawn(attributes: Attributes) -> npt.NDArray[np.uint8]:
    return render(attributes, rng.stream("test.worlds", 0))


def test_a_scene_is_the_same_however_many_are_asked_for(many: list[Scene]) -> None:
    for scene in (scenes(1, seed=3, start=37)[0], scenes(40, seed=3)[37], scenes(5, seed=3, start=35)[2]):
        np.testing.assert_array_equal(scene.image, many[37].image)
        assert (scene.attributes, scene.caption) == (many[37].attributes, many[37].caption)


def test_every_scene_and_every_seed_gives_another_image(many: list[Scene]) -> None:
    images = [scene.image.tobytes() for scene in (*many, *scenes(50, seed=4))]
    assert len(set(images)) == len(images)


def test_no_scene_is_no_scene() -> None:
    assert scenes(0, seed=1) == []


def test_images_are_small_coloured_squares(many: list[Scene]) -> None:
    stack = np.stack([scene.image for scene in many])
    assert stack.dtype == np.uint8
    assert stack.shape[1:] == (64, 64, 3)
    assert stack.min() == 0
    assert stack.max() == 255
    assert 90 < stack.mean() < 165
    assert all(scene.image.std() > 10 for scene in many), "an image is almost of one colour"


def test_black_and_white_means_no_colour(many: list[Scene]) -> None:
    grey = np.array([scene.attributes.tone == "black and white" for scene in many])
    casts = np.array([np.ptp(scene.image.mean((0, 1))) for scene in many])
    assert casts[grey].max() < 1 < np.quantile(casts[~grey], 0.05)
    share = grey.mean()
    assert share == pytest.approx(0.08, abs=5 * (0.08 * 0.92 / len(many)) ** 0.5)


def test_attributes_are_drawn_evenly_and_lie_in_the_picture(many: list[Scene]) -> None:
    for name, values in (("shape", SHAPES), ("size", SIZES), ("background", BACKGROUNDS), ("colour", COLOURS), ("detail", DETAILS)):
        counts = Counter(getattr(scene.attributes, name) for scene in many)
        assert set(counts) == set(values)
        assert min(counts.values()) > len(many) / len(values) / 3
    for attributes in (scene.attributes for scene in many):
        low, high = SIZES[attributes.size]
        assert low <= attributes.radius <= high
        assert max(abs(attributes.x), abs(attributes.y)) <= 0.96 - attributes.radius + 1e-9 or attributes.detail == "hat"


def test_a_caption_names_only_what_is_there(many: list[Scene]) -> None:
    words: dict[str, Collection[str]] = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
    for scene in many:
        told = scene.caption.split()
        for name, values in words.items():
            assert {word for word in told if word in values} <= {getattr(scene.attributes, name)}
        assert ("black and white" in scene.caption) == (scene.attributes.tone != "colour")
        mine = scene.attributes
        assert not [d for d, text in DETAILS.items() if text and text in scene.caption and d != mine.detail]
        assert not [b for b, text in BACKGROUNDS.items() if text in scene.caption and b != mine.background]


def test_half_of_the_captions_are_complete(many: list[Scene]) -> None:
    complete = np.mean([scene.caption == caption(scene.attributes) for scene in many])
    assert 0.5 < complete < 0.75  # half by intent, and some of the others by chance


def test_captions_are_english() -> None:
    assert caption(PLAIN) == "a large red circle on a grey background"
    assert caption(replace(PLAIN, colour="orange"), ["colour", "shape"]) == "an orange circle"
    assert caption(replace(PLAIN, detail="hat", background="night"), ["detail", "background"]) == "a thing with a hat at night"
    assert caption(replace(PLAIN, tone="black and white")) == "a black and white picture of a large circle on a grey background"
    assert caption(PLAIN, []) == "a thing"


def test_reserved_pairs_appear_only_where_they_are_asked_for_and_then_alone(many: list[Scene]) -> None:
    pairs = {(scene.attributes.shape, scene.attributes.colour) for scene in many}
    assert not pairs & RESERVED
    assert len(pairs) == len(SHAPES) * len(COLOURS) - len(RESERVED)
    assert {(scene.attributes.shape, scene.attributes.colour) for scene in scenes(60, seed=3, reserved=True)} == RESERVED


def test_backgrounds_can_be_chosen() -> None:
    found = scenes(30, seed=3, backgrounds=["night", "snow"])
    assert {scene.attributes.background for scene in found} == {"night", "snow"}
    assert {scene.attributes.domain for scene in found} == {"night", "snow"}


@pytest.mark.parametrize("names", [["nihgt"], ["night", "mars"], []])
def test_a_bad_background_is_refused_with_the_choices(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"unknown background .*choose from grey"):
        scenes(1, seed=0, backgrounds=names)


def test_plain_backgrounds_are_one_domain() -> None:
    assert {replace(PLAIN, background=kind).domain for kind in BACKGROUNDS} == {"plain", "textured", "stripes", "night", "snow", "sunset"}


@pytest.mark.parametrize(
    ("name", "values"), [("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS), ("detail", DETAILS), ("size", SIZES)]
)
def test_every_value_of_an_attribute_looks_different(name: str, values: tuple[str, ...]) -> None:
    """By the same random numbers, two pictures differ clearly only where the attribute does."""
    radii = {value: SIZES[value][0] if name == "size" else 0.6 for value in values}
    changes: list[dict[str, Any]] = [{name: value, "radius": radius} for value, radius in radii.items()]
    pictures = [drawn(replace(PLAIN, **change)) for change in changes]
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            assert np.abs(picture.astype(int) - other).mean() > 1


def test_an_object_is_where_and_of_the_colour_that_its_attributes_say() -> None:
    picture = drawn(replace(PLAIN, x=0.3, y=-0.2, radius=0.4)).astype(float)
    red = picture[..., 0] - picture[..., 1:].max(-1) > 80
    row, column = np.argwhere(red).mean(0)
    assert (column + 0.5) / 32 - 1 == pytest.approx(0.3, abs=0.03)
    assert (row + 0.5) / 32 - 1 == pytest.approx(-0.2, abs=0.03)
    assert red.sum() / 32**2 == pytest.approx(np.pi * (0.88 * 0.4) ** 2, rel=0.05)  # a circle's radius is .88 of its circumradius
