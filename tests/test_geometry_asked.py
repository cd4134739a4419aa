"""What the geometry probe can be asked: what is planned, what suits a model, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from diffprobe.adapters.exact import exact_model, four_classes
from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.probes.base import key
from diffprobe.probes.geometry import Field, Generated, Geometry, Slice
from diffprobe.probes.geometry.cells import Anchors, Samples
from diffprobe.probes.geometry.places import Grid, Plane
from diffprobe.runs.execute import plan
from diffprobe.runs.result import check, suited
from diffprobe.runs.study import parse_probe
from tests.geometry_studies import asked, measured


def test_a_model_without_a_denoiser_is_asked_what_it_can_be() -> None:
    model = replace(exact_model("relu"), denoiser=None, path=None)
    probe = Geometry.preset("standard")
    (left,) = suited([probe], Rig(model, {}))
    assert isinstance(left, Geometry)
    assert left.generated == ()
    assert left.slices == probe.slices  # of images
    assert left.sets == probe.sets
    check([left], Rig(model, {}))
    with pytest.raises(UserError, match=r"geometry needs .*denoiser"):
        check([probe], Rig(model, {}))


def test_a_model_without_a_codec_has_its_field_alone() -> None:
    model = replace(exact_model("gmm"), codec=None)
    probe = Geometry(sets=("world",), priors=3, fields=(Field((1.0,), size=2),))
    (left,) = suited([probe], Rig(model, {}))
    assert isinstance(left, Geometry)
    assert (left.sets, left.priors, left.fields) == ((), 0, probe.fields)
    (whole,) = suited([Geometry(sets=("world",))], Rig(model, {}))
    with pytest.raises(UserError, match="geometry needs codec"):
        check([whole], Rig(model, {}))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sets": ()}, "needs somewhere to measure"),
        ({"radius": 0}, "radius 0 has no neighbourhood"),
        ({"radius": math.nan}, "has no neighbourhood"),
        ({"dims": 0}, "dims must be at least 1"),
        ({"directions": 0}, "directions and projections must be at least 1"),
        ({"precision": 0.0}, "precision is the standard error"),
        ({"count": 0}, "count must be at least 1"),
        ({"resolution": 100}, "multiple of 8"),
        ({"sets": ("world", "world")}, "two places to measure are called 'world'"),
        ({"sets": ("a=world", "a=noise")}, "two places to measure are called 'a'"),
        ({"sets": ("=world",)}, "lacks a side"),
        ({"checkpoints": ("a", "a")}, "a checkpoint comes twice"),
        ({"level_sets": 1}, "level_sets must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Geometry(**settings)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Generated(()), "needs 'prompts'"),
        (lambda: Generated(("a",), points=52), "points from 1 to the steps"),
        (lambda: Generated(("a",), guidance_scale=(-1.0,)), "guidance_scale of the generated set"),
        (lambda: Generated(("a",), guidance_scale=(1.0, 1.0)), "comes twice"),
        (lambda: Slice(("a", "a", "b")), "three different anchors"),
        (lambda: Slice(("a", "b", "c"), size=1), "size of at least 2"),
        (lambda: Slice(("a", "b", "c"), guidance_scale=-1.0), "guidance_scale of the slice"),
        (lambda: Field(()), "needs sigmas above 0"),
        (lambda: Field((0.0,)), "needs sigmas above 0"),
        (lambda: Field((1.0,), span=0), "a span above 0"),
    ],
)
def test_places_that_make_no_sense_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (Geometry(sets=(), fields=(Field((100.0,)),)), "no level of sigma 100: its levels are up to 14.61"),
        (Geometry(sets=(), fields=(Field((0.01,)),)), r"no level of sigma 0.01: its levels are above 0.0292"),
        (Geometry(sets=(), priors=2, prior_steps=2000), "cannot take 2000 steps"),
        (Geometry(sets=(), generated=(Generated(("class 9",)),)), "no prompt can ask for class 9"),
        (Geometry(sets=(), slices=(Slice(("class 9", "world:0", "world:1")),)), "no prompt can ask for class 9"),
        (Geometry(sets=(), slices=(Slice(("wrold:0", "world:0", "world:1")),)), "no images at 'wrold'"),
    ],
)
def test_what_a_model_cannot_be_asked_is_told_before_anything_is_measured(probe: Geometry, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check([probe], Rig(exact_model("gmm"), {}))


def test_half_precision_under_a_derivative_is_refused() -> None:
    model = replace(exact_model("gmm"), identity={"dtype": "bfloat16"})
    with pytest.raises(UserError, match="load the model with torch_dtype float32"):
        check([Geometry(sets=(), fields=(Field((1.0,)),))], Rig(model, {}))
    check([Geometry(sets=("noise",))], Rig(model, {}))


def test_anchors_on_one_line_are_told(tmp_path: Path) -> None:
    run = asked(exact_model("gmm"), Geometry(sets=(), slices=(Slice(("world:0", "world:00", "world:1"), size=2),)), tmp_path)
    assert any("lie on one line" in failure["error"] for failure in run.failures.values())


def test_an_unconditional_model_has_its_field(tmp_path: Path) -> None:
    model = replace(exact_model("gmm"), condition=None, codec=None)
    (probe,) = suited([Geometry(sets=("world",), fields=(Field((1.0,), size=2),))], Rig(model, {}))
    assert asked(model, cast(Geometry, probe), tmp_path).done == 1
    with pytest.raises(UserError, match="knows no prompts"):
        check([Geometry(sets=(), fields=(Field((1.0,), prompt="class 0"),))], Rig(model, {}))


def test_a_further_level_keeps_the_cells_of_the_others() -> None:
    few, more = ({key(cell) for cell in Geometry(sets=(), fields=(Field(sigmas),)).plan()} for sigmas in ((1.0,), (1.0, 2.0)))
    assert few < more


def test_each_level_of_the_path_steps_to_the_next() -> None:
    """Also where a sigma's own time is off by a rounding: no step leads from a level to itself."""
    model = exact_model("gaussian")
    assert model.path is not None
    sigmas = tuple(float(model.path.ratio(t)) for t in model.path.levels(50))
    rows = measured(model, Geometry(sets=(), fields=(Field(sigmas, size=2, map="step", num_inference_steps=50),)))
    assert (rows["psi"].abs() > 1e-3).all()


def test_a_single_value_in_a_place_stands_for_a_list_of_one() -> None:
    probe = parse_probe({"kind": "geometry", "sets": [], "generated": [{"prompts": "class 0", "guidance_scale": 1}]})
    assert probe == Geometry(sets=(), generated=(Generated(("class 0",), guidance_scale=(1.0,)),))


def test_a_set_that_is_not_there_is_told_before_anything_is_measured() -> None:
    with pytest.raises(UserError, match="no images at 'photos'"):
        list(Geometry(sets=("photos",)).plan())
    with pytest.raises(UserError, match="no image below"):
        list(Geometry(sets=(), slices=(Slice((f"{Path(__file__).parent}/golden:9", "world:0", "world:1")),)).plan())


def test_a_plan_of_the_studys_size_is_made_in_a_moment() -> None:
    """20,000 images, a map of 512 x 512 points, and nothing of a model."""
    probe = Geometry(sets=("noise",), count=20_000, slices=(Slice(("world:0", "a dog", "a fox"), size=512),))
    cells = [step.cell for step in plan([probe])]
    points = sum(cell.place.rows for cell in cells if isinstance(cell, Samples) and isinstance(cell.place, Plane))
    assert points == 512**2
    assert sum(isinstance(cell, Anchors) for cell in cells) == 1
    assert sum(isinstance(cell, Samples) and not isinstance(cell.place, Plane | Grid) for cell in cells) == 1250


def test_another_projection_is_another_measurement() -> None:
    cells = [next(iter(Geometry(sets=("world",), projection_seed=seed).plan())) for seed in (0, 1)]
    assert key(cells[0]) != key(cells[1])


def test_two_worlds_share_their_mixture() -> None:
    """The trajectories of the ReLU world and of the four classes are the same, whatever shows them."""
    probe = Geometry(sets=(), generated=(Generated(("class 2",), samples=2, num_inference_steps=4),))
    (cell,) = [step.cell for step in plan([probe])]
    assert isinstance(cell, Samples)
    taken = [cell.place.take(Rig(exact_model(name), {}), exact_model(name)).latents for name in ("gmm", "relu")]
    torch.testing.assert_close(*taken)
    assert len(four_classes().means) == 4
