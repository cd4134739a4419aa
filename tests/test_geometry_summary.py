"""What the geometry probe concludes, from records that are made up: whose units are known, and whose truth is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffprobe.adapters.exact import exact_model
from diffprobe.measures.stats import Interval, auroc
from diffprobe.model import Rig
from diffprobe.probes.geometry import Generated, Geometry
from diffprobe.probes.geometry.compared import comparables
from diffprobe.probes.geometry.separation import p_value, separations
from diffprobe.probes.geometry.summary import mean, summarise
from diffprobe.probes.geometry.tables import groups, samples
from diffprobe.report.charts import domains, spec
from diffprobe.report.charts import rows as drawn
from diffprobe.runs.pairing import paired
from diffprobe.runs.result import start
from tests.geometry_records import PLAIN, WANTED, Row, chart, generated, images, noise, records, said, told


def holds_zero(interval: Interval) -> bool:
    return interval.lo <= 0 <= interval.hi


def test_the_interval_of_five_prompts_covers_their_mean() -> None:
    """A prompt's effect as large as what seeds do: means of prompts cover 95 % in 400 draws; a hundred seeds would cover 40."""
    covered, wrong = 0, 0
    for draw in range(400):
        effects = noise(5, 1, seed=2 * draw)
        psi = effects + noise(5, 20, seed=2 * draw + 1)
        (group,) = groups(samples(records(generated("drawn", psi))), WANTED)
        values = group.values("psi")
        covered += holds_zero(mean(values, 0.95))
        wrong += holds_zero(mean(psi.ravel(), 0.95))
    assert 0.92 < covered / 400 < 0.98
    assert wrong / 400 < 0.6


def test_every_estimate_counts_prompts_as_units() -> None:
    """With seven prompts and four seeds n is 7 wherever an interval is told; the spread is that of samples and has none."""
    psi = noise(7, 4) + 3 * noise(7, 1, seed=1)
    rows = generated("drawn", psi, guidance_scale=1.0)
    higher = generated("drawn", psi + 1 + noise(7, 4, seed=2), scale=4.0)
    for index, row in enumerate(rows + higher):
        row |= {"trace": math.exp(row["psi"]), "score:taste": float(index % 9), "sharpness": 1.0 + index % 5}
    photos = images("photos", noise(20, seed=3).tolist(), error=float)
    found = summarise(WANTED, records(photos, rows, higher))
    at = {"set": "drawn", "guidance_scale": 1.0}
    for quantity in ("psi", "nu", "delta", "rank", "gain", "effective_rank", "correlation:psi:taste"):
        assert told(found, quantity, **at).n == 7
    assert told(found, "psi", **at).value == pytest.approx(psi.mean())
    assert told(found, "gain", **at).value == pytest.approx(math.exp(psi.mean()) / 192)
    spread = told(found, "psi_spread", **at)
    assert (spread.n, spread.lo, spread.hi) == (28, None, None)
    assert spread.value == pytest.approx(psi.std(ddof=1), rel=0.05)
    assert told(found, "psi_spread", set="photos").lo is not None
    assert told(found, "guidance_effect:psi").n == 7
    assert {e.n for e in found.estimates if e.quantity == "auroc:psi"} == {27}
    assert told(found, "auroc:psi", outside="drawn, guidance 1").value == auroc([r["psi"] for r in photos], psi.mean(1)).value
    scores = [e for e in found.estimates if e.quantity == "level_set:taste" and e.facets["guidance_scale"] == 1.0]
    ends = sorted(rows, key=lambda row: row["psi"])
    for one, part in zip((e for e in scores if e.facets["descriptor"] == "psi"), (ends[:10], ends[10:19], ends[19:]), strict=True):
        by_prompt: dict[str, list[float]] = {}
        for row in part:
            by_prompt.setdefault(row["sample"], []).append(row["score:taste"])
        assert one.n == len(by_prompt)
        assert one.value == pytest.approx(np.mean([np.mean(values) for values in by_prompt.values()]))


def test_the_seeds_of_one_prompt_are_units_and_so_are_images_and_noise() -> None:
    found = summarise(
        replace(WANTED, sets=("photos", "prior", "drawn")),
        records(images("photos", [1.0, 2.0]), images("prior", [1.0, 2.0, 3.0], seed=lambda i: i), generated("drawn", noise(1, 9))),
    )
    assert [told(found, "psi", set=name).n for name in ("photos", "prior", "drawn")] == [2, 3, 9]


def test_a_level_set_of_one_prompt_has_one_unit() -> None:
    """Its seeds are none, since the set has other prompts."""
    psi = np.arange(3.0)[:, None] * 100 + noise(3, 8)
    rows = [{**row, "score:taste": 2.0, "feature:eye": [1.0, 0.5]} for row in generated("drawn", psi)]
    found = summarise(WANTED, records(rows))
    taste = [e for e in found.estimates if e.quantity == "level_set:taste" and e.facets["descriptor"] == "psi"]
    assert [(e.n, e.lo) for e in taste] == [(1, None)] * 3
    vendi = [e for e in found.estimates if e.quantity == "level_set:Vendi score (eye)"]
    assert {(round(e.value or 0, 6), e.lo, e.n) for e in vendi} == {(1, None, 8)}


@pytest.mark.parametrize(
    ("more", "sentence", "note"),
    [
        ({}, "the exact log volume of a latent's 16 directions", "exact, 16 directions; higher is more stretched, so less dense"),
        ({"rank": 12.0}, "the log volume of the 12 directions (of 16) that the map does not flatten", "exact, 12 of 16 directions"),
        ({"rank": lambda i: 12.0 + i % 2}, "the log volume of the 12 to 13 directions (of 16)", "exact, 12 to 13 of 16 directions"),
        ({"directions": 8, "rank": 8.0}, "not for a volume", "projected on 8 of 192 directions"),
    ],
)
def test_only_a_whole_volume_is_called_one(more: Row, sentence: str, note: str) -> None:
    found = summarise(WANTED, records(images("photos", noise(9).tolist(), **more)))
    assert said(found, "ψ of photos is", sentence)
    (card,) = found.cards
    assert card.note.startswith(note)
    assert ("so less dense" in card.note) == (not more)


def test_gains_are_corrected_over_the_whole_report() -> None:
    """Holm over twelve gains makes .02 a quarter; what is not shown is called not shown."""
    wanted = replace(WANTED, sets=("photos", "other", "third"), images=("photos", "other", "third"))
    parts = [
        images(n, (noise(40, seed=i) + i).tolist(), error=lambda k: 1.0 + k % 7, sharpness=lambda k: float(k % 9))
        for i, n in enumerate(wanted.sets)
    ]
    for index, row in enumerate(parts[2]):
        row |= {"nu": 8.0 + index % 3, "delta": float(index % 5)}
    found = summarise(wanted, records(*parts))
    gains = [e for e in found.estimates if e.quantity.startswith("auroc_gain:")]
    assert len(gains) == 12
    assert all(float(e.facets["p_adjusted"]) >= float(e.facets["p"]) for e in gains)
    least = min(gains, key=lambda e: float(e.facets["p"]))
    assert least.facets["p_adjusted"] == pytest.approx(min(1, 12 * float(least.facets["p"])))
    assert said(found, "ψ of third against photos", "the reconstruction error and the sharpness told them apart less well")
    assert not said(found, "no better than")
    (_, card) = found.cards
    assert card.estimate.facets["outside"] == "third"
    assert card.note.endswith("the one told best of 2")


def test_a_gain_that_is_not_sure_is_not_called_none() -> None:
    photos = images("photos", noise(12).tolist(), sharpness=lambda i: float(noise(12, seed=4)[i]))
    other = images("other", (noise(12, seed=1) + 3).tolist(), sharpness=lambda i: float(noise(12, seed=5)[i] + 3))
    found = summarise(replace(WANTED, sets=("photos", "other"), images=("photos", "other")), records(photos, other))
    assert said(found, "ψ of other against photos", "it lies above", "against the sharpness there is no sure difference")


def test_sharpness_is_a_rival_among_sets_of_one_kind() -> None:
    """An encoding has its original's, a drawn sample the decoder's."""
    wanted = replace(WANTED, sets=("photos", "other", "drawn"), images=("photos", "other"))
    found = summarise(
        wanted, records(images("photos", noise(9).tolist()), images("other", noise(9, seed=1).tolist()), generated("drawn", noise(9, 2)))
    )
    assert {e.facets["outside"] for e in found.estimates if "sharpness" in e.quantity and "auroc" in e.quantity} == {"other"}
    assert {e.facets["outside"] for e in found.estimates if e.quantity == "auroc:psi"} == {"other", "drawn, guidance 7.5"}
    assert "a prompt's mean where a set is generated" in chart(found, "separation").caption


def test_guidance_scales_are_told_from_the_reference_and_not_from_each_other() -> None:
    parts = [generated("drawn", noise(6, 2, seed=i) + i, scale=float(i)) for i in (1, 5)]
    found = summarise(WANTED, records(images("photos", noise(9).tolist()), *parts))
    own = [(e.facets["inside"], e.facets["outside"]) for e in found.estimates if e.quantity == "auroc:psi"]
    assert own == [("photos", "drawn, guidance 1"), ("photos", "drawn, guidance 5")]
    alone = groups(samples(records(*parts)), replace(WANTED, sets=("drawn",), images=()))
    assert separations(alone, replace(WANTED, sets=("drawn",), images=())) == []


def test_without_a_reference_nothing_is_told_from_another() -> None:
    wanted = replace(WANTED, sets=("photos", "other", "third"), images=("photos", "other", "third"))
    parts = [images("photos", [0.0] * 9, flag="not finite"), images("other", noise(9).tolist()), images("third", noise(9, seed=1).tolist())]
    found = summarise(wanted, records(*parts))
    assert not [e for e in found.estimates if e.quantity.startswith("auroc")]
    assert said(found, "No sample of photos counts, so that no set is told from it.")
    assert said(found, "9 of 27 samples do not count: not finite.")


def test_samples_and_flags_are_counted_also_where_there_are_none() -> None:
    whole = summarise(WANTED, records(images("photos", [0.0] * 4)))
    assert [(told(whole, name).value, told(whole, name).n) for name in ("samples", "flagged")] == [(4, 4), (0, 4)]
    some = summarise(WANTED, records(images("photos", [0.0] * 4, flag=lambda i: "not finite" if i else None)))
    assert told(some, "flagged").value == 3
    assert told(some, "flagged").facets == {"flag": "not finite"}


@pytest.mark.parametrize(
    ("more", "warned"), [({"directions": 8}, True), ({"directions": 0}, False), ({"directions": 8, "psi_error": 0.2}, False)]
)
def test_the_error_of_a_projection_is_told_where_there_is_one(more: Row, warned: bool) -> None:
    """Half the spread of samples, which is one here."""
    found = summarise(WANTED, records(images("photos", noise(60).tolist(), **{"psi_error": 0.8, **more})))
    assert said(found, "comparisons with other projections") == warned


def checkpointed(shift: Callable[[str], float], name: str = "photos") -> list[Row]:
    return [row for step in ("early", "late") for row in images(name, (noise(20) + shift(step)).tolist(), checkpoint=step)]


def test_all_but_training_speaks_of_the_last_checkpoint() -> None:
    wanted = replace(WANTED, sets=("photos", "other"), images=("photos", "other"), checkpoints=("early", "late", "never"))
    parts = [checkpointed(lambda step: 0.0), checkpointed(lambda step: 9.0 if step == "early" else 0.3, "other")]
    found = summarise(wanted, records(*parts, checkpointed(lambda _: 0.0, "drawn")))
    assert {card.estimate.facets["checkpoint"] for card in found.cards} == {"late"}
    assert said(found, "ψ of other against photos at “late”", "not told apart")
    assert not said(found, "at “early”")
    assert said(found, "From “early” to “late” the local scaling ψ of photos")
    assert {row["set"] for row in chart(found, "distribution_psi").rows} == {"photos", "other"}
    assert len(chart(found, "separation").rows) == 5 - 1  # without the error, which is not measured
    assert len([e for e in found.estimates if e.quantity == "auroc:psi"]) == 2


def test_too_few_prompts_to_be_told_apart_are_told() -> None:
    """However many seeds they have."""
    found = summarise(WANTED, records(images("photos", noise(9).tolist()), generated("drawn", noise(4, 20))))
    assert not [e for e in found.estimates if e.quantity.startswith("auroc")]
    assert said(found, "drawn, guidance 7.5 has 4 independent units: too few to be told from photos, which takes 5 on either side.")


def test_a_missing_reference_is_told_of_the_checkpoint_where_it_is_missing() -> None:
    wanted = replace(WANTED, sets=("photos", "other"), images=("photos", "other"), checkpoints=("early", "late"))
    photos = [row | {"flag": "not finite" if row["checkpoint"] == "late" else None} for row in checkpointed(lambda _: 0.0)]
    found = summarise(wanted, records(photos, checkpointed(lambda _: 1.0, "other")))
    assert said(found, "No sample of photos at “late” counts")
    assert [e.facets["checkpoint"] for e in found.estimates if e.quantity == "auroc:psi"] == ["early"]


def trajectories(name: str, shifts: Sequence[float], scale: float = 7.5, seed: int = 0) -> list[Row]:
    """Twelve prompts with three seeds at each step; psi is shifted by so much."""
    rows = []
    for step, shift in enumerate(shifts):
        psi = shift + noise(12, 1, seed=seed + 1) + 0.3 * noise(12, 3, seed=seed + 2 + step)
        at = {"step": step, "last": step == len(shifts) - 1, "sigma": math.inf if step == 0 else 1.0 / step}
        rows += generated(name, psi, scale, **at)
    return rows


def test_trajectories_of_generated_sets_are_told_apart_step_by_step() -> None:
    wanted = replace(WANTED, sets=("drawn", "copied"), images=())
    found = summarise(wanted, records(trajectories("drawn", [0, 0, 0, 0]), trajectories("copied", [0, 0, 3, 9], seed=100)))
    own = [e for e in found.estimates if e.quantity == "auroc_along:psi"]
    assert [(e.facets["step"], e.facets["sigma"]) for e in own] == [(0, "infinite"), (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert {e.n for e in own} == {24}
    assert own[3].value == 1
    assert {(e.facets["inside"], e.facets["outside"]) for e in own} == {("drawn, guidance 7.5", "copied, guidance 7.5")}
    assert len([e for e in found.estimates if e.quantity == "auroc_along:delta"]) == 4
    assert said(
        found,
        "ψ of copied, guidance 7.5 against drawn, guidance 7.5 along their trajectories",
        "first told apart at step 2 (σ 0.5)",
        "over 4 steps",
    )
    lines = chart(found, "along_auroc")
    assert len(lines.rows) == 12
    assert spec(lines, domains([lines]))


def test_trajectories_that_are_alike_are_told_apart_at_no_step() -> None:
    wanted = replace(WANTED, sets=("drawn", "copied"), images=())
    found = summarise(wanted, records(trajectories("drawn", [0, 0, 0]), trajectories("copied", [0, 0, 0], seed=100)))
    assert said(found, "along their trajectories", "told apart at none of 3 steps")


def test_trajectories_are_compared_at_one_guidance_scale() -> None:
    """The shared one where there is one; each set's only one where there is not; nothing where several differ."""
    wanted = replace(WANTED, sets=("drawn", "copied"), images=())

    def pairs(*parts: list[Row]) -> set[tuple[Any, Any]]:
        return {
            (e.facets["inside"], e.facets["outside"])
            for e in summarise(wanted, records(*parts)).estimates
            if e.quantity == "auroc_along:psi"
        }

    one, four, nine = (trajectories("drawn", [0, 0], scale) for scale in (1.0, 4.0, 9.0))
    other = trajectories("copied", [0, 0], 4.0)
    assert pairs(one, four, other) == {("drawn, guidance 4", "copied, guidance 4")}
    assert pairs(one, other) == {("drawn, guidance 1", "copied, guidance 4")}
    assert pairs(one, nine, other) == set()


def test_the_p_of_an_auroc_is_where_its_interval_ends_at_a_half() -> None:
    a, b = noise(15), noise(11, seed=1) + 0.9
    p = p_value(a, b)
    assert auroc(a, b, level=1 - p).lo == pytest.approx(0.5, abs=1e-6)
    assert p_value(b, a) == pytest.approx(p, rel=1e-6)
    assert p_value(a, a) == 1
    assert p_value(a, a + 100) < 1e-4
    assert math.isnan(p_value(a[:1], b))
    rejected = np.mean([p_value(noise(12, seed=2 * i), noise(12, seed=2 * i + 1)) < 0.05 for i in range(300)])
    assert 0.01 < rejected < 0.08


def test_the_gallery_says_how_many_have_a_picture() -> None:
    def label(kept: int) -> str:
        rows = images("photos", noise(20).tolist(), picture=lambda i: f"{i}.webp" if i < kept else None)
        return next(one for one in summarise(WANTED, records(rows)).gallery if "ψ" in one.label).caption

    assert label(20) == "The 4 lowest and the 4 highest"
    assert label(12) == "The 4 lowest and the 4 highest of the 12 with a picture"


def surface(name: str, **more: Any) -> list[Row]:
    return [
        {**PLAIN, "set": name, "sample": f"{name} {i}", "x": float(i % 3), "y": float(i // 3), "psi": float(i), **more} for i in range(9)
    ]


def test_every_panel_of_a_map_has_its_rings_and_its_name() -> None:
    corners = [{"slice": "slice", "anchor": str(i), "x": float(i), "y": 0.5 * i, "picture": None} for i in range(3)]
    wanted = replace(WANTED, maps=("slice", "field"), checkpoints=("early", "late"))
    both = [row for step in wanted.checkpoints for row in surface("slice", checkpoint=step)]
    fields = [row for step in wanted.checkpoints for sigma in (0.5, 2.0) for row in surface("field", checkpoint=step, sigma=sigma)]
    found = summarise(wanted, records(both, fields, anchors=corners))
    plane = chart(found, "map_slice_psi")
    facets = [row["facet"] for row in drawn(plane) if row["curve"]]
    assert sorted(set(facets)) == ["checkpoint: early", "checkpoint: late"]
    assert len(facets) == 6
    assert {row["facet"] for row in drawn(plane)} == set(facets)
    assert {row["facet"] for row in drawn(chart(found, "map_field_psi"))} == {
        f"level, checkpoint: σ {sigma}, {step}" for sigma in ("0.5", "2") for step in wanted.checkpoints
    }
    levels = summarise(replace(wanted, checkpoints=()), records([row | {"checkpoint": None} for row in fields[:18]]))
    assert {row["facet"] for row in drawn(chart(levels, "map_field_psi"))} == {"level: σ 0.5", "level: σ 2"}
    assert not said(found, "“early”")


def test_two_runs_are_compared_prompt_by_prompt() -> None:
    """A prompt's mean over its seeds; without a value at one of them it has none, since the other run's mean would be of others."""
    psi = noise(3, 4)
    rows = generated("drawn", psi, picture="a.webp")
    rows[5]["psi"] = None
    (found, *_) = comparables(replace(WANTED, sets=("drawn",)), records(rows))
    assert (found.quantity, found.per) == ("psi", "prompt")
    assert list(found.values) == ["p0", "p1", "p2"]
    assert found.values["p2"] == pytest.approx(psi[2].mean())
    assert math.isnan(found.values["p1"])
    assert found.pictures["p0"] == {"": "a.webp"}
    (one, *_) = comparables(WANTED, records(generated("drawn", noise(1, 3))))
    assert (one.per, list(one.values)) == ("sample", ["p0 (seed 0)", "p0 (seed 1)", "p0 (seed 2)"])
    for psi_of in ([1.0], [1.0, 2.0]):
        (whole, *_) = comparables(WANTED, records(images("photos", psi_of)))
        assert whole.values == {f"photos {i}": value for i, value in enumerate(psi_of)}


def test_a_prompts_population_is_told_by_its_seeds() -> None:
    found = summarise(WANTED, records(generated("drawn", noise(3, 8) + np.array([[0], [0], [9]]))))
    effect = told(found, "population:psi", population="p2")
    assert effect.n == 8
    assert effect.lo is not None
    assert effect.lo > 1


def test_two_runs_whose_images_have_no_noise_level_differ_in_none(tmp_path: Path) -> None:
    """An image has no sigma in either run, and another path's levels are no matter of a strength, which geometry does not have."""
    probe = Geometry(sets=("world",), count=3, generated=(Generated(("class 0", "class 1"), num_inference_steps=2, guidance_scale=(1.0,)),))
    base, other = (start(Rig(exact_model(f"gmm@{path}"), {}), [probe], tmp_path / path) for path in ("vp", "flow"))
    found = paired(base, other, "geometry")
    assert (found.common, found.notes) == (5, ())
