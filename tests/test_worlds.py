"""The rendered world: scenes by address, whose captions and attributes say what is in them; edits, and foreign pictures."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diffprobe import rng
from diffprobe.worlds import (
    BACKGROUNDS,
    COLOURS,
    DETAILS,
    RESERVED,
    SHAPES,
    SIZES,
    UNSEEN,
    Attributes,
    Edit,
    Foreign,
    Scene,
    caption,
    drawing,
    edits,
    foreign,
    render,
    scenes,
)
from diffprobe.worlds.edits import KINDS, NO_OPS, Kind
from diffprobe.worlds.foreign import _INKS, _OUTLINES, _PAPERS
from diffprobe.worlds.scenes import attributes_of

PLAIN = Attributes("circle", "red", "large", "grey", "none", "colour", 0.0, 0.0, 0.6)


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return scenes(400, seed=3)


@pytest.fixture(scope="module")
def pairs() -> list[Edit]:
    return edits(360, seed=3)


@pytest.fixture(scope="module")
def inverted() -> list[Foreign]:
    return foreign(150, seed=3, kind="inverted")


@pytest.fixture(scope="module")
def strokes() -> list[Foreign]:
    return foreign(150, seed=3, kind="strokes")


@pytest.fixture(scope="module")
def shuffled() -> list[Foreign]:
    return foreign(60, seed=3, kind="shuffled")


@pytest.fixture(scope="module")
def noise() -> list[Foreign]:
    return foreign(60, seed=3, kind="noise")


def stacked(pictures: Iterable[Scene | Foreign]) -> npt.NDArray[np.float64]:
    """[n, 64, 64, 3] in 0..255."""
    return np.stack([picture.image for picture in pictures]).astype(np.float64)


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


def test_the_worlds_are_still_what_models_were_trained_on() -> None:
    """Words to the letter; means of the pictures to .1 of 255, as libraries of mathematics differ in the last bit."""
    found = scenes(3, seed=1)
    assert [scene.caption for scene in found] == [
        "a small red cross with a window at sunset",
        "a large yellow triangle in the snow",
        "a large orange triangle with a hat on a teal background",
    ]
    assert [scene.image.mean() for scene in found] == pytest.approx([118.517, 194.113, 112.244], abs=0.1)
    changed = edits(3, seed=1)
    assert [edit.instruction for edit in changed] == ["turn the cross into a triangle", "make the triangle blue", "put it at night"]
    assert [edit.after.image.mean() for edit in changed] == pytest.approx([116.808, 181.828, 47.852], abs=0.1)


def of_kind(pairs: list[Edit], kind: Kind) -> list[Edit]:
    found = [pair for pair in pairs if pair.kind == kind]
    assert len(found) >= 10
    return found


def difference(pair: Edit) -> npt.NDArray[np.int64]:
    """The largest change of a channel, [64, 64]."""
    return np.asarray(np.abs(pair.after.image.astype(np.int64) - pair.before.image).max(-1))


def around(attributes: Attributes, across: float, above: float, below: float, more: float = 1 / 16) -> npt.NDArray[np.bool_]:
    """Pixels in a box about the object, in units of its radius; `more`, in units of half a picture, for soft edges."""
    axis = (np.arange(64) + 0.5) / 32 - 1
    x, y, radius = axis[None] - attributes.x, axis[:, None] - attributes.y, attributes.radius
    return (np.abs(x) < across * radius + more) & (y > -above * radius - more) & (y < below * radius + more)


def test_an_edit_begins_with_the_scene_of_its_number(pairs: list[Edit], many: list[Scene]) -> None:
    for pair, scene in zip(pairs[:60], many[:60], strict=True):
        np.testing.assert_array_equal(pair.before.image, scene.image)
        assert (pair.before.attributes, pair.before.caption) == (scene.attributes, scene.caption)


def test_an_edit_is_the_same_however_many_are_asked_for(pairs: list[Edit]) -> None:
    for pair in (edits(1, seed=3, start=37)[0], edits(5, seed=3, start=35)[2]):
        np.testing.assert_array_equal(pair.after.image, pairs[37].after.image)
        assert (pair.instruction, pair.kind, pair.after.caption) == (pairs[37].instruction, pairs[37].kind, pairs[37].after.caption)


def test_an_edit_changes_the_attribute_that_it_says_and_no_other(pairs: list[Edit]) -> None:
    assert {pair.kind for pair in pairs} == set(KINDS)
    for pair in pairs:
        old, new = asdict(pair.before.attributes), asdict(pair.after.attributes)
        assert [name for name in old if old[name] != new[name]] == ([] if pair.kind == "none" else [pair.kind])
        assert pair.after.caption == caption(pair.after.attributes)


def test_an_instruction_names_what_there_will_be(pairs: list[Edit]) -> None:
    for pair in pairs:
        old, new = pair.before.attributes, pair.after.attributes
        lost = DETAILS[old.detail].replace("with", "without", 1)
        named = {
            "colour": [new.colour],
            "shape": [new.shape],
            "background": [BACKGROUNDS[new.background]],
            "detail": [lost if new.detail == "none" else DETAILS[new.detail]],
            "tone": [new.tone],
            "none": NO_OPS,
        }
        assert any(words in pair.instruction for words in named[pair.kind]), (pair.instruction, pair.kind)


def test_no_edit_begins_or_ends_with_a_reserved_pair(pairs: list[Edit]) -> None:
    ends = {(scene.attributes.shape, scene.attributes.colour) for pair in pairs for scene in (pair.before, pair.after)}
    assert not ends & RESERVED
    assert len(ends) == len(SHAPES) * len(COLOURS) - len(RESERVED)


def test_an_edit_of_nothing_changes_no_pixel_and_every_other_does(pairs: list[Edit]) -> None:
    for pair in pairs:
        assert (difference(pair) > 0).any() == (pair.kind != "none")


def test_a_new_colour_stays_on_the_object(pairs: list[Edit]) -> None:
    for pair in of_kind(pairs, "colour"):
        changed, old = difference(pair) > 0, pair.before.attributes
        assert not changed[~around(old, 1.25, 1.1, 1.1)].any()
        if old.shape == "circle" and old.detail == "none":
            assert changed.sum() / 32**2 == pytest.approx(np.pi * (0.88 * old.radius) ** 2, rel=0.12)  # with its soft edge


def test_a_new_detail_stays_on_the_object_or_just_above_it(pairs: list[Edit]) -> None:
    for pair in of_kind(pairs, "detail"):
        assert not (difference(pair) > 0)[~around(pair.before.attributes, 0.65, 1.25, 0.4)].any()


def test_a_new_shape_stays_with_its_shadow_about_the_old_one(pairs: list[Edit]) -> None:
    for pair in of_kind(pairs, "shape"):
        assert difference(pair)[~around(pair.before.attributes, 1.25, 1.1, 1.1, more=0.45)].max(initial=0) <= 2  # where a shadow ends


def test_a_new_background_leaves_the_object_as_it_was_but_for_noise(pairs: list[Edit]) -> None:
    for pair in of_kind(pairs, "background"):
        old = pair.before.attributes
        core = around(old, 0.2, 0.2, 0.2, more=0)
        assert difference(pair)[core].max() < 10 * 0.008 * 255
        assert np.median(difference(pair)[~around(old, 1.3, 1.3, 1.3)]) > 5


def test_black_and_white_is_the_luma_of_what_there_was(pairs: list[Edit]) -> None:
    for pair in of_kind(pairs, "tone"):
        luma = pair.before.image @ np.array([0.299, 0.587, 0.114])
        assert np.abs(pair.after.image.mean(-1) - luma).mean() < 0.02 * 255


def test_kinds_of_edit_can_be_chosen(pairs: list[Edit]) -> None:
    chosen = edits(40, seed=3, kinds=["background", "shape"])
    assert {pair.kind for pair in chosen} == {"background", "shape"}
    for pair, other in zip(chosen, pairs[:40], strict=True):
        np.testing.assert_array_equal(pair.before.image, other.before.image)


def test_what_is_black_and_white_is_given_no_colour(pairs: list[Edit]) -> None:
    grey = [index for index, pair in enumerate(pairs) if pair.before.attributes.tone != "colour"]
    assert len(grey) > 10
    assert not {pairs[index].kind for index in grey} & {"colour", "tone"}
    for pair in (edits(1, seed=3, kinds=["colour"], start=index)[0] for index in grey[:5]):
        assert (pair.kind, pair.after.attributes) == ("none", pair.before.attributes)


@pytest.mark.parametrize("kinds", [["color"], ["shape", "size"], []])
def test_a_bad_kind_of_edit_is_refused_with_the_choices(kinds: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown kind of edit .*choose from colour, shape"):
        edits(1, seed=0, kinds=kinds)


@pytest.mark.parametrize("kind", ["inverted", "strokes", "shuffled", "noise"])
def test_a_foreign_picture_is_the_same_however_many_are_asked_for(kind: Any, request: pytest.FixtureRequest) -> None:
    all_of_them: list[Foreign] = request.getfixturevalue(kind)
    for found in (foreign(1, seed=3, kind=kind, start=37)[0], foreign(40, seed=3, kind=kind)[37]):
        np.testing.assert_array_equal(found.image, all_of_them[37].image)
        assert (found.caption, found.kind) == (all_of_them[37].caption, kind)
    images = {picture.image.tobytes() for picture in (*all_of_them, *foreign(20, seed=4, kind=kind))}
    assert len(images) == len(all_of_them) + 20
    assert foreign(0, seed=3, kind=kind) == []


def test_foreign_pictures_have_the_form_of_scenes(
    inverted: list[Foreign], strokes: list[Foreign], shuffled: list[Foreign], noise: list[Foreign]
) -> None:
    for picture in (*inverted, *strokes, *shuffled, *noise):
        assert picture.image.dtype == np.uint8
        assert picture.image.shape == (64, 64, 3)
        assert picture.image.std() > 5, picture.caption


@pytest.mark.parametrize("kind", ["invertd", "scenes", ""])
def test_a_bad_kind_of_foreign_picture_is_refused_with_the_choices(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown kind of foreign picture .*choose from inverted, strokes, shuffled, noise"):
        foreign(1, seed=0, kind=kind)


def novelty(images: npt.NDArray[np.float64], known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How far a picture's median colour is from the nearest one of the known pictures, in 255ths."""
    colours, others = (np.median(group.reshape(len(group), -1, 3), axis=1) for group in (images, known))
    return np.asarray(np.linalg.norm(colours[:, None] - others, axis=-1).min(1))


def test_the_negative_of_an_inverted_picture_has_a_scenes_tones_and_the_picture_has_not(inverted: list[Foreign], many: list[Scene]) -> None:
    known, pictures, others = stacked(many), stacked(inverted), stacked(scenes(150, seed=4))
    assert np.median(novelty(others, known)) < 3
    assert np.median(novelty(255 - pictures, known)) < 3
    assert np.median(novelty(pictures, known)) > 15


def test_handwriting_is_rougher_than_any_other_picture(inverted: list[Foreign], strokes: list[Foreign], many: list[Scene]) -> None:
    def roughness(pictures: Iterable[Scene | Foreign]) -> float:
        grey = stacked(pictures).mean(-1)
        return float(np.median([np.abs(np.diff(grey, axis=axis)).mean((1, 2)) for axis in (1, 2)]))

    assert roughness(strokes) > 3 * max(roughness(inverted), roughness(many))


def test_unseen_shapes_are_none_of_the_worlds(inverted: list[Foreign]) -> None:
    assert not set(UNSEEN) & set(SHAPES)
    counts = Counter(next(shape for shape in UNSEEN if shape in picture.caption) for picture in inverted)
    assert set(counts) == set(UNSEEN)
    assert min(counts.values()) > len(inverted) / len(UNSEEN) / 3
    assert not {word for picture in inverted for word in picture.caption.split()} & set(SHAPES)


@pytest.mark.parametrize("shape", UNSEEN)
def test_an_unseen_shape_covers_other_ground_than_any_seen_one(shape: str) -> None:
    x, y = np.meshgrid(np.linspace(-1.3, 1.3, 261), np.linspace(-1.3, 1.3, 261))
    mine = _OUTLINES[shape](x, y) < 0
    assert not mine[np.hypot(x, y) > 1.15].any(), "it is larger than its circumradius allows"
    for other in (drawing._OUTLINES[name](x, y) < 0 for name in SHAPES):
        assert (mine & other).sum() / (mine | other).sum() < 0.95
        assert mine.sum() > 0.3 * other.sum(), "it is too thin to compare"


def test_the_caption_of_an_inverted_picture_names_its_colours_before_inversion(inverted: list[Foreign]) -> None:
    grey = 0
    for picture in inverted:
        name = next((word for word in picture.caption.split() if word in COLOURS), None)
        if name is None:
            assert picture.caption.startswith("the negative of a black and white picture of a")
            assert np.ptp(picture.image.mean((0, 1))) < 1
            grey += 1
        else:
            near = np.abs((255 - picture.image.astype(float)) / 255 - COLOURS[name]).max(-1) < 0.12
            assert near.sum() > 50, picture.caption
    assert 0 < grey < len(inverted) / 4


def test_the_caption_of_handwriting_names_its_paper_and_its_ink(strokes: list[Foreign]) -> None:
    for picture in strokes:
        pixels = picture.image.reshape(-1, 3) / 255
        light = pixels.sum(1)
        bare = np.median(pixels[light > np.quantile(light, 0.6)], axis=0)
        paper = min(_PAPERS, key=lambda name: float(np.linalg.norm(bare - _PAPERS[name])))
        written = bare - np.median(
            pixels[light < np.quantile(light, 0.02)], axis=0
        )  # ink lets some of the paper through: compare directions
        towards = {name: bare - colour for name, colour in _INKS.items()}
        ink = max(towards, key=lambda name: float(written @ towards[name] / np.linalg.norm(towards[name])))
        assert f"of {ink} handwriting on " in picture.caption, picture.caption
        assert picture.caption.endswith(f"{paper} paper"), picture.caption
    assert {word for picture in strokes for word in picture.caption.split()} > {*_PAPERS, *_INKS, "ruled", "three", "six"}


def squares(picture: npt.NDArray[np.uint8]) -> list[bytes]:
    """The 64 squares of 8 x 8 pixels, row by row."""
    return [picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].tobytes() for row in range(8) for column in range(8)]


def test_a_shuffled_picture_has_the_squares_of_a_scene_in_other_places(shuffled: list[Foreign]) -> None:
    for index, picture in enumerate(shuffled[:20]):
        draw = rng.stream("worlds.foreign.shuffled", 3, index)
        attributes, _ = attributes_of(draw)
        before, after = squares(render(attributes, draw)), squares(picture.image)
        assert sorted(before) == sorted(after)
        assert sum(a == b for a, b in zip(before, after, strict=True)) < 8
        assert picture.caption == f"the shuffled squares of {caption(attributes)}"


def test_every_square_of_a_shuffled_picture_goes_everywhere_alike() -> None:
    """Where the first square of 320 pictures ends: uniform over the 64 places (chi-squared, 63 degrees of freedom)."""
    places = np.zeros(64)
    for index in range(320):
        draw = rng.stream("worlds.foreign.shuffled", 5, index)
        first = squares(render(attributes_of(draw)[0], draw))[0]
        places[squares(foreign(1, seed=5, kind="shuffled", start=index)[0].image).index(first)] += 1
    assert ((places - 5) ** 2 / 5).sum() < 63 + 4 * np.sqrt(2 * 63)


def test_noise_is_uniform_and_independent(noise: list[Foreign]) -> None:
    pixels = stacked(noise)
    assert pixels.min() == 0
    assert pixels.max() == 255
    counts = np.bincount(pixels.astype(int).ravel(), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 4 * np.sqrt(2 * 255)
    for axis in (1, 2, 3):  # neighbours below, beside, and of another colour
        ahead, behind = (np.roll(pixels, step, axis).ravel() for step in (0, 1))
        assert abs(np.corrcoef(ahead, behind)[0, 1]) < 0.01
    assert {picture.caption for picture in noise} == {"coloured noise"}
