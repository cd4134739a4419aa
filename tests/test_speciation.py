"""The speciation probe: its plan, its trajectories, and what it concludes where the truth is known."""

import math
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.decoders import LinearCodec, orthonormal
from diffprobe.adapters.exact import World, as_model, exact_model, exact_world
from diffprobe.adapters.mixtures import isotropic
from diffprobe.errors import UserError
from diffprobe.measures.speciation import HALF_GAMMA, PEAK_GAMMA, gaussian_entropy
from diffprobe.measures.stats import Estimate
from diffprobe.model import Model, Rig
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.probes.base import key
from diffprobe.probes.speciation import Partition, Push, Speciation, Sweep
from diffprobe.probes.speciation.cells import Paths, Snapshots
from diffprobe.probes.speciation.contests import contests
from diffprobe.probes.speciation.panel import Asked, Panel, follow, states
from diffprobe.probes.speciation.partitions import drawn, expanded, label
from diffprobe.runs.execute import plan
from diffprobe.runs.pairing import paired
from diffprobe.runs.result import Run, start
from diffprobe.runs.study import parse_probe, settings
from tests.small import Pixels

PATHS: dict[str, NoisePath] = {"vp": VariancePreserving.scaled_linear(), "ve": VarianceExploding(), "flow": RectifiedFlow()}
TWO = Speciation(base="class 0", variants=("class 1",), samples=8, num_inference_steps=10, keep_images=0)
FOUR = tuple(f"class {k}" for k in range(4))


def two_classes(path: NoisePath, distance: float = 6.0, variance: float = 0.1) -> Model:
    """Two Gaussians in 16 dimensions, so that Gamma = distance^2 / (sigma^2 + variance)."""
    mixture = isotropic(16, 2, separation=distance, variance=variance)
    return as_model(World(mixture, LinearCodec(0.5 * orthonormal(192, 16), (1, 4, 4), (3, 8, 8))), path, "two")


def measured(folder: Path, probe: Speciation, model: Model | None = None, batch_size: int = 128, **embedders: Any) -> Run:
    return start(Rig(model or exact_model("gmm"), embedders, batch_size), [probe], folder)


def one(run: Run, quantity: str, **facets: object) -> Estimate:
    return next(e for e in run.estimates if e.quantity == quantity and all(e.facets.get(name) == value for name, value in facets.items()))


@pytest.mark.parametrize("path", sorted(PATHS))
def test_two_gaussians_are_decided_where_theory_says(path: str, tmp_path: Path) -> None:
    run = measured(tmp_path, replace(TWO, samples=300, num_inference_steps=64), two_classes(PATHS[path]), 600)
    found = contests(run_probe(run).asked, (), run.tables("speciation"))[0]
    truth = gaussian_entropy(36 / (np.minimum(found.sigma, 1e9) ** 2 + 0.1))
    missed = one(run, "start_bias").value  # Stable Diffusion's noisiest level still holds something of the classes
    assert missed is not None
    assert np.abs(found.posterior.mean(0) - truth).max() < 0.035 + missed  # of the first, the steps make about .01
    assert (missed > 0.02) == (path == "vp")
    half, peak = (math.sqrt(36 / gamma - 0.1) for gamma in (HALF_GAMMA, PEAK_GAMMA))
    commitment = one(run, "commitment")
    assert commitment.lo is not None
    assert commitment.hi is not None
    assert commitment.lo * 0.97 < half < commitment.hi * 1.03
    assert one(run, "peak").value == pytest.approx(peak, rel=0.15)
    lo, hi = one(run, "window_lo").value, one(run, "window_hi").value
    assert lo is not None
    assert hi is not None
    assert lo < peak < hi
    calibration = one(run, "calibration")
    assert calibration.value == pytest.approx(0, abs=0.03)


def run_probe(run: Run) -> Speciation:
    probe = run.probes[0]
    assert isinstance(probe, Speciation)
    return probe


def test_swapping_the_sides_changes_nothing(tmp_path: Path) -> None:
    forward = measured(tmp_path / "a", TWO)
    backward = measured(tmp_path / "b", replace(TWO, base="class 1", variants=("class 0",)))
    for quantity in ("undecided", "commitment", "calibration"):
        a, b = (next(e for e in run.estimates if e.quantity == quantity) for run in (forward, backward))
        assert a.value == pytest.approx(b.value, rel=1e-6, abs=1e-9)


def test_any_partition_is_read_from_the_same_records(tmp_path: Path) -> None:
    """All four classes at once, then pairs and halves of them: no new cell, and the chain rule of entropy holds."""
    every = Partition("each", tuple((name,) for name in FOUR))
    halves = Partition("halves", (FOUR[:2], FOUR[2:]))
    together = Speciation(variants=(), partitions=(every,), samples=32, num_inference_steps=20, keep_images=0)
    more = replace(together, partitions=(every, halves, Partition("first", (FOUR[:1], FOUR[1:]))))
    assert {key(cell) for cell in together.plan()} == {key(cell) for cell in more.plan()}
    run = measured(tmp_path, more)
    found = {c.partition.name: c for c in contests(more.asked, (), run.tables("speciation"))}
    assert found["each"].posterior[:, 0] == pytest.approx(math.log(4))
    assert found["halves"].posterior[:, 0] == pytest.approx(math.log(2))
    within = found["each"].posterior.mean(0) - found["halves"].posterior.mean(0)
    assert (within > -1e-9).all()  # H(class) = H(half) + H(class | half)
    assert within[0] == pytest.approx(math.log(2))


def test_priors_weigh_the_sides(tmp_path: Path) -> None:
    rare = Partition("rare", (("class 0",), ("class 1",)), ((0.1,), (0.9,)))
    probe = Speciation(variants=(), partitions=(rare,), samples=200, num_inference_steps=30, keep_images=0)
    run = measured(tmp_path, probe, two_classes(PATHS["ve"]), 400)
    found = contests(probe.asked, (), run.tables("speciation"))[0]
    assert found.posterior[:, 0] == pytest.approx(rare.entropy)
    truth = gaussian_entropy(36 / (found.sigma**2 + 0.1), prior=0.1)
    assert np.abs(found.posterior.mean(0) - truth).max() < 0.04
    assert abs((found.label - found.posterior).mean()) < 0.02


@dataclass(frozen=True)
class Counting:
    """A denoiser that notes the rows of every call, and how many of its answers are alive."""

    inner: Any
    calls: list[int]
    alive: list[int]
    answers: list[Any]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        self.calls.append(len(x))
        self.alive.append(sum(answer() is not None for answer in self.answers))
        answer: Tensor = self.inner(x, t, cond)
        self.answers.append(weakref.ref(answer.untyped_storage()))
        return answer


def counted(model: Model) -> tuple[Model, Counting]:
    counting = Counting(model.denoiser, [], [], [])
    return replace(model, denoiser=counting), counting


def test_one_batched_evaluation_a_step() -> None:
    model, counting = counted(exact_model("gmm"))
    follow(model, Asked(FOUR), range(5), 12)
    assert counting.calls == [4 * 5] * 12


def test_guidance_costs_no_further_evaluation() -> None:
    model, counting = counted(exact_model("gmm"))
    follow(model, Asked(("class 0", ""), Push(3.0), 1), range(5), 12)
    assert counting.calls == [2 * 5] * 12


def test_memory_does_not_grow_with_the_steps() -> None:
    model, counting = counted(exact_model("gmm"))
    follow(model, Asked(FOUR[:2]), range(3), 60)
    assert max(counting.alive) <= 2  # the answers at the last state and at the one before


def test_a_push_outside_its_interval_is_no_push() -> None:
    model = exact_model("gmm@ve")
    plain = follow(model, Asked(("class 0", "")), range(4), 10)
    outside = follow(model, Asked(("class 0", ""), Push(4.0, 90.0), 1), range(4), 10)
    assert torch.equal(plain.likelihoods, outside.likelihoods)
    with pytest.raises(UserError, match="no guidance"):
        Push(1.0)


def test_guided_likelihoods_are_those_of_the_unguided_model() -> None:
    """The log odds of a guided path still equal those of its end point, which the mixture knows."""
    model = two_classes(PATHS["ve"])
    found = follow(model, Asked(("class 1", "class 0"), Push(3.0), 1), range(200), 200)
    mixture = isotropic(16, 2, separation=6.0, variance=0.1)
    at = int(np.argmin(np.abs(np.array(found.sigma) - 3.0)))
    shorter = model.path.levels(200)[: at + 1] if model.path else ()
    x = states_at(model, shorter)
    truth = mixture.log_likelihoods(x, shorter[-1], PATHS["ve"])
    odds, exact = -found.likelihoods[:, at, 1], truth[:, 1] - truth[:, 0]
    assert float((odds - exact).abs().mean()) < 0.35  # one path; the mean of many is nearer
    assert float((odds - exact).mean()) == pytest.approx(0, abs=0.15)


def states_at(model: Model, times: tuple[float, ...]) -> Tensor:
    """Where the pushed trajectories of the test above are at the last of the times."""
    panel = Panel(model, Asked(("class 1", "class 0"), Push(3.0), 1), 200)
    with torch.no_grad():
        return next(state.x for state in states(model, panel, range(200), 200) if state.t == times[-1])


def test_sides_that_the_model_does_not_tell_apart_are_said(tmp_path: Path) -> None:
    run = measured(tmp_path, replace(TWO, base="anything", variants=("something",)))
    assert one(run, "undecided").value == pytest.approx(math.log(2))
    assert one(run, "commitment").value is None
    assert "half" in str(one(run, "commitment").reason)
    assert any("one and the same to this model" in verdict for verdict in run.findings["speciation"].verdicts)
    assert not [chart for chart in run.findings["speciation"].charts if chart.name in ("entropy", "production")]


def test_predictions_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    model = exact_model("gmm")

    def broken(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        assert model.denoiser is not None
        found = model.denoiser(x, t, cond)
        return torch.where(x.flatten(1).sum(1).reshape(-1, 1, 1, 1) > 4, torch.nan, found) if float(t) > 900 else found

    run = measured(tmp_path, replace(TWO, samples=16), replace(model, denoiser=broken))
    flagged = one(run, "flagged")
    assert flagged.value is not None
    assert 0 < flagged.value < 32
    assert one(run, "undecided").n == len({*range(16)} - set(run.records("speciation").query("flag.notna()")["seed"]))
    assert any("do not count" in verdict for verdict in run.findings["speciation"].verdicts)


def test_a_network_that_knows_nothing_still_gives_numbers(tmp_path: Path) -> None:
    model = replace(exact_model("gmm"), denoiser=lambda x, t, cond=None: torch.full_like(x, torch.nan))
    run = measured(tmp_path, TWO, model)
    assert one(run, "flagged").value == 16
    assert "Nothing" in run.findings["speciation"].verdicts[0]


def test_too_few_steps_are_said_and_enough_are_not(tmp_path: Path) -> None:
    few, many = (
        measured(tmp_path / str(steps), replace(TWO, samples=100, num_inference_steps=steps), two_classes(PATHS["ve"], 6.0, 2.0), 256)
        for steps in (8, 128)
    )
    assert any("steps are too few" in verdict for verdict in few.findings["speciation"].verdicts)
    assert not any("steps are too few" in verdict for verdict in many.findings["speciation"].verdicts)
    wanted = one(few, "steps_needed").value
    assert wanted is not None
    assert 8 < wanted < 128


def test_the_unconditional_model_stands_for_the_complement(tmp_path: Path) -> None:
    """It holds the class, so that no path is more than K times likelier under it, and the entropy ends above 0 (K = 4 classes)."""
    run = measured(tmp_path, Speciation(base="", variants=("class 0",), samples=150, keep_images=0), exact_model("gmm@ve"))
    assert one(run, "undecided").value == pytest.approx(math.log(1 + 1 / 4) / 2 + math.log(5) / 8, abs=0.05)
    assert one(run, "proxy_log_odds").value == pytest.approx(math.log(4), abs=0.3)  # the steps let it go beyond
    assert not any("does not hold" in verdict for verdict in run.findings["speciation"].verdicts)


def test_a_part_with_its_prior_is_set_against_the_rest_of_the_whole(tmp_path: Path) -> None:
    """As against the other three classes; what is left comes of the paths' noise, where the plateau of the plain form is .30 nats."""
    quarter = 0.25
    part = Partition("part", (("class 0",), ("",)), ((quarter,), (1 - quarter,)))
    rest = Partition("rest", (FOUR[:1], FOUR[1:]), ((quarter,), (quarter,) * 3))
    probe = Speciation(variants=(), partitions=(part, rest), samples=250, num_inference_steps=64, keep_images=0)
    run = measured(tmp_path, probe, exact_model("gmm@ve"), 1000)
    found = {c.partition.name: c for c in contests(probe.asked, (), run.tables("speciation"))}
    assert found["part"].posterior[:, 0] == pytest.approx(part.entropy)
    assert found["part"].posterior[:, -1].mean() < 0.12
    assert np.abs(found["part"].posterior.mean(0) - found["rest"].posterior.mean(0)).max() < 0.12


def test_the_law_of_steps_is_not_asked_where_one_side_holds_the_other(tmp_path: Path) -> None:
    run = measured(tmp_path, Speciation(base="", variants=("class 0",), samples=32, num_inference_steps=32, keep_images=0))
    assert not [e for e in run.estimates if e.quantity == "step_bias"]
    assert one(run, "steps_needed").value is not None


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_steps_that_cannot_tell_where_are_said(steps: int, tmp_path: Path) -> None:
    run = measured(tmp_path, replace(TWO, variants=("class 2",), samples=40, num_inference_steps=steps), exact_model("gmm@ve"))
    assert any("steps are too few" in verdict for verdict in run.findings["speciation"].verdicts)
    commitment = one(run, "commitment")
    assert commitment.value is None or (commitment.lo or 0) * 1.3 < (commitment.hi or 0)


def test_a_flow_that_decides_in_its_first_step_is_not_undecided(tmp_path: Path) -> None:
    far = Speciation(base="class 0", variants=("class 1",), samples=16, num_inference_steps=3, keep_images=0)
    run = measured(tmp_path, far, two_classes(PATHS["flow"], 40.0))
    told = run.findings["speciation"].verdicts
    assert any("within the first step" in verdict for verdict in told)
    assert not any("Never half decided" in verdict for verdict in told)
    assert "first step" in str(one(run, "commitment").reason)
    assert one(run, "peak").value is None


def test_networks_that_differ_are_no_part_of_each_other(tmp_path: Path) -> None:
    model = exact_model("gmm@ve")

    def biased(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        assert model.denoiser is not None
        found = model.denoiser(x, t, cond)
        everything = torch.as_tensor(cond).all(-1).reshape(-1, 1, 1, 1)
        return torch.where(everything, found + 0.02, found)

    run = measured(tmp_path, Speciation(base="", variants=("class 0",), samples=16, keep_images=0), replace(model, denoiser=biased))
    assert any("does not hold" in verdict for verdict in run.findings["speciation"].verdicts)


@pytest.mark.parametrize("world", ["gmm@ve", "gmm@flow"])
def test_limits_of_production_stay_within_what_there_is_to_lose(world: str, tmp_path: Path) -> None:
    """Where a few seeds alone are open, limits of their mean would reach a hundred times the peak."""
    probe = replace(TWO, samples=16, num_inference_steps=50)
    run = measured(tmp_path, probe, exact_model(world))
    found = contests(probe.asked, (), run.tables("speciation"))[0].profile
    lo, here, hi = (found.production_lo, found.production, found.production_hi)
    assert (hi.per_step <= math.log(2) + 1e-9).all()
    assert (lo.per_step >= 0).all()
    rates = np.isfinite(here.rate)
    assert np.nanmax(hi.rate[rates]) < 4 * np.nanmax(here.rate[rates])
    assert (lo.per_step <= here.per_step + 1e-9).mean() > 0.9


def test_a_wider_gap_is_decided_first(tmp_path: Path) -> None:
    """Super-classes before classes, paired by seed, with the order established."""
    groups = Partition("groups", (("group 0",), ("group 1",)))
    inside = Partition("inside", (("class 0",), ("class 1",)))
    probe = Speciation(variants=(), partitions=(inside, groups), samples=64, num_inference_steps=40, keep_images=0)
    run = measured(tmp_path, probe, exact_model("hierarchical"))
    ratio = one(run, "commitment_ratio")
    assert (ratio.facets["partition"], ratio.facets["other"]) == ("groups", "inside")
    assert ratio.lo is not None
    assert ratio.lo > 1
    assert float(ratio.facets["p_adjusted"]) < 0.01
    assert "established for 1 of 1" in " ".join(run.findings["speciation"].verdicts)


def test_pictures_of_the_way(tmp_path: Path) -> None:
    run = measured(tmp_path, replace(TWO, keep_images=2, snapshots=5))
    gallery = run.findings["speciation"].gallery
    assert len(gallery) == 4  # two conditions, two seeds
    assert all(len(exhibit.pictures) == 5 for exhibit in gallery)
    assert all((tmp_path / "media" / picture).is_file() for exhibit in gallery for picture in exhibit.pictures.values())


def test_pictures_at_chosen_levels(tmp_path: Path) -> None:
    probe = replace(TWO, keep_images=1, snapshot_sigmas=(5.0, 1.0, 0.1), num_inference_steps=50)
    run = measured(tmp_path, probe, exact_model("gmm@ve"))
    frame = run.records("speciation", "Snapshots")
    assert list(frame[frame["prompt"] == "class 1"]["sigma"]) == pytest.approx([5.0, 1.0, 0.1], rel=0.15)


def test_runs_with_other_variants_share_what_they_both_ask(tmp_path: Path) -> None:
    """The base of each is drawn under other conditions; its rows pair all the same."""
    ours = measured(tmp_path / "a", replace(TWO, variants=("class 1", "class 2")))
    theirs = measured(tmp_path / "b", replace(TWO, variants=("class 3", "class 2")))
    pairing = paired(ours, theirs, "speciation")
    assert {pair.base_comparable.facets["partition"] for pair in pairing.pairs} == {"2"}
    assert pairing.common == 16  # class 2 and the base, eight seeds each
    differences = [np.abs(pair.base - pair.other).max() for pair in pairing.pairs]
    assert max(differences) < 1e-3


@dataclass(frozen=True)
class Reader:
    """Reads classes: an image's likeness to the words is that of its brightness pattern to the class's own mean image."""

    model: Model
    fingerprint: str = "reader"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def embed_text(self, texts: Any) -> Tensor:
        assert self.model.codec is not None
        mixture = isotropic(16, 2, separation=6.0, variance=0.1)
        means = [mixture.means[int(text[-1])] for text in texts]
        return self.model.codec.decode(torch.stack(means).reshape(-1, 1, 4, 4).float()).flatten(1)


def test_images_that_follow_their_words_are_told_apart(tmp_path: Path) -> None:
    model = two_classes(PATHS["ve"])
    run = measured(tmp_path / "a", TWO, model, reader=Reader(model))
    assert one(run, "adherence:reader").value == 1
    deaf = replace(model, condition=lambda prompts: torch.ones(len(prompts), 2, dtype=torch.bool))
    run = measured(tmp_path / "b", TWO, deaf, reader=Reader(model))
    assert one(run, "adherence:reader").value == 0.5
    assert any("hardly follow" in verdict for verdict in run.findings["speciation"].verdicts)


def test_a_shared_base_is_drawn_once_under_all_conditions() -> None:
    probe = Speciation(base="", variants=("a", "b", "c"), samples=4, keep_images=1)
    paths = [cell for cell in probe.plan() if isinstance(cell, Paths)]
    assert [cell.conditions for cell in paths] == [("a", ""), ("", "a", "b", "c"), ("b", ""), ("c", "")]
    assert sum(isinstance(cell, Snapshots) for cell in probe.plan()) == 4


def test_many_variants_are_drawn_in_groups() -> None:
    probe = Speciation(base="", variants=("class {0..39}",), samples=4, keep_images=0)
    groups = [conditions for conditions in drawn(probe.asked, None, "", 16) if conditions[0] == ""]
    assert [len(group) for group in groups] == [16, 16, 11]
    assert {name for group in groups for name in group} == {"", *(f"class {k}" for k in range(40))}


def test_a_push_draws_the_first_side_again_or_all() -> None:
    probe = replace(TWO, pushes=(Push(2.0), Push(3.0, 0.5, 5.0, "all")), negative_prompt="")
    pushed = [(cell.push.scale, cell.conditions) for cell in probe.plan() if isinstance(cell, Paths) and cell.push is not None]
    assert pushed == [(2.0, ("class 1", "", "class 0")), (3.0, ("class 1", "", "class 0")), (3.0, ("class 0", "", "class 1"))]


def test_guidance_is_reported_beside_the_plain_curve(tmp_path: Path) -> None:
    probe = replace(TWO, samples=48, num_inference_steps=30, pushes=(Push(4.0),))
    run = measured(tmp_path, probe)
    shift = one(run, "commitment_shift")
    assert shift.value is not None
    assert shift.value > 1  # guided towards its class, a sample is sure of it earlier
    assert {"guided", "redistribution"} <= {chart.name for chart in run.findings["speciation"].charts}
    assert any(verdict.startswith("Guidance (scale 4)") for verdict in run.findings["speciation"].verdicts)


def test_a_sweep_marks_its_best_ranges_on_the_profile(tmp_path: Path) -> None:
    pictures = tmp_path / "reference"
    pictures.mkdir()
    world = exact_world("gmm")  # the middle of every class, to which guidance moves
    middles = world.mixture.means[torch.arange(40) % 4] + 0.25 * rng.normal((16,), "test.reference", range(40)).double()
    for index, image in enumerate(world.codec.decode(middles.reshape(40, 1, 4, 4).float()).clamp(0, 1)):
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(pictures / f"{index:02}.png")
    sweep = Sweep(FOUR, images=40, reference=str(pictures), scales=(3.0,), intervals=((0.5, 4.0),), num_inference_steps=8)
    probe = replace(TWO, sweep=sweep)
    assert "embedder" in probe.needs
    with pytest.raises(UserError, match="instrument"):
        measured(tmp_path / "blind", probe)
    run = measured(tmp_path / "run", probe, pixels=Pixels())
    assert {"best_precision:pixels", "best_recall:pixels", "evaluations"} <= {e.quantity for e in run.estimates}
    profile = next(chart for chart in run.findings["speciation"].charts if chart.name == "production")
    best = [e for e in run.estimates if e.quantity.startswith("best_") and e.facets["scale"] != 1]
    assert len(profile.curves) == 2 * len(best) > 0
    assert (run.report(tmp_path / "page.html")).stat().st_size > 100_000
    assert parse_probe(settings(probe)) == probe


def test_labels_say_what_a_variant_adds() -> None:
    assert label("a photo of a wooden chair", "a photo of a wooden chair with blue walls") == "with blue walls"
    assert label("a large red star", "a large blue star") == "blue"
    assert label("a red star", "a black and white picture of a star") == "black and white picture"
    assert label("", "class 3") == "class 3"
    assert label("a b", "b a") == "b a"
    assert expanded(("class {8..11}", "x")) == ("class 8", "class 9", "class 10", "class 11", "x")


def test_a_study_file_says_the_same(tmp_path: Path) -> None:
    item = {
        "kind": "speciation",
        "base": "class 0",
        "variants": "class 1",
        "partitions": [{"name": "halves", "sides": [["class 0", "class 1"], ["class 2"]], "priors": [[0.25, 0.25], [0.5]]}],
        "pushes": [{"scale": 2.0, "lo": 0.3, "hi": 4.0}],
    }
    probe = parse_probe(item)
    assert isinstance(probe, Speciation)
    assert probe.partitions[0].weights == ((0.25, 0.25), (0.5,))
    assert parse_probe(settings(probe)) == probe
    with pytest.raises(UserError, match="lower"):
        parse_probe({**item, "pushes": [{"scale": 2.0, "lower": 0.3}]})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eta": 0.0}, "deterministic"),
        ({"samples": 1}, "two trajectories"),
        ({"seeds": (1, 1), "samples": 2}, "different seeds"),
        ({"num_inference_steps": 1}, "at least 2"),
        ({"variants": ("class 0",)}, "two equal prompts"),
        ({"variants": ()}, "needs 'variants'"),
        ({"level": 1.0}, "level"),
        ({"variants": ("class 1", "class 1")}, "twice"),
        ({"variants": ("class {3..1}",)}, "holds no number"),
        ({"pushes": (Push(2), Push(2.0))}, "a push comes twice"),
        ({"snapshot_sigmas": (0.0,)}, "snapshot_sigmas above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        replace(TWO, **changes)


def test_partitions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="must not overlap"):
        Partition("x", (("a", "b"), ("b",)))
    with pytest.raises(UserError, match="two sides"):
        Partition("x", (("a",),))
    with pytest.raises(UserError, match="sum to 1"):
        Partition("x", (("a",), ("b",)), ((0.5,), (0.6,)))
    with pytest.raises(UserError, match="shape of its sides"):
        Partition("x", (("a",), ("b",)), ((0.5, 0.5),))
    with pytest.raises(UserError, match="holds nothing"):
        Push(2.0, 3.0, 1.0)
    with pytest.raises(UserError, match="finite"):
        Push(math.nan)


def test_what_a_model_cannot_be_asked_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 0 to class 3"):
        measured(tmp_path, replace(TWO, variants=("class 7",)))
    with pytest.raises(UserError, match="class 0 to class 3"):
        measured(tmp_path, replace(TWO, pushes=(Push(2.0),), negative_prompt="class 9"))
    with pytest.raises(UserError, match="of which shape"):
        measured(tmp_path, TWO, replace(exact_model("gmm"), shape=None))
    with pytest.raises(UserError, match="needs denoiser"):
        measured(tmp_path, TWO, replace(exact_model("gmm"), denoiser=None))


def test_a_model_without_a_codec_is_asked_without_pictures(tmp_path: Path) -> None:
    model = replace(exact_model("gmm"), codec=None)
    run = measured(tmp_path, TWO.suited(model), model, pixels=Pixels())
    assert not run.findings["speciation"].gallery


def test_the_plan_needs_the_same_cells_for_every_summary() -> None:
    """What only shapes the summary never invalidates finished work."""
    assert [step.key for step in plan([TWO])] == [step.key for step in plan([replace(TWO, level=0.9)])]
