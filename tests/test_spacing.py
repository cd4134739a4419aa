"""Where frames stand: closed forms, what is even where the distance is known, and rulers against their definitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffprobe.adapters.exact import exact_model
from diffprobe.controls.spacing import Array, allotted, by_leg, equal, even, evenly, ruler, weights
from diffprobe.errors import UserError
from diffprobe.model import Rig
from tests.small import Pixels


def test_equal_steps_and_their_weights() -> None:
    assert equal([4]).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert equal([1, 2]).tolist() == [0, 1, 1.5, 2]
    assert weights(equal([2]), (0, 1)).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert weights(equal([1, 2, 1]), (0, 1, 2, 0)).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [1, 0, 0]]


def test_weights_lie_on_the_simplex_anywhere() -> None:
    found = weights(np.linspace(0, 3, 101), (0, 1, 2, 0))
    assert found.dtype == torch.float64
    assert bool((found >= 0).all())
    assert torch.allclose(found.sum(1), torch.ones(101, dtype=torch.float64))
    assert int((found > 0).sum(1).max()) == 2


def test_even_places_divide_the_length() -> None:
    """Three quarters of the length lie in the first half."""
    places = even(np.array([0, 0.5, 1]), np.array([3.0, 1.0]), [4])
    assert places == pytest.approx([0, 1 / 6, 1 / 3, 0.5, 1])


def test_even_places_keep_the_corners_and_their_legs_apart() -> None:
    places = even(np.array([0, 0.5, 1, 2]), np.array([1.0, 0.0, 0.0]), [2, 3])
    assert places == pytest.approx([0, 0.25, 1, 4 / 3, 5 / 3, 2])


@pytest.mark.parametrize(
    ("steps", "shares", "expected"),
    [(8, [1.0], [8]), (6, [1, 1, 1], [2, 2, 2]), (7, [2, 1, 1], [3, 2, 2]), (3, [9, 0, 0], [1, 1, 1]), (9, [0, 0, 0], [3, 3, 3])],
)
def test_steps_are_allotted_in_proportion(steps: int, shares: list[float], expected: list[int]) -> None:
    assert allotted(steps, shares) == expected


def test_every_leg_gets_a_step_and_none_is_lost() -> None:
    for steps in range(3, 40):
        found = allotted(steps, [0.1, 5.0, 1.3])
        assert sum(found) == steps
        assert min(found) >= 1


def seen(shown: Callable[[Array], Array]) -> Callable[[Array], Tensor]:
    """A world where the frame at a place is one number."""
    return lambda places: torch.from_numpy(np.atleast_1d(shown(places)))[:, None]


def apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs()[:, 0]


def steps_of(shown: Callable[[Array], Array], places: Array) -> Array:
    return np.abs(np.diff(shown(places)))


def cubic(places: Array) -> Array:
    return np.asarray(places**3)


def jump(places: Array) -> Array:
    """Nearly all of the change within a twentieth of the way."""
    return np.asarray(np.tanh(60 * (places - 0.37)))


@pytest.mark.parametrize(("shown", "count", "allowed"), [(cubic, 8, 1.1), (cubic, 24, 1.02), (jump, 24, 1.25)])
def test_frames_are_even_where_the_distance_is_known(shown: Callable[[Array], Array], count: int, allowed: float) -> None:
    places, before = evenly(seen(shown), apart, count, 1)
    assert (places[0], places[-1], len(places)) == (0, 1, count + 1)
    assert np.all(np.diff(places) > 0)
    assert before.numpy() == pytest.approx(steps_of(shown, equal([count])))
    steps = steps_of(shown, places)
    assert float(before.max() / before.mean()) > 2.5
    assert steps.max() / steps.mean() < allowed


def test_a_long_leg_gets_more_frames() -> None:
    """Lengths 1, 3 and 2 around."""
    places, _ = evenly(seen(lambda p: np.interp(p, [0, 1, 2, 3], [0, 1, 4, 2])), apart, 12, 3)
    assert {0.0, 1.0, 2.0, 3.0} <= set(places.tolist())
    assert by_leg(places, np.ones(12), 3) == [2, 6, 4]


def test_where_nothing_moves_the_weights_are_equally_spaced() -> None:
    places, before = evenly(seen(np.zeros_like), apart, 5, 1)
    assert places == pytest.approx(equal([5]))
    assert before.tolist() == [0] * 5


class Squares:
    """A distance that grows with the square of a change, as LPIPS does."""

    fingerprint = "squares/1"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.sides: set[int] = set()

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        self.batches.append(len(a))
        self.sides.add(a.shape[-1])
        return (a - b).square().flatten(1).sum(1)


def test_the_ruler_of_pixels_is_the_root_mean_square() -> None:
    pixels = ruler(Rig(exact_model("gaussian"), {}))
    a, b = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(x - y).square().mean().sqrt() for x, y in zip(a, b, strict=True)]).double()
    assert torch.allclose(pixels.apart(pixels.see(a), pixels.see(b)), expected)
    assert pixels.see(torch.zeros(1, 3, 1024, 1024)).shape == (1, 3, 256, 256)


@pytest.mark.parametrize("angle", [1e-5, 0.01, 1.0, math.pi / 2, math.pi])
def test_the_ruler_of_an_embedder_is_the_angle_whatever_the_lengths(angle: float) -> None:
    look = ruler(Rig(exact_model("gaussian"), {"pixels 4": Pixels()}), "pixels 4")
    a = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    b = 3 * torch.tensor([[math.cos(angle), 0.0, math.sin(angle)]], dtype=torch.float64)
    assert float(look.apart(a, b)) == pytest.approx(angle, rel=1e-6)
    assert look.see(torch.rand(2, 3, 8, 8)).shape == (2, 48)


def test_the_ruler_of_a_distance_is_its_root_in_batches_and_seen_small() -> None:
    squares = Squares()
    look = ruler(Rig(exact_model("gaussian"), {}, 2, distances={"squares": squares}), "squares")
    a = look.see(torch.zeros(5, 3, 300, 300))
    assert look.apart(a, a + 0.1).tolist() == pytest.approx([0.1 * math.sqrt(3 * 256 * 256)] * 5, rel=1e-5)
    assert (squares.batches, squares.sides) == ([2, 2, 1], {256})


def test_an_unknown_ruler_names_those_that_there_are() -> None:
    with pytest.raises(UserError, match="unknown instrument for the spacing 'vgg': choose from embedded, pixels"):
        ruler(Rig(exact_model("gaussian"), {"embedded": Pixels()}), "vgg")
