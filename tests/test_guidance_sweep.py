"""The guidance sweep where the truth is known: four exact classes, an instrument that knows their means, and settings that are equal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffprobe.adapters.exact import exact_model, exact_world
from diffprobe.errors import UserError
from diffprobe.measures.sets import frechet_distance
from diffprobe.measures.stats import Estimate
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Cell, Records, canonical, key
from diffprobe.probes.speciation.sweep import Guided, Reference, Setting, Sweep
from diffprobe.probes.speciation.swept import Swept, marks, swept
from diffprobe.report import charts
from diffprobe.runs.execute import Step, execute
from diffprobe.runs.store import Store
from tests.small import Pixels

Array = npt.NDArray[np.float64]
WORLD = exact_world("gmm")
CLASSES = tuple(f"class {k}" for k in range(4))
EVERYWHERE, SOMEWHERE = (0.01, 1000.0), (0.5, 4.0)


@dataclass(frozen=True)
class Latents:
    """The latent behind each image, and texts as the mean of their class: cosines are then known."""

    fingerprint: str = "latents/1"

    def __call__(self, images: Tensor) -> Tensor:
        return WORLD.codec.encode(images).flatten(1).float()

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([WORLD.mixture.means[int(text.split()[-1])] for text in texts]).float()


def rig(model: Model | None = None, batch_size: int = 256, **embedders: Any) -> Rig:
    return Rig(model or exact_model("gmm"), embedders or {"latents": Latents()}, batch_size)


def truth(seeds: Sequence[int]) -> Tensor:
    return WORLD.codec.decode(WORLD.mixture.sample(seeds)[0].reshape(-1, *WORLD.codec.latent).float()).clamp(0, 1)


def matrix(table: pa.Table, embedder: str = "latents") -> Array:
    return np.array(table[f"feature:{embedder}"].to_pylist())


def guided(setting: Setting, count: int = 12, steps: int = 20, **changes: Any) -> Guided:
    prompts = tuple((CLASSES[i % 4], CLASSES[i % 4]) for i in range(count))
    return replace(Guided(prompts, tuple(range(count)), setting, steps, "", CLASSES, 8), **changes)


def measured(cells: Sequence[Cell], worker: Rig, folder: Path) -> Records:
    steps, store = [Step("speciation", cell, key(cell)) for cell in cells], Store(folder)
    if not folder.exists():
        with store.writing():
            store.write_json(
                "run.json", dict.fromkeys(("model", "embedders", "probes", "versions", "machine", "created"), "") | {"schema": 1}
            )
    with store.writing():
        execute(steps, store, worker, lambda state: None)
    assert not store.failures(), next(iter(store.failures().values()))["error"]
    return store.records("speciation", [step.key for step in steps])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("truth")
    for seed, image in enumerate(truth(range(1000, 1300))):
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{seed}.png")
    return str(folder)


def sweep(reference: str, **changes: Any) -> Sweep:
    settings = {"prompts": CLASSES, "images": 240, "reference": reference, "scales": (1.5, 4.0), "intervals": (SOMEWHERE, EVERYWHERE)}
    return Sweep(**{**settings, **changes})


@pytest.fixture(scope="module")
def asked(reference: str) -> Sweep:
    return sweep(reference)


@pytest.fixture(scope="module")
def records(asked: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Records:
    return measured(list(asked.cells()), rig(), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def found(asked: Sweep, records: Records) -> Swept:
    return swept(asked, records, 0.95)


def these(found: Swept, quantity: str, **facets: object) -> list[Estimate]:
    return [e for e in found.estimates if e.quantity == quantity and all(e.facets.get(name) == value for name, value in facets.items())]


def one(found: Swept, quantity: str, **facets: object) -> Estimate:
    (only,) = these(found, quantity, **facets)
    return only


def ends(e: Estimate) -> tuple[float, float, float]:
    assert e.value is not None
    assert e.lo is not None
    assert e.hi is not None
    return e.value, e.lo, e.hi


def test_unguided_images_approach_the_truth_with_steps_and_guidance_leaves_it() -> None:
    """As near as two samples of the truth are to each other; Frechet distances of latents and of raw pixels."""
    embedders: dict[str, Any] = {"latents": Latents(), "pixels": Pixels()}
    prompts = tuple((text, text) for _, text in Sweep(CLASSES, images=300, reference="elsewhere").asked())
    truths = [{name: embedder(truth(range(start, start + 300))) for name, embedder in embedders.items()} for start in (0, 300)]

    def distance(scale: float, steps: int) -> Array:
        cell = guided(Setting(scale), 300, steps, prompts=prompts, keep=0)
        table = cell.measure(rig(**embedders))
        return np.array([frechet_distance(matrix(table, name), truths[0][name]) for name in embedders])

    luck = np.array([frechet_distance(truths[1][name], truths[0][name]) for name in embedders])
    coarse, fine, pushed = distance(1, 5), distance(1, 50), distance(4, 50)
    assert (coarse > 2 * luck).all()
    assert (fine < 1.25 * luck).all()
    assert (pushed > 2 * fine).all()


def test_the_pushed_class_means_are_overshot_and_told(found: Swept) -> None:
    """Guidance at scale 4 on exact classes: farther from the truth, established; the best distance is without or nearly so."""
    plain, strong = (ends(one(found, "frechet:latents", guidance=name)) for name in ("unguided", "scale 4"))
    assert plain[1] < 0 < plain[2]
    assert strong[0] > plain[0]
    told = one(found, "frechet_difference:latents", guidance="scale 4", against="unguided")
    assert ends(told)[0] == pytest.approx(strong[0] - plain[0])
    assert ends(told)[1] > 0
    assert float(told.facets["p_adjusted"]) < 1e-3
    assert one(found, "best_frechet:latents").facets["scale"] in (1.0, 1.5)


def test_an_interval_that_holds_no_level_is_no_guidance_bit_for_bit() -> None:
    plain, pushed, empty = (guided(setting).measure(rig()) for setting in (Setting(1.0), Setting(5.0), Setting(5.0, 1e-6, 2e-6)))
    assert np.array_equal(matrix(empty), matrix(plain))
    assert not np.array_equal(matrix(pushed), matrix(plain))
    assert empty["evaluations"].to_pylist() == plain["evaluations"].to_pylist() == [20] * 12
    assert empty["picture"].to_pylist() == plain["picture"].to_pylist()


@pytest.mark.parametrize("model", ["gmm@vp", "gmm@ve", "gmm@flow"])
def test_evaluations_are_what_the_network_was_asked(model: str) -> None:
    """One a level, two inside the interval; full guidance at the cost of an interval takes one more at most."""
    asked = exact_model(model)
    assert asked.path is not None
    inside = sum(0.5 < float(asked.path.ratio(t)) <= 4 for t in asked.path.levels(20))
    assert 0 < inside < 20

    def spent(setting: Setting) -> tuple[int, int]:
        table = guided(setting, 2).measure(rig(asked))
        return table["evaluations"][0].as_py(), table["num_inference_steps"][0].as_py()

    assert spent(Setting(1.0)) == (20, 20)
    assert spent(Setting(3.0)) == (40, 20)
    assert spent(Setting(3.0, *SOMEWHERE)) == (20 + inside, 20)
    cost, steps = spent(Setting(3.0, matched=SOMEWHERE))
    assert cost == 2 * steps
    assert 0 <= cost - (20 + inside) <= 1
    assert spent(Setting(3.0, 0.5, None))[0] == 20 + sum(float(asked.path.ratio(t)) > 0.5 for t in asked.path.levels(20))


def test_equal_settings_are_recognised_as_equal(found: Swept) -> None:
    """An interval that holds every level is the full range: no difference by any objective, with p 1, and said in words."""
    tests = [e for e in found.estimates if e.facets.get("lo") == EVERYWHERE[0] and e.facets.get("against") == "full range, same scale"]
    assert {e.quantity.partition("_")[0] for e in tests} == {"frechet", "precision", "recall", "margin"}
    assert all((e.value, e.lo, e.hi, e.facets["p"]) == (0, 0, 0, 1) for e in tests)
    at_cost = one(found, "evaluations", guidance="scale 4 at the cost of sigma 0.01 to 1000")
    assert (at_cost.value, at_cost.facets["steps"]) == (40, 20)
    assert any("full guidance is as good" in line for line in found.sentences)


def test_margins_are_those_of_the_exact_classes(records: Records) -> None:
    """Likeness by hand: the cosine with the own class's mean, less the largest with another's; paired by seed over settings."""
    frame = records["Guided"].to_pandas()
    seen = np.stack(frame["feature:latents"].to_list()).astype(np.float64)
    means = WORLD.mixture.means.numpy()
    cosines = (seen @ means.T) / np.linalg.norm(seen, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    own = frame["prompt"].str[-1].astype(int).to_numpy()
    rows = np.arange(len(own))
    rivals = cosines.copy()
    rivals[rows, own] = -np.inf
    assert np.allclose(frame["likeness:latents"], cosines[rows, own], atol=1e-6)
    assert np.allclose(frame["margin:latents"], cosines[rows, own] - rivals.max(1), atol=1e-6)
    assert frame.groupby("seed")["prompt"].nunique().eq(1).all()
    assert frame["prompt"].nunique() == 4


def test_a_margin_is_over_sixty_four_others_and_none_where_there_is_no_other(reference: str) -> None:
    class Words:
        """Every text is a direction of its own; images lie along the first."""

        fingerprint = "words/1"
        seen: Sequence[str] = ()

        def __call__(self, images: Tensor) -> Tensor:
            return torch.eye(99)[:1].repeat(len(images), 1) + 0.01 * images.flatten(1)[:, :99]

        def embed_text(self, texts: Sequence[str]) -> Tensor:
            self.seen = texts
            return torch.eye(99)[: len(texts)]

    words = Words()
    cells = [cell for cell in Sweep(tuple(f"prompt {i}" for i in range(90)), 90, reference).cells() if isinstance(cell, Guided)]
    others = cells[0].others
    assert len(set(others)) == 65
    assert {cell.others for cell in cells} == {others}
    table = replace(cells[0], prompts=(("a", others[3]), ("b", "elsewhere")), seeds=(0, 1)).measure(rig(words=words))
    assert list(words.seen) == [others[3], "elsewhere", *(other for other in others if other != others[3])]
    assert table["margin:words"].null_count == 0
    lonely = guided(Setting(1.0), 4, prompts=((CLASSES[0],) * 2,) * 4, others=CLASSES[:1]).measure(rig())
    assert lonely["margin:latents"].null_count == 4
    assert lonely["likeness:latents"].null_count == 0


def test_the_best_is_named_marked_and_tested_against_every_scale(asked: Sweep, found: Swept) -> None:
    for objective, best in (("frechet", min), ("precision", max), ("recall", max), ("margin", max)):
        values = [e.value for e in these(found, f"{objective}:latents") if "at_cost_of" not in e.facets]
        assert one(found, f"best_{objective}:latents").value == best(value for value in values if value is not None)
    rows = {row["objective"]: row for row in marks(found)}
    assert set(rows) == {"FD-latents", "precision", "recall", "margin"}
    assert rows["margin"]["scale"] == 4
    assert (rows["recall"]["lo"], rows["recall"]["hi"], rows["recall"]["guidance"]) == (None, None, "unguided")
    whole = one(found, "margin_difference:latents", guidance="scale 1.5 on sigma 0.5 to 4", against="full range, every scale")
    assert (whole.facets["other"], whole.facets["p"]) == ("scale 4", 1)  # better than one scale is not better than each
    told = found.sentences[0]
    assert told.startswith("Of 7 settings with and without guidance, 240 images each, latents finds best by FD-latents ")
    assert {e.facets["hi"] for e in these(found, "frechet:latents")} == {"open", 4.0, 1000.0}
    assert asked.k == 3


def test_the_report_can_draw_it_all(found: Swept) -> None:
    domains = charts.domains(found.charts)
    for chart in found.charts:
        assert chart.rows
        assert charts.spec(chart, domains)
    assert [chart.name for chart in found.charts][:4] == ["sweep_frechet", "sweep_precision", "sweep_recall", "sweep_margin"]
    lines = [row for row in found.charts[0].rows if row["span"] == "sigma 0.5 to 4"]
    assert [row["scale"] for row in lines] == [1, 1.5, 4]  # a line begins without guidance
    assert all(row["lo"] < row["frechet"] < row["hi"] for row in lines)
    assert len(found.exhibits) == 4
    assert next(iter(found.exhibits[0].pictures)) == "unguided"
    assert found.cards[0].title == "lowest FD-latents of the guidance sweep"


def test_images_are_those_of_their_seed_in_any_batch_and_order(reference: str, tmp_path: Path) -> None:
    cells = list(sweep(reference, images=18, scales=(3.0,), intervals=(SOMEWHERE,)).cells())
    first, second = (measured(order, rig(batch_size=size), tmp_path / str(size)) for size, order in ((5, cells), (64, cells[::-1])))
    for name in ("Guided", "Reference"):
        a, b = (found[name].to_pandas().sort_values(["cell", "row"]) for found in (first, second))
        assert np.allclose(np.stack(a["feature:latents"]), np.stack(b["feature:latents"]), atol=1e-5)
        assert list(a["cell"]) == list(b["cell"])
    again = cells[3].measure(rig(batch_size=5))
    assert again.equals(cells[3].measure(rig(batch_size=5)))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert again.equals(cells[3].measure(rig(batch_size=5)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sweep_resumes_and_half_of_it_is_summed_up(reference: str, tmp_path: Path) -> None:
    """What is there is compared on the images that all settings share; more images or settings recompute nothing."""
    asked = sweep(reference, images=120, scales=(3.0,), intervals=())
    cells = list(asked.cells())
    half = measured(cells[:4], rig(), tmp_path / "run")  # the reference, and one chunk of both settings
    told = swept(asked, half, 0.95)
    assert {e.n for e in these(told, "frechet:latents")} == {100}
    whole = measured(cells, rig(), tmp_path / "run")
    assert {e.n for e in these(swept(asked, whole, 0.95), "frechet:latents")} == {120}
    assert {key(cell) for cell in cells[:4]} <= {key(cell) for cell in replace(asked, images=220, scales=(3.0, 5.0)).cells()}
    assert swept(asked, {}, 0.95) == Swept()
    alone = swept(asked, {"Guided": whole["Guided"]}, 0.95)
    assert {e.quantity for e in alone.estimates if e.quantity.startswith("best")} == {"best_margin:latents"}
    assert "The guidance sweep has no reference images yet, so distances to them are missing." in alone.sentences


def test_too_few_images_for_an_interval_keep_their_distance_and_say_so(reference: str, tmp_path: Path) -> None:
    asked = sweep(reference, images=12, scales=(3.0,), intervals=(SOMEWHERE,))
    told = swept(asked, measured(list(asked.cells()), rig(latents=Latents(), pixels=Pixels()), tmp_path / "run"), 0.95)
    for name in ("latents", "pixels"):
        raw = these(told, f"frechet:{name}", guidance="scale 3")[0]
        assert raw.value is not None
        assert raw.lo is None
        assert raw.facets["extrapolated"] is False
        assert "p" not in these(told, f"frechet_difference:{name}")[0].facets
    assert any("FD-pixels is that of the images at hand, without interval or test: 12 rows are too few" in line for line in told.sentences)
    assert any("untested by FD-latents (scale 3 on sigma 0.5 to 4: " in line for line in told.sentences)
    assert not any("nan" in line for line in told.sentences)
    assert not these(told, "margin:pixels")  # it does not read


def test_what_is_no_image_is_left_out_of_every_setting_and_counted(reference: str, tmp_path: Path) -> None:
    """One image is lost under strong guidance; a setting that loses most of its images is left out itself."""
    exact = exact_model("gmm")
    assert exact.denoiser is not None
    known = exact.denoiser

    def broken(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return torch.where((x.abs().flatten(1).amax(1) > 3.2)[:, None, None, None], torch.nan, known(x, t, cond))

    model = replace(exact, denoiser=broken)
    asked = sweep(reference, images=40, scales=(3.0,), intervals=())
    records = measured(list(asked.cells()), rig(model), tmp_path / "run")
    lost = records["Guided"].to_pandas().dropna(subset=["flag"])
    assert 0 < lost["seed"].nunique() < 20
    told = swept(asked, records, 0.95)
    assert one(told, "sweep_flagged", flag="not finite").value == len(lost)
    assert {e.n for e in these(told, "margin:latents")} == {40 - lost["seed"].nunique()}
    assert f"{len(lost)} of 80 images of the guidance sweep do not count: not finite." in told.sentences

    def lethal(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return known(x, t, cond) * (torch.nan if bool(cond.all()) else 1)

    model = replace(exact, denoiser=lethal)
    told = swept(asked, measured(list(asked.cells()), rig(model), tmp_path / "lethal"), 0.95)
    assert one(told, "evaluations", guidance="scale 3").reason == "0 of its images count, 40 of another setting's"
    assert {e.facets["guidance"] for e in these(told, "margin:latents")} == {"unguided"}
    assert any(line.startswith("The setting “scale 3” of the guidance sweep is left out") for line in told.sentences)


def test_scenes_are_asked_by_captions_and_are_the_reference(tmp_path: Path) -> None:
    asked = Sweep(images=8, reference_images=8, scales=(3.0,), num_inference_steps=4)
    cells = list(asked.cells())
    assert [type(cell) for cell in cells] == [Reference, Guided, Guided]
    texts = [text for _, text in asked.asked()]
    assert len(set(texts)) == 8
    assert all(text.startswith(("a large", "a small", "a black and white picture of a")) for text in texts)
    told = measured(cells, rig(pixels=Pixels()), tmp_path / "run")
    assert matrix(told["Reference"], "pixels").shape == (8, 48)
    assert told["Reference"]["image"][3].as_py() == "scene 2026/3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": ()}, "needs 'scales'"),
        ({"scales": (2.0, float("nan"))}, "finite numbers"),
        ({"scales": (1.0, 2.0)}, "scale 1 is no guidance, which the sweep measures anyway"),
        ({"scales": (2, 2.0)}, "'scales' names one twice"),
        ({"intervals": ((4.0, 0.5),)}, "nothing lies between 4 and 0.5"),
        ({"intervals": ((0.0, None),)}, "the full range of sigma is always among the settings"),
        ({"intervals": ((0.5, 4), (0.5, 4.0))}, "'intervals' names one twice"),
        ({"images": 5}, "more than 5 of 'images'"),
        ({"reference_images": 3}, "more than 5 of 'reference_images'"),
        ({"k": 0}, "1 neighbour or more"),
        ({"num_inference_steps": 1}, "at least 2"),
        ({"prompts": ()}, "needs 'prompts'"),
        ({"prompts": ("a dog",), "reference": "scenes"}, "set the sweep's 'reference' to a folder"),
    ],
)
def test_settings_that_make_no_sweep_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Sweep(**{"reference": "elsewhere", **changes})
    assert "\n" not in str(error.value)


def test_what_a_sweep_needs_is_told_before_anything_is_measured(reference: str, tmp_path: Path) -> None:
    model, asked = exact_model("gmm"), sweep(reference, intervals=())
    asked.check(model)
    with pytest.raises(UserError, match="needs codec and shape; 'exact:gmm' has none: leave 'sweep' out"):
        asked.check(replace(model, codec=None, shape=None))
    with pytest.raises(UserError, match=r"no level of 20 steps on exact:gmm lies in sigma 1e-06 to 2e-06: widen"):
        replace(asked, intervals=((1e-6, 2e-6),)).check(model)
    with pytest.raises(UserError, match="class 0 to class 3"):
        replace(asked, prompts=("class 1", "class 9")).check(model)
    with pytest.raises(UserError, match="cannot take 2000 steps"):
        replace(asked, num_inference_steps=2000).check(model)
    with pytest.raises(UserError, match="no reference images at"):
        list(replace(asked, reference="elsewhere").cells())
    with pytest.raises(UserError, match="needs an instrument"):
        guided(Setting(1.0)).measure(Rig(model, {}))
    (tmp_path / "few").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "one.png")
    with pytest.raises(UserError, match="has 1 images, too few to be a reference"):
        list(replace(asked, reference=str(tmp_path / "few")).cells())


def test_a_study_reads_it_and_refuses_mistyped_keys() -> None:
    read = TypeAdapter(Sweep).validate_python
    found = read({"intervals": [[0.5, 4], [1, None], [2, float("inf")]], "scales": [2, 3]})
    assert found.intervals == ((0.5, 4.0), (1.0, None), (2.0, None))
    assert found == Sweep(scales=(2.0, 3.0), intervals=((0.5, 4.0), (1.0, None), (2.0, None)))
    for wrong in ({"scale": [2]}, {"intervals": [0.5, 4]}, {"images": "many"}):
        with pytest.raises(ValidationError):
            read(wrong)
    for cell in replace(found, images=6, reference_images=6).cells():
        assert "Infinity" not in canonical(cell)
        assert cell.cost().samples == 6
