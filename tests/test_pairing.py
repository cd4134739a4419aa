"""Which rows two runs share: names, rates, flags, and the differences that forbid a comparison."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.probes.base import Comparable, Probe
from diffprobe.probes.consistency import Consistency
from diffprobe.runs.pairing import Pairing, check, matched, paired, shared_probes
from diffprobe.runs.result import Run, open_run, start
from tests.small import gaussian, small_drift
from tests.test_result import Brightness

PROMPTS = ("class 0", "class 1", "class 2")
ASKED = Consistency(prompts=PROMPTS, repetitions=3, num_inference_steps=4)


def rig(world: str = "gaussian", fingerprint: str = "brightness/1") -> Rig:
    return Rig(exact_model(world), {"brightness": Brightness(fingerprint)})


def run(path: Path, *probes: Probe, worker: Rig | None = None) -> Run:
    return start(worker or gaussian(), probes or (small_drift(),), path)


def flag(of: Run, images: Sequence[str]) -> Run:
    """The run with these images flagged, as if they had not been finite."""
    for file in (of.path / "cells" / "drift").iterdir():
        table = pq.read_table(file)
        if table.schema.metadata[b"class"] == b"Edits":
            flags = ["not finite" if image in images else None for image in table["image"].to_pylist()]
            place = table.column_names.index("flag")
            pq.write_table(table.set_column(place, "flag", pa.array(flags, pa.string())), file)
    return open_run(of.path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("pairing") / "base")


def counts(found: Pairing) -> tuple[int, int, int, int]:
    return found.common, found.flagged, found.base_only, found.other_only


def test_equal_studies_pair_whole_and_the_values_are_those_of_the_records(base: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "other", worker=Rig(exact_model("gmm"), {}))
    found = paired(base, other, "drift")
    assert counts(found) == (8, 0, 0, 0)
    assert (found.rate, found.notes) == (1.0, ())
    mse = next(pair for pair in found.pairs if pair.base_comparable.quantity == "mse" and pair.base_comparable.headline)
    for side, values in ((base, mse.base), (other, mse.other)):
        rows = side.records("drift").query("requested_strength == 0.6").set_index("image")["mse"]
        np.testing.assert_allclose(values, rows[list(mse.units)])
    assert len({(pair.base_comparable.quantity, *pair.base_comparable.facets.items()) for pair in found.pairs}) == len(found.pairs)


def test_rows_of_one_run_alone_are_counted_and_enter_no_value(base: Run, tmp_path: Path) -> None:
    """One more strength and two more images: the top strength in common is the base's, and the slope needs three of them."""
    more = run(tmp_path / "more", small_drift(count=6, strengths=(0.3, 0.6, 0.9)))
    there, back = paired(base, more, "drift"), paired(more, base, "drift")
    assert counts(there) == (8, 0, 0, 10)
    assert counts(back) == (8, 0, 10, 0)
    assert there.rate == back.rate == 8 / 18
    for pair in there.pairs:
        assert pair.base_comparable.quantity != "k"
        assert len(pair.units) == 4
        np.testing.assert_array_equal(pair.base, pair.other)


def test_a_row_that_is_flagged_in_one_run_enters_neither(tmp_path: Path) -> None:
    whole, hurt = run(tmp_path / "whole"), run(tmp_path / "hurt")
    lost = str(hurt.records("drift")["image"].iloc[0])
    for found in (paired(whole, flag(hurt, [lost]), "drift"), paired(open_run(hurt.path), whole, "drift")):
        assert counts(found) == (6, 2, 0, 0)
        assert found.rate == 0.75
        assert all(lost not in pair.units and len(pair.units) == 3 for pair in found.pairs)


def test_runs_without_a_common_row_give_no_pair(base: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "other", small_drift(strengths=(0.4,)))
    found = paired(base, other, "drift")
    assert counts(found) == (0, 0, 8, 4)
    assert (found.rate, found.pairs) == (0.0, ())


def test_prompts_pair_by_name_and_score_the_seeds_in_common(tmp_path: Path) -> None:
    few = run(tmp_path / "few", ASKED, worker=rig("gmm"))
    many = run(tmp_path / "many", Consistency(prompts=("class 3", *PROMPTS[:2]), repetitions=5, num_inference_steps=4), worker=rig("gmm"))
    found = paired(few, many, "consistency")
    assert counts(found) == (6, 0, 3, 9)
    assert {pair.base_comparable.quantity for pair in found.pairs} == {"scs:brightness", "vendi:brightness"}
    for pair in found.pairs:
        assert pair.units == PROMPTS[:2]
        np.testing.assert_array_equal(pair.base, pair.other)  # other images in the batch round another way


def test_the_same_strength_at_another_noise_level_is_told(base: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "flow", worker=Rig(exact_model("gaussian@flow"), {}))
    (note,) = paired(base, other, "drift").notes
    assert "another noise level in 100%" in note
    assert "sigma" in note


def test_what_is_across_is_no_part_of_a_rows_name(base: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "other", small_drift(num_inference_steps=(30,)))
    assert paired(base, other, "drift").common == 0
    check(base, other, ["num_inference_steps"])
    found = paired(base, other, "drift", ["num_inference_steps"])
    assert found.rate == 1.0
    assert {len(pair.units) for pair in found.pairs} == {4}
    assert len(found.pairs) == len(paired(base, base, "drift").pairs)


def test_a_row_must_pair_with_one_row(base: Run, tmp_path: Path) -> None:
    both = run(tmp_path / "both", small_drift(num_inference_steps=(15, 30)))
    with pytest.raises(UserError, match=r"has several rows for .*'requested_strength': 0.3.*: a row must pair with one row"):
        paired(base, both, "drift", ["num_inference_steps"])


def test_the_order_of_a_studys_settings_makes_no_difference(tmp_path: Path) -> None:
    """The same rows in both: nothing can differ."""
    one, other = (run(tmp_path / name, small_drift(num_inference_steps=steps)) for name, steps in (("a", (10, 40)), ("b", (40, 10))))
    found = paired(one, other, "drift")
    assert found.rate == 1.0
    for pair in found.pairs:
        np.testing.assert_array_equal(pair.base, pair.other)


def test_an_image_of_the_same_name_and_other_content_does_not_pair(tmp_path: Path) -> None:
    folder, runs = tmp_path / "photos", []
    folder.mkdir()
    for number, shade in enumerate((40, 40, 200)):
        for name, level in (("a", 120), ("b", shade)):
            Image.new("RGB", (16, 16), (level, 30, 60)).save(folder / f"{name}.png")
        runs.append(run(tmp_path / str(number), small_drift(images=str(folder), count=None)))
    assert paired(runs[0], runs[1], "drift").rate == 1
    found = paired(runs[0], runs[2], "drift")
    assert (found.common, found.base_only, found.other_only) == (2, 2, 2)
    assert {unit for pair in found.pairs for unit in pair.units} == {str(folder / "a.png")}


def test_other_instruments_of_one_name_are_refused_by_name(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", worker=rig()), run(tmp_path / "b", worker=rig(fingerprint="brightness/2"))
    with pytest.raises(UserError, match=r"the instrument brightness is another one in .*a \(brightness/1\) than in .*b \(brightness/2\)"):
        check(one, other)
    check(one, run(tmp_path / "c"))  # without the instrument: what it sees is not compared, the rest is


def test_other_settings_are_refused_by_name_unless_they_are_what_is_asked(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a", ASKED, worker=rig()), run(tmp_path / "b", Consistency(**{**vars(ASKED), "prefix": "a "}), worker=rig())
    with pytest.raises(UserError, match=r"consistency's prefix is  in .*a and a  in .*b: .*\(--across prefix\)"):
        check(one, other)
    check(one, other, ["prefix"])
    assert paired(one, other, "consistency", ["prefix"]).rate == 1.0
    with pytest.raises(UserError, match="unknown setting of a shared probe 'prefixes': did you mean 'prefix'"):
        check(one, other, ["prefixes"])


def test_what_only_chooses_rows_or_sums_them_up_may_differ(base: Run, tmp_path: Path) -> None:
    check(base, run(tmp_path / "other", small_drift(count=5, strengths=(0.3,), prompt_sets=("null",), level=0.9, tolerance=0.1)))


def test_runs_without_a_common_probe_are_refused(base: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "other", ASKED, worker=rig())
    for question in (check, shared_probes):
        with pytest.raises(UserError, match=r"base has drift, .*other has consistency: no probe is in both"):
            question(base, other)
    both = run(tmp_path / "both", small_drift(), ASKED, worker=rig())
    assert (shared_probes(base, both), shared_probes(both, other)) == (("drift",), ("consistency",))


def test_a_run_that_has_only_begun_is_told(base: Run, tmp_path: Path) -> None:
    begun = run(tmp_path / "begun")
    for file in (begun.path / "cells" / "drift").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"nothing of drift is measured in .*begun yet: run it first"):
        paired(base, begun, "drift")


def test_units_match_where_both_have_a_value_and_rounding_is_none() -> None:
    base = {"a": 1.0, "b": -2.0, "c": float("nan"), "d": 4.0, "e": 0.0, "f": 6.0}
    other = {"f": 6.0 * (1 + 3e-6), "e": 1e-12, "d": float("inf"), "c": 3.0, "b": -2.0 * (1 + 9e-7), "a": 1 - 9e-7, "g": 1.0}
    found = matched(*(Comparable("q", "q", "image", values, "is more than", "is less than") for values in (base, other)))
    assert found.units == ("a", "b", "e", "f")
    assert found.base.tolist() == [1.0, -2.0, 0.0, 6.0]
    assert found.other.tolist() == [1.0, -2.0, 1e-12, other["f"]]
