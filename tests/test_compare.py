"""Comparisons: numbers against the pairs themselves, families of tests, sentences, refusals, and the three files."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.measures.stats import holm, human_agreement, minimum_detectable_difference, paired_difference
from diffprobe.model import Rig
from diffprobe.probes.base import Comparable, Exhibit, Findings
from diffprobe.probes.consistency import Consistency
from diffprobe.report.document import Document, Section
from diffprobe.report.page import render
from diffprobe.runs.compare import Comparison, compare
from diffprobe.runs.comparison import wording
from diffprobe.runs.comparison.charts import charts
from diffprobe.runs.comparison.choices import Judged, read_choices
from diffprobe.runs.comparison.contrast import Against, Row, contrasts, flat
from diffprobe.runs.comparison.losses import losses
from diffprobe.runs.comparison.sides import named
from diffprobe.runs.pairing import Pair, Pairing, matched
from diffprobe.runs.result import Run, open_run, start
from tests.small import gaussian, small_drift
from tests.test_cli import HEAVY, Command, alone, diffprobe, refused, write_study  # noqa: F401
from tests.test_pairing import PROMPTS, rig
from tests.test_report import CHROMIUM, FLAGS, QUIET

DRIFT = small_drift(count=12, strengths=(0.3, 0.6, 0.9))
ASKED = Consistency(prompts=(*PROMPTS, "class 3", "anything"), repetitions=4, num_inference_steps=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Three worlds, asked the same but for two images fewer in the second."""
    root = tmp_path_factory.mktemp("compare")
    return {
        "base": start(rig("gmm"), [DRIFT, ASKED], root / "base"),
        "tuned": start(rig("relu"), [replace(DRIFT, count=10), ASKED], root / "tuned"),
        "third": start(rig("gaussian"), [DRIFT, ASKED], root / "third"),
    }


@pytest.fixture(scope="module")
def two(runs: dict[str, Run]) -> Comparison:
    return compare({name: runs[name] for name in ("base", "tuned")})


def row(of: Comparison, quantity: str, other: str = "tuned", **facets: object) -> Row:
    """The one row of that name; without facets the headline."""
    found = [
        one
        for one in of.rows
        if (one.quantity, one.other) == (quantity, other) and one.headline == (not facets) and facets.items() <= dict(one.facets).items()
    ]
    assert len(found) == 1
    return found[0]


def pair(base: ArrayLike, other: ArrayLike, **told: Any) -> Pair:
    """Values of the units u0, u1, ... in two runs."""
    values = [np.asarray(side, np.float64) for side in (base, other)]
    units = tuple(f"u{index}" for index in range(len(values[0])))
    settings: dict[str, Any] = {"unit": "points", "better": "higher", "headline": True, **told}
    words = "is more consistent than", "is less consistent than"
    sides = (Comparable("scs", "semantic consistency", "prompt", dict(zip(units, side.tolist(), strict=True)), *words) for side in values)
    first, second = (replace(side, **settings) for side in sides)
    return matched(first, second)


def against(*pairs: Pair, other: str = "B", probe: str = "drift") -> Against:
    return Against(other, probe, Pairing(probe, 1, 0, 0, 0, pairs))


def one(base: ArrayLike, other: ArrayLike, **told: Any) -> tuple[Row, str]:
    """The row of one pair, and its sentence."""
    rows = contrasts([against(pair(base, other, **told))], 0.95)
    return rows[0], wording.verdicts(rows, "A")[0][1] if rows[0].headline else ""


def noise(n: int, seed: int = 0) -> Any:
    return rng.stream("test_compare", seed).normal(size=n)


# --- numbers ----------------------------------------------------------------------------------------------------------------------


def test_a_row_is_the_paired_difference_of_the_records(two: Comparison, runs: dict[str, Run]) -> None:
    edits = [runs[name].records("drift").query("requested_strength == 0.9").groupby("image")["mse"].mean() for name in ("base", "tuned")]
    common = edits[1].index
    base, tuned = edits[0][common].to_numpy(), edits[1][common].to_numpy()
    expected, found = paired_difference(tuned, base), row(two, "mse")
    assert found.n == 10
    assert (found.base_mean, found.other_mean) == pytest.approx((base.mean(), tuned.mean()))
    assert (found.difference, found.lo, found.hi) == pytest.approx(tuple(expected.mean))
    assert (found.shift, found.shift_lo, found.shift_hi) == pytest.approx(tuple(expected.shift))
    assert (found.effect_size, found.effect_lo, found.effect_hi) == pytest.approx(tuple(expected.effect))
    assert (found.wilcoxon_p, found.permutation_p) == pytest.approx((expected.wilcoxon_p, expected.permutation_p))
    assert found.detectable == pytest.approx(minimum_detectable_difference((tuned - base).std(ddof=1), 10, alpha=0.05 / found.family_size))


def test_every_quantity_that_both_runs_have_is_there_once(two: Comparison) -> None:
    names = [(one.probe, one.quantity, one.headline, *one.facets.items()) for one in two.rows]
    assert len(set(names)) == len(names)
    assert [one.quantity for one in two.rows if one.headline] == ["mse", "psnr", "k", "scs:brightness"]
    table = two.table
    assert len(table) == len(two.rows)
    assert {"other", "probe", "quantity", "strength", "difference", "lo", "hi", "p", "n", "outcome", "reason"} <= set(table.columns)


def test_the_other_way_round_has_the_other_sign(two: Comparison, runs: dict[str, Run]) -> None:
    back = compare({"tuned": runs["tuned"], "base": runs["base"]})
    for there, here in zip(two.rows, back.rows, strict=True):
        assert (there.quantity, there.n, there.facets) == (here.quantity, here.n, here.facets)
        for mine, its in (
            ("difference", "difference"),
            ("lo", "hi"),
            ("shift", "shift"),
            ("shift_lo", "shift_hi"),
            ("effect_lo", "effect_hi"),
        ):
            one, other = getattr(there, mine), getattr(here, its)
            assert one is other is None or one == pytest.approx(-other, abs=1e-12)
        assert (there.p, there.detectable) == pytest.approx((here.p, here.detectable))
        assert {there.outcome, here.outcome} in ({"higher", "lower"}, {"not distinguishable"})


def test_equal_runs_differ_by_exactly_nothing_and_that_is_said(runs: dict[str, Run], tmp_path: Path) -> None:
    twin = start(rig("gmm"), [DRIFT, ASKED], tmp_path / "twin")
    found = compare({"base": runs["base"], "twin": twin})
    for one in found.rows:
        assert one.outcome == "equal"
        assert (one.difference, one.lo, one.hi, one.shift, one.p, one.effect_size) == (0.0, 0.0, 0.0, 0.0, 1.0, None)
        assert one.base_mean == one.other_mean
        assert one.reason == f"equal in every {one.per}"
    assert found.verdicts[0] == "twin and base are equal in mse at strength 0.9 in every image, n = 12 images."
    assert found.losses == ()
    assert found.notes[0] == "drift: all 36 rows pair."
    assert "mse-facets" not in {chart.name for chart in charts(found.rows, found.pairings, "base")}
    assert "equal in every prompt" in found.markdown()
    assert (tmp_path / "page.html").samefile(found.report(tmp_path / "page.html"))


def test_three_runs_are_each_set_against_the_first(two: Comparison, runs: dict[str, Run]) -> None:
    three = compare(runs)
    assert len(three.rows) > 2 * len(two.rows) - 1
    for mine in two.rows:
        again = next(
            one
            for one in three.rows
            if replace(mine, p=one.p, family_size=one.family_size, detectable=one.detectable)
            == replace(one, outcome=mine.outcome, reason=mine.reason)
        )
        assert again.family_size == 2 * mine.family_size
        assert again.p is not None
        assert mine.p is not None
        assert again.p >= mine.p
    assert {one.n for one in three.rows if one.other == "third" and one.probe == "drift"} == {12}
    assert {"drift, tuned: 30 of 36 rows pair (83 %): 6 only in base.", "drift, third: all 36 rows pair."} <= set(three.notes)
    assert three.markdown().startswith("## tuned and third against base\n")
    assert sum("third" in verdict for verdict in three.verdicts) == sum(one.headline for one in three.rows if one.other == "third")


# --- tests and families -----------------------------------------------------------------------------------------------------------


def test_p_is_holms_within_the_headline_of_all_and_within_the_rest_of_each_probe() -> None:
    def some(shift: float, seed: int, **told: Any) -> Pair:
        return pair(noise(12, seed), noise(12, seed) + shift * (1 + 0.5 * noise(12, seed + 50)), **told)

    rest = {"headline": False, "better": None}
    found = [
        against(some(0.2, 1), some(0.9, 2, **rest), some(0.02, 3, **rest, facets={"strength": 0.3}), probe="drift"),
        against(some(0.4, 4), some(0.3, 5, **rest), probe="consistency"),
        against(some(0.1, 6), some(0.5, 7, **rest), other="C", probe="drift"),
    ]
    rows = contrasts(found, 0.95)
    families: dict[str, list[Row]] = {}
    for one in rows:
        families.setdefault(one.family, []).append(one)
    assert {name: len(members) for name, members in families.items()} == {"headline": 3, "drift, all else": 3, "consistency, all else": 1}
    for members in families.values():
        raw = [one.permutation_p for one in members]
        assert None not in raw
        assert [one.p for one in members] == pytest.approx(holm([p for p in raw if p is not None]))
        assert {one.family_size for one in members} == {len(members)}


def test_headlines_of_equal_runs_are_seldom_told_apart() -> None:
    """Three null quantities on 12 units each: a false finding in one comparison of twenty at most."""
    false = 0
    for seed in range(150):
        pairs = [pair(noise(12, 3 * seed + k), noise(12, 10_000 + 3 * seed + k)) for k in range(3)]
        false += any(one.outcome in {"higher", "lower"} for one in contrasts([against(*pairs)], 0.95))
    assert false / 150 < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5


def test_a_clear_difference_passes_in_a_family_of_more_tests_than_flips() -> None:
    """Random flips alone know of no p below 1 in 10,001, which 600 tests would make 0.06."""
    clear, none = pair(noise(40), noise(40) + 2 + noise(40, 1), headline=False), pair(noise(40), noise(40), headline=False)
    pairs = [clear, *([none] * 599)]
    rows = contrasts([against(*pairs)], 0.95)
    assert rows[0].permutation_p == 1 / 10_001
    assert rows[0].outcome == "higher"
    assert rows[0].p is not None
    assert 600 * 2.0**-39 <= rows[0].p < 0.001


@pytest.mark.parametrize("n", [2, 4, 5])
def test_units_too_few_for_any_difference_are_not_called_alike(n: int) -> None:
    found, told = one(np.zeros(n), 50 + noise(n))
    assert (found.outcome, found.detectable) == ("not distinguishable", None)
    assert found.difference == pytest.approx(50, abs=3)
    assert found.lo is not None
    assert (
        told == f"B and A are not distinguishable in semantic consistency: {n} prompts are too few for any difference to show: it takes 6."
    )


def test_six_units_are_enough_for_one_test() -> None:
    assert one(np.zeros(6), 50 + noise(6))[0].outcome == "higher"


def test_one_unit_has_a_difference_and_no_interval() -> None:
    found, told = one([3.0], [5.0])
    assert (found.n, found.difference, found.lo, found.hi, found.p, found.effect_size) == (1, 2.0, None, None, None, None)
    assert told == "B and A are not compared in semantic consistency: an interval needs two prompts or more."


def test_no_unit_in_both_has_nothing() -> None:
    found, told = one([1.0, np.nan], [np.nan, 1.0])
    assert (found.n, found.base_mean, found.difference, found.p) == (0, None, None, None)
    assert told == "B and A are not compared in semantic consistency: no prompt has a value in both."


def test_a_unit_without_a_value_is_left_out_of_both() -> None:
    values = noise(9)
    values[3] = np.nan
    found, _ = one(noise(9, 1), values)
    kept = ~np.isnan(values)
    assert found.n == 8
    assert found.base_mean == pytest.approx(noise(9, 1)[kept].mean())


def test_the_same_difference_in_every_unit_is_no_evidence() -> None:
    """To rounding: the values are about 90, their differences a tenth."""
    base = 90 + noise(20)
    found, told = one(base, base + 0.1)
    assert found.difference == pytest.approx(0.1)
    assert (found.lo, found.hi, found.p, found.effect_size, found.outcome) == (None, None, None, None, "not compared")
    assert told.endswith("the difference is the same in every prompt, which leaves no spread to judge it by.")
    json.dumps(flat(found), allow_nan=False)


def test_rounding_is_no_difference() -> None:
    """Embeddings of single precision lean one way by some 1e-7 of a value; ten times that is a difference."""
    base = 80 + noise(40)
    assert one(base, base * (1 + 7e-7))[0].outcome == "equal"
    assert one(-base, -base * (1 + 7e-7))[0].outcome == "equal"
    shifted = one(base, base * (1 + 7e-6))[0]
    assert (shifted.outcome, shifted.gain) == ("higher", "better")


# --- sentences --------------------------------------------------------------------------------------------------------------------


def spread(mean: float, n: int = 100) -> Any:
    """Differences with that mean and a standard deviation of 4.5."""
    raw = noise(n)
    return mean + 4.5 * (raw - raw.mean()) / raw.std(ddof=1)


def test_a_difference_that_can_be_told_is_a_sentence() -> None:
    base = 80 + noise(100, 1)
    found, told = one(base, base + spread(3.9))
    assert (found.outcome, found.gain) == ("higher", "better")
    assert re.fullmatch(r"B is more consistent than A by 3\.90 points \[\d\.\d\d, 4\.\d\d\], n = 100 prompts\.", told)
    lower, told = one(base, base - spread(3.9))
    assert (lower.outcome, lower.gain) == ("lower", "worse")
    assert re.fullmatch(r"B is less consistent than A by 3\.90 points \[\d\.\d\d, 4\.\d\d\], n = 100 prompts\.", told)
    assert one(base, base - spread(3.9), better="lower")[0].gain == "better"
    assert one(base, base - spread(3.9), better=None)[0].gain is None


def test_one_that_cannot_names_what_could_have_been_seen() -> None:
    base = 80 + noise(100, 1)
    found, told = one(base, base + spread(0.3))
    least = minimum_detectable_difference(4.5, 100)
    assert found.outcome == "not distinguishable"
    assert found.detectable == pytest.approx(least)
    expected = f"the smallest difference that this design could have seen is {least:.2f} points (n = 100 prompts)."
    assert told == f"B and A are not distinguishable in semantic consistency: {expected}"


def test_the_quantity_is_named_where_two_are_told_in_the_same_words() -> None:
    base = 80 + noise(30, 1)
    pairs = [pair(base, base + spread(9, 30), quantity=name, title=f"consistency ({name})") for name in ("clip", "dino")]
    told = [sentence for _, sentence in wording.verdicts(contrasts([against(*pairs)], 0.95), "A")]
    assert [sentence.rpartition("prompts")[2] for sentence in told] == [", in consistency (clip).", ", in consistency (dino)."]


def test_rates_are_never_rounded_to_all_or_nothing() -> None:
    def told(*counts: int) -> str:
        common, flagged, base_only, other_only = counts
        return wording.rates([Against("B", "drift", Pairing("drift", common, flagged, base_only, other_only, ()))], "A")[0]

    assert told(2000, 0, 0, 0) == "All 2,000 rows pair."
    assert told(1980, 0, 40, 20) == "1,980 of 2,040 rows pair (97 %): 40 only in A, 20 only in B."
    assert "(over 99 %): 1 in both, but without a value in one of them." in told(9999, 1, 0, 0)
    assert "(under 1 %)" in told(1, 0, 999, 0)


def test_rows_of_one_run_alone_are_told(two: Comparison) -> None:
    assert two.notes == (
        "drift: 30 of 36 rows pair (83 %): 6 only in base.",
        "consistency: all 20 rows pair.",
    )


def test_the_worst_units_come_first_and_fewer_that_gained() -> None:
    base, other = [10.0, 10, 10, 10, 10, 10, 10, 10, 10], [5.0, 9, 10, 11, 14, 13, 8, 7, 6]
    higher = losses([against(pair(base, other))])
    assert [(loss.name, loss.difference, loss.improved) for loss in higher] == [
        ("u0", -5.0, False),
        ("u8", -4.0, False),
        ("u7", -3.0, False),
        ("u6", -2.0, False),
        ("u4", 4.0, True),
        ("u5", 3.0, True),
    ]
    lower = losses([against(pair(base, other, better="lower"))])
    assert [loss.name for loss in lower if not loss.improved] == ["u4", "u5", "u3"]
    assert losses([against(pair(base, other, better=None)), against(pair(base, other, headline=False))]) == ()


# --- refusals, and runs that are not whole ----------------------------------------------------------------------------------------


def refusal(**settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare(**settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_compared_is_refused_with_the_difference(runs: dict[str, Run], tmp_path: Path) -> None:
    other = start(rig("gmm", "brightness/2"), [ASKED], tmp_path / "other")
    assert "the instrument brightness is another one" in refusal(runs={"a": runs["base"], "b": other})
    steps = start(rig("gmm"), [replace(ASKED, num_inference_steps=6)], tmp_path / "steps")
    assert "consistency's num_inference_steps is 5" in refusal(runs={"a": runs["base"], "b": steps})
    assert "did you mean 'num_inference_steps'?" in refusal(runs={"a": runs["base"], "b": steps}, across=["num_inference_step"])
    assert "two runs or more, not 1" in refusal(runs={"a": runs["base"]})
    assert "level 95 must be at least 0.5 and below 1" in refusal(runs=runs, level=95)
    assert "holds no run" in refusal(runs={"a": runs["base"], "b": tmp_path / "nowhere"})
    assert "by name: give a mapping, such as {" in refusal(runs=[runs["base"], steps])
    assert "a run without a name" in refusal(runs={"a": runs["base"], "": steps})


def test_settings_that_are_meant_to_differ_are_compared_across(runs: dict[str, Run], tmp_path: Path) -> None:
    steps = start(rig("gmm"), [replace(ASKED, num_inference_steps=6)], tmp_path / "steps")
    found = compare({"five": runs["base"], "six": steps}, across=["num_inference_steps"])
    assert {one.probe for one in found.rows} == {"consistency"}
    assert found.json()["across"] == ["num_inference_steps"]
    assert "drift is in one of the two alone" in found.notes[0]
    page = found.report(tmp_path / "page.html").read_text()
    assert found.notes[0] in page
    alike = compare({"five": runs["base"], "six": steps}, across="num_inference_steps")
    assert (alike.across, alike.json()) == (("num_inference_steps",), found.json())
    assert "consistency: num_inference_steps" in page


def test_no_common_row_is_refused_with_the_column_that_differs(runs: dict[str, Run], tmp_path: Path) -> None:
    guided = start(gaussian(), [replace(DRIFT, guidance_scale=(3.0,))], tmp_path / "guided")
    told = refusal(runs={"a": runs["third"], "b": guided})
    assert re.search(r"no row of drift pairs, since guidance_scale is 5.0 in .*third and 3.0 in .*guided", told)
    assert told.endswith("or compare across it (--across guidance_scale)")
    seeds = start(gaussian(), [replace(DRIFT, seeds=(7000,))], tmp_path / "seeds")
    assert "since seed is 42, 43, 44, ... in" in refusal(runs={"a": runs["third"], "b": seeds})


def test_runs_with_no_instrument_in_common_share_no_quantity(runs: dict[str, Run], tmp_path: Path) -> None:
    other = Rig(exact_model("gmm"), {"light": rig("gmm").embedders["brightness"]})
    found = start(other, [ASKED], tmp_path / "other")
    told = refusal(runs={"a": runs["base"], "b": found})
    assert "share no quantity (a was seen by brightness; b was seen by light)" in told


def test_a_run_that_is_not_whole_is_compared_over_what_it_has(runs: dict[str, Run], tmp_path: Path) -> None:
    part = start(rig("relu"), [DRIFT, ASKED], tmp_path / "part")
    lost = next(key for key in part.plan["consistency"] if not part.store.records("consistency", [key]).get("Asked"))
    (part.path / "cells" / "consistency" / f"{lost}.parquet").unlink()
    found = compare({"base": runs["base"], "part": open_run(part.path)})
    assert found.notes[0] == f"part is incomplete: 1 of {part.planned} cells are missing; what both have is compared."
    assert row(found, "scs:brightness", "part").n == 4
    assert found.notes[0] in found.report(tmp_path / "page.html").read_text()


def test_a_probe_that_has_not_begun_is_left_out_and_told(runs: dict[str, Run], tmp_path: Path) -> None:
    part = start(rig("relu"), [DRIFT, ASKED], tmp_path / "part")
    for file in (part.path / "cells" / "drift").iterdir():
        file.unlink()
    found = compare({"base": runs["base"], "part": part})
    assert {one.probe for one in found.rows} == {"consistency"}
    assert any("nothing of drift is measured in" in note for note in found.notes)


# --- what people chose ------------------------------------------------------------------------------------------------------------


def write_choices(path: Path, *rows: tuple[str, ...], head: tuple[str, ...] = ("prompt", "choice", "annotator")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_choices_are_set_against_the_higher_score(two: Comparison, runs: dict[str, Run], tmp_path: Path) -> None:
    (scs,) = (one for against in two.pairings for one in against.pairing.pairs if one.base_comparable.quantity == "scs:brightness")
    winners = {unit: "tuned" if more > less else "base" for unit, less, more in zip(scs.units, scs.base, scs.other, strict=True)}
    loser = {"tuned": "base", "base": "tuned"}
    first, second, third, fourth, fifth = scs.units
    votes = [(first, winners[first], "ann"), (first, winners[first], "bob"), (second, winners[second], "ann"), (second, "tie", "bob")]
    votes += [(third, loser[winners[third]], "ann"), (fourth, "base", "ann"), (fourth, "tuned", "bob"), (fifth, "", "ann")]
    found = compare({name: runs[name] for name in ("base", "tuned")}, choices=write_choices(tmp_path / "votes.csv", *votes))
    (judged,) = found.judged
    assert judged.agreement == human_agreement([(p, None if c in {"", "tie"} else c, a) for p, c, a in votes], winners)
    assert (judged.agreement.agreed, judged.agreement.decided, judged.agreement.ties, judged.agreement.unvoted) == (2, 3, 1, 1)
    assert "higher semantic consistency (brightness) in 2 of 3 prompts between tuned and base: 66.7 % [" in found.verdicts[-1]
    assert "Left out: 1 with tied votes, 1 with no votes." in found.verdicts[-1]
    assert found.json()["choices"][0]["agreement"]["value"] == pytest.approx(2 / 3)
    assert "2 of 3 prompts" in found.report(tmp_path / "page.html").read_text()
    assert two.judged == ()


def test_kappa_is_told_within_its_range() -> None:
    """Its interval is symmetric, and would reach beyond 1."""
    told = human_agreement([(p, "B", a) for p in "abc" for a in "xy"], dict.fromkeys("abc", "B"))
    odd = told._replace(kappa=told.kappa._replace(value=0.9, lo=0.6, hi=1.2))
    (sentence,) = wording.opinions([Judged("B", "scs", "consistency", odd)], "A")
    assert re.search(r"a kappa of 0\.9\d* \[0\.6\d*, 1\.0\d*\]\.$", sentence)


def test_rows_without_an_annotator_are_votes_of_different_people(tmp_path: Path) -> None:
    file = write_choices(tmp_path / "votes.csv", ("p", "B"), ("p", "B"), ("q", "A"), head=("prompt", "choice"))
    assert [(choice.prompt, choice.chosen, choice.annotator) for choice in read_choices(file, ["A", "B"])] == [
        ("p", "B", "row 1 of the prompt"),
        ("p", "B", "row 2 of the prompt"),
        ("q", "A", "row 1 of the prompt"),
    ]


@pytest.mark.parametrize(
    ("rows", "head", "told"),
    [
        ([("class 0", "tunned", "a")], ("prompt", "choice", "annotator"), "unknown run in .*: did you mean 'tuned'?"),
        (
            [("klass 0", "tuned", "a")],
            ("prompt", "choice", "annotator"),
            "unknown prompt in the choices 'klass 0': did you mean 'class 0'?",
        ),
        (
            [("class 0", "tuned")],
            ("prompt", "chosen"),
            "must have the columns 'prompt' and 'choice', and at least one row; it lacks choice",
        ),
        ([], ("prompt", "choice"), "at least one row"),
        ([("class 0", "tuned", "a"), ("class 0", "base", "a")], ("prompt", "choice", "annotator"), "'a' chose twice for 'class 0'"),
    ],
)
def test_bad_choices_are_one_line(
    runs: dict[str, Run], tmp_path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...], told: str
) -> None:
    file = write_choices(tmp_path / "votes.csv", *rows, head=head)
    assert re.search(told, refusal(runs={name: runs[name] for name in ("base", "tuned")}, choices=file))


def test_choices_need_a_file_and_the_consistency_probe(runs: dict[str, Run], tmp_path: Path) -> None:
    assert "cannot read the choices in" in refusal(runs=runs, choices=tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"prompt,choice\n\xff\xfe,base\n")
    assert "cannot read the choices in" in refusal(runs=runs, choices=tmp_path / "bytes.csv")
    drift = [start(gaussian(), [small_drift()], tmp_path / name) for name in "ab"]
    file = write_choices(tmp_path / "votes.csv", ("class 0", "a", "me"))
    assert "choices are set against the consistency probe" in refusal(runs=dict(zip("ab", drift, strict=True)), choices=file)


# --- the three files --------------------------------------------------------------------------------------------------------------


def test_the_files_are_whole_and_the_same_each_time(two: Comparison, runs: dict[str, Run], tmp_path: Path) -> None:
    paths = two.write(tmp_path / "first")
    assert [path.name for path in paths] == ["comparison.html", "comparison.md", "comparison.json"]
    again = compare({name: runs[name].path for name in ("base", "tuned")}).write(tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(path.name for path in paths)
    found = json.loads(paths[2].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["schema"], found["base"], found["level"]) == (1, "base", 0.95)
    assert [one["name"] for one in found["runs"]] == ["base", "tuned"]
    assert found["runs"][0]["model"]["name"] == "exact:gmm"
    assert found["pairings"][0] == {
        "other": "tuned",
        "probe": "drift",
        "common": 30,
        "flagged": 0,
        "base_only": 6,
        "other_only": 0,
        "rate": 30 / 36,
        "notes": [],
    }
    assert found["families"]["headline"] == 4
    assert len(found["rows"]) == len(two.rows)
    assert found["rows"][0]["difference"] == two.rows[0].difference
    assert found["verdicts"] == list(two.verdicts)
    assert {loss["probe"] for loss in found["losses"]} == {"drift", "consistency"}


def test_nothing_is_replaced_by_a_part(two: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [path.read_bytes() for path in two.write(tmp_path)]
    monkeypatch.setattr(Comparison, "markdown", lambda self: "\ud800")  # no file can hold it
    with pytest.raises(UnicodeEncodeError):
        two.write(tmp_path)
    assert [(tmp_path / f"comparison.{kind}").read_bytes() for kind in ("html", "md", "json")] == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_place_that_cannot_be_written_is_one_line(two: Comparison, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (two.write, two.report):
        with pytest.raises(UserError, match="a file of that name is in the way: choose another --out") as caught:
            call(tmp_path / "file" / "deeper")
        assert caught.value.exit_code == 4


def test_markdown_says_the_verdicts_first_and_counts_what_it_leaves_out(two: Comparison) -> None:
    lines = two.markdown().splitlines()
    assert lines[0] == "## tuned against base"
    assert lines[2 : 2 + len(two.verdicts)] == [f"- {verdict}" for verdict in two.verdicts]
    assert "| quantity | base | tuned | difference | interval | d_z | p (Holm) | n |" in lines
    many = contrasts([against(*(pair(noise(8, k), noise(8, k + 100), headline=k < 2, facets={"k": k}) for k in range(60)))], 0.95)
    text = wording.markdown(["A", "B"], many, [], [], [])
    table = [line for line in text.splitlines() if line.startswith("| s")]
    assert len(table) == 40
    assert "20 more rows are in comparison.json." in text
    assert [line.startswith("| semantic consistency |") for line in table] == [True] * 2 + [False] * 38


def test_no_quantity_is_starved_of_its_worst_units() -> None:
    base = noise(12)
    found = losses(
        [
            against(*(pair(base, base - 1 - 0.1 * noise(12, k), quantity=f"q{k}", title=f"q{k}") for k in (1, 2)), other=other)
            for other in "BC"
        ]
    )
    text = wording.markdown(["A", "B", "C"], [], [], found, [])
    lines = text.partition("Worst regressions")[2].splitlines()
    shown = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines if line.startswith(("| B", "| C"))]
    assert [(unit[0], title) for unit, title in shown[:4]] == [("B", "q1"), ("B", "q2"), ("C", "q1"), ("C", "q2")]
    assert len(shown) == 6
    assert "10 more regressions are in comparison.json." in text


def test_names_stay_text_in_markdown() -> None:
    hostile = "a|b <img src=x> `c` *d* [e](f)"
    rows = contrasts([against(pair(noise(8), noise(8, 1), title=hostile), other=hostile)], 0.95)
    text = wording.markdown(["A", hostile], rows, [sentence for _, sentence in wording.verdicts(rows, "A")], [], [])
    assert "<img" not in text
    assert "[e](f)" not in text
    assert {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")} == {9}


# --- charts and the page ----------------------------------------------------------------------------------------------------------


def test_a_histogram_counts_every_unit_on_its_side_of_zero() -> None:
    base = noise(150)
    other = base + 0.3 * noise(150, 1) + 0.1
    other[:7] = base[:7]
    found = [against(pair(base, other))]
    bars = next(chart for chart in charts(contrasts(found, 0.95), found, "A") if chart.name == "scs-spread")
    assert sum(bar["units"] for bar in bars.rows) == 150
    for side, gaps in (("B", other > base), ("A", other < base), ("equal", other == base)):
        assert sum(bar["units"] for bar in bars.rows if bar["run"] == side) == gaps.sum()
    assert all((bar["difference"] > 0) == (bar["run"] == "B") for bar in bars.rows if bar["units"] and bar["run"] != "equal")
    places = sorted({bar["difference"] for bar in bars.rows})
    np.testing.assert_allclose(np.diff(places), places[1] - places[0])


def test_quantities_that_vary_by_nothing_stand_together_and_others_by_what_varies() -> None:
    def some(k: int, **told: Any) -> Pair:
        return pair(noise(8, k), noise(8, k + 100), headline=False, **told)

    lone = [pair(noise(8, 1), noise(8, 2)), some(3, quantity="vendi", title="Vendi score"), some(4, quantity="m", facets={"strength": 0.1})]
    found = [against(*lone, *(some(k, quantity="x", facets={"set": "ab"[k % 2], "strength": k // 2}) for k in range(40)))]
    drawn = {chart.name: chart for chart in charts(contrasts(found, 0.95), found, "A")}
    assert [line["quantity"] for line in drawn["differences"].rows] == ["semantic consistency", "Vendi score"]
    assert {name for name in drawn if name.endswith("-facets")} == {"x-facets"}
    assert {line["at"] for line in drawn["x-facets"].rows} == {f"strength {k}" for k in range(20)}
    assert {line["what"] for line in drawn["x-facets"].rows} == {"a", "b"}
    words = [against(*(some(k, facets={"domain": f"d{k}"}) for k in range(50)))]
    chart = next(chart for chart in charts(contrasts(words, 0.95), words, "A") if chart.name == "scs-facets")
    assert [line["at"] for line in chart.rows] == [f"d{k}" for k in range(30)]
    assert "The first 30 of 50" in chart.caption


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from diffprobe.cli import main
sys.argv = ["diffprobe", "compare", "--help"]
try:
    main()
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    assert alone(code).stdout.splitlines()[-1] == "[]"


def test_many_units_are_drawn_in_part_and_that_is_said() -> None:
    found = [against(pair(noise(3000), noise(3000, 1)))]
    points = next(chart for chart in charts(contrasts(found, 0.95), found, "A") if chart.name == "scs-units")
    assert len(points.rows) == 500
    assert "500 of 3,000 are drawn" in points.caption
    assert {min(noise(3000)), max(noise(3000))} <= {point["base"] for point in points.rows}


def test_a_picture_outside_the_folders_of_the_runs_is_not_read(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("secret.png", "one/a.png", "two/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    names = ("0/a.png", "1/a.png", "1/../secret.png", "../secret.png", "2/a.png", "a.png", "1//etc/passwd")
    shown = Exhibit("x", "y", {name: name for name in names})
    folders = {"0": tmp_path / "one", "1": tmp_path / "two"}
    page = render(Document("t", {}, 0, 0, (), (Section("p", "q", Findings((), gallery=(shown,))),), tmp_path / "one", "", folders=folders))
    assert page.count("data:image/png") == 2
    assert page.count("not in the run's media folder") == 5


def test_the_page_shows_both_runs_side_by_side(two: Comparison, tmp_path: Path) -> None:
    """In a real browser: verdicts, what differs, tables, charts, and pictures of both runs; nothing is asked of the network."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright (extra: dev)")
    file, seen = two.report(tmp_path / "page.html"), list[str]()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *QUIET])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else seen.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function("Number(document.documentElement.dataset.drawn) >= 1")
        assert page.locator(".brand").inner_text().lower() == "diffprobe comparison"
        assert page.locator("h1").inner_text() == "tuned against base"
        assert page.locator(".verdict").all_inner_texts() == list(two.verdicts)
        assert "30 of 36 rows pair" in page.locator(".status").inner_text()
        differing = page.locator(".masthead table tr.marked").all_inner_texts()
        assert [text.split("\t")[1:] for text in differing if text.startswith("model name")] == [["exact:gmm", "exact:relu"]]
        assert any(text.startswith("drift: count") for text in differing)
        assert page.locator("#probe-drift .plain tbody tr").count() == 3
        count = "(plot) => plot.querySelectorAll('svg .mark-group path, svg [role=graphics-symbol]').length"
        assert min(plot.evaluate(count) for plot in page.locator("[data-chart]").all()) >= 2
        first = page.locator("#probe-drift .exhibit").first
        assert first.locator("figcaption").all_inner_texts()[:4] == ["original", "base: edited", "tuned: edited", "difference"]
        assert page.locator(".missing").count() == 0
        assert page.locator(".compare").first.get_attribute("data-over") == "base: edited"
        assert page.locator("#estimates tbody tr").count() == len(two.rows)
        for width in (1280, 360):
            turn = int(page.evaluate("document.documentElement.dataset.drawn"))
            if width != 1280:
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_function(f"Number(document.documentElement.dataset.drawn) > {turn}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert seen == []


# --- the command line -------------------------------------------------------------------------------------------------------------


def test_names_come_from_the_directories_and_are_unique() -> None:
    assert named(["runs/base", "runs/tuned"]) == {"base": Path("runs/base"), "tuned": Path("runs/tuned")}
    assert list(named(["a/run", "b/run"])) == ["a/run", "b/run"]
    assert list(named(["x=a/run", "b/run"])) == ["x", "run"]
    assert list(named(["run=a/run", "b/run", "b/run"])) == ["run", "run-2", "run-3"]
    assert list(named(["runs/lr=0.1", "runs/lr=0.2"])) == ["lr=0.1", "lr=0.2"]
    with pytest.raises(UserError, match="two runs are called 'x'"):
        named(["x=a", "x=b"])


def test_the_command_prints_the_verdicts_and_writes_beside_the_first_run(
    diffprobe: Command,  # noqa: F811
    two: Comparison,
    runs: dict[str, Run],
    tmp_path: Path,
) -> None:
    answer = diffprobe("compare", runs["base"].path, runs["tuned"].path)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("".join(f"- {verdict}\n" for verdict in two.verdicts))
    assert "30 of 36 rows pair (83 %)" in answer.out
    folder = runs["base"].path.parent / "comparison-base-tuned"
    assert f"comparison: {folder / 'comparison.html'}" in answer.out
    assert json.loads((folder / "comparison.json").read_text()) == two.json()
    assert diffprobe("compare", runs["base"].path, runs["tuned"].path).code == 0
    kept = (folder / "comparison.json").read_bytes()
    refused(
        diffprobe("compare", runs["base"].path, f"tuned={runs['third'].path}"), "holds a comparison of other runs: choose another --out"
    )
    assert (folder / "comparison.json").read_bytes() == kept
    renamed = diffprobe("compare", f"old={runs['base'].path}", f"new={runs['tuned'].path}", "--out", tmp_path / "out", "--level", "0.9")
    assert renamed.code == 0
    assert "new drifts" in renamed.out
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["level"] == 0.9
    file = write_choices(tmp_path / "votes.csv", ("class 0", "tuned", "me"))
    chosen = diffprobe("compare", runs["base"].path, runs["tuned"].path, "--choices", file, "--out", tmp_path / "chosen")
    assert "of 1 prompts between tuned and base" in chosen.out
    refused(diffprobe("compare", runs["base"].path), "a comparison needs two runs or more, not 1")
    refused(diffprobe("compare", runs["base"].path, tmp_path / "nowhere"), "holds no run")
    refused(diffprobe("compare", runs["base"].path, runs["tuned"].path, "--across", "strength"), "unknown setting of a shared probe")
    assert diffprobe("compare").code == 2


def test_a_study_of_several_models_ends_with_their_comparison(diffprobe: Command, tmp_path: Path) -> None:  # noqa: F811
    models = "{one: exact:gaussian, two: {model: exact:gmm, drift: {num_inference_steps: 30}}}"
    study = write_study(tmp_path / "study.yaml", "count: 8", models=models)
    planned = diffprobe("run", study, "--out", tmp_path / "runs", "--dry-run")
    assert planned.code == 0
    assert not (tmp_path / "runs").exists()
    answer = diffprobe("run", study, "--out", tmp_path / "runs")
    assert (answer.code, answer.err) == (0, "")
    assert f"comparison: {tmp_path / 'runs' / 'comparison' / 'comparison.html'}" in answer.out
    found = json.loads((tmp_path / "runs" / "comparison" / "comparison.json").read_text())
    assert ([one["name"] for one in found["runs"]], found["across"]) == (["one", "two"], ["num_inference_steps"])
    assert found["pairings"][0]["rate"] == 1.0


def test_models_that_cannot_be_compared_lose_nothing(diffprobe: Command, tmp_path: Path) -> None:  # noqa: F811
    models = "{one: exact:gaussian, two: {model: exact:gmm, drift: {strengths: [0.4]}}}"
    answer = diffprobe("run", write_study(tmp_path / "study.yaml", models=models), "--out", tmp_path / "runs")
    assert (answer.code, answer.err) == (0, "")
    assert "no comparison: there is nothing to compare: no row of drift pairs, since requested_strength is" in answer.out
    assert not (tmp_path / "runs" / "comparison").exists()


def test_a_model_that_is_missing_is_told_before_the_first_is_measured(diffprobe: Command, tmp_path: Path) -> None:  # noqa: F811
    """The study's last model is no member of the family: minutes of measuring must not come before the news."""
    models = "{one: exact:gaussian, two: embedded-pastl}"
    answer = diffprobe("run", write_study(tmp_path / "study.yaml", models=models), "--out", tmp_path / "runs")
    assert answer.code == 2
    assert "unknown embedded model 'embedded-pastl': did you mean 'embedded-pastel'?" in answer.err
    assert not (tmp_path / "runs").exists()


def test_the_package_offers_it(two: Comparison, runs: dict[str, Run]) -> None:
    assert dp.compare is compare
    assert isinstance(two, dp.Comparison)
