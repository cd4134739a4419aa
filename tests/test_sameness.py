"""Whether a run is one of a study: its model, settings, data and precision, each difference with both values."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.runs import places
from diffprobe.runs.published import check
from diffprobe.runs.result import Run, start
from diffprobe.runs.sameness import same_dtype, same_measurement, same_model
from diffprobe.runs.study import load_study, parse_study
from tests.checked import PROBE, about, only, study
from tests.small import gaussian, small_drift


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(gaussian(), [small_drift()], tmp_path_factory.mktemp("check") / "run")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"probes": [{**PROBE, "guidance_scale": 3}]}, "its guidance_scale is [5.0], and the recipe's [3.0]"),
        ({"probes": [{**PROBE, "strengths": [0.3, 0.6, 0.9]}]}, "its strengths is [0.3, 0.6]"),
        ({"model": "exact:gmm"}, "the source of its model is exact:gaussian, and the recipe's exact:gmm"),
        ({"model": "stabilityai/some-model"}, "the source of its model is exact:gaussian, and the recipe's stabilityai/some-model"),
        (
            {"stand_ins": {"drift.images": "photographs"}},
            "drift.images stands in for photographs (where it does not, delete that line of 'stand_ins' in your copy)",
        ),
        ({"reports": [about(value=1, facets={"strength": 0.5})]}, "the run has no estimate drift.mse with strength 0.5"),
        ({"reports": [about(value=1, facets={"prompt_set": "empty"})]}, "the run has 2 estimates drift.mse with prompt_set empty"),
        ({"reports": [about(value=1, quantity="drift.lpips:alex")]}, "the run has no estimate drift.lpips:alex"),
        ({"reports": [{"what": "said in words", "note": "words"}]}, "words"),
        (
            {"probes": [{**PROBE, "guidance_scale": 3, "seeds": 7, "num_inference_steps": 20, "budget": False, "measured": 8}]},
            "2 more of its settings differ: seeds, budget",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(run: Run, changed: dict[str, Any], told: str) -> None:
    content = {"reports": [about(value=0.01)], **changed}
    found = only(run, study(*content.pop("reports"), **content))
    assert found.outcome == "not comparable"
    assert told in found.why


def test_pictures_and_thresholds_are_no_difference(run: Run) -> None:
    asked = study(about(lo=0), probes=[{**PROBE, "keep_images": 3, "tolerance": 0.5}])
    assert only(run, asked).outcome == "agree"


def test_other_data_are_taken_for_the_studys_own_and_it_is_said(run: Run, tmp_path: Path) -> None:
    asked = study(about(lo=0), stand_ins={"drift.images": "photographs"}, probes=[{**PROBE, "images": "rendered"}])
    found = only(run, asked)
    assert found.outcome == "agree"
    assert found.caveats == ("that drift.images is photographs is taken on trust",)


@pytest.mark.parametrize(
    ("facts", "outcome", "told"),
    [
        ({"scheduler": "DDIMScheduler, leading, epsilon"}, "agree", ""),
        (
            {"scheduler": "PNDMScheduler, leading"},
            "not comparable",
            "its pipeline samples with PNDMScheduler, and the study's with DDIMScheduler",
        ),
        ({}, "agree", "that its pipeline samples with DDIMScheduler is not recorded"),
    ],
)
def test_the_sampler_of_the_study(facts: dict[str, str], outcome: str, told: str, tmp_path: Path) -> None:
    path = start(gaussian(), [small_drift()], tmp_path / "run").path
    identity = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**identity, "facts": facts}))
    found = only(Run(path), study(about(lo=0), scheduler="DDIMScheduler"))
    assert found.outcome == outcome
    assert told == (found.why if outcome == "not comparable" else "; ".join(found.caveats))


def test_a_run_that_is_not_whole_is_not_comparable(tmp_path: Path) -> None:
    half = start(gaussian(), [small_drift()], tmp_path / "half")
    next((half.path / "cells" / "drift").glob("*.parquet")).unlink()
    found = only(Run(half.path), study(about(lo=0)))
    assert (found.outcome, found.why) == ("not comparable", "1 of its 5 cells are not measured")


def described(*prompts: str) -> dict[str, Any]:
    drawn = [{"name": f"set {place}", "prompts": [text], "num_inference_steps": 2} for place, text in enumerate(prompts)]
    return {"kind": "geometry", "sets": [], "generated": drawn, "directions": 2}


def test_an_item_of_a_list_that_still_stands_in_is_told(tmp_path: Path) -> None:
    found = start(Rig(exact_model("gmm"), {}), parse_study({"probes": [described("class 0", "class 1")]}).probes, tmp_path / "run")
    asked = [{"what": "psi", "quantity": "geometry.psi", "facets": {"set": "set 0"}, "lo": -1e9}]

    def why(*prompts: str, **stand_ins: str) -> str:
        places = {f"geometry.generated.{name.replace('_', ' ')}": what for name, what in stand_ins.items()}
        return only(found, parse_study({"probes": [described(*prompts)], "model": "exact:gmm", "stand_ins": places, "reports": asked})).why

    assert why("class 2", "class 1", prompts="captions").startswith("geometry.generated.prompts stands in for captions")
    assert why("class 2", "class 3", prompts="captions").endswith("it lies inside")
    both = {"set_0.prompts": "captions", "set_1.prompts": "others"}
    told = why("class 2", "class 1", **both)
    assert told.startswith("geometry.generated.set 1.prompts stands in for others")
    assert "captions" not in told


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["reference=world", "xray=strokes", "noise"], ["sets.reference stands in", "sets.xray stands in"]),
        (["reference=/data/imagenet", "xray=strokes", "noise"], ["sets.xray stands in"]),
        (["reference=/data/imagenet", "xray=/data/xray", "noise"], []),
        (["noise", "reference=world", "xray=/data/xray"], ["sets.reference stands in", "its sets is"]),
        (["reference=/data/imagenet", "xray=/data/xray"], ["its sets is"]),
        (["reference=/data/imagenet", "xray=/data/xray", "strokes"], ['its sets is ["reference=…", "xray=…", "strokes"]']),
    ],
)
def test_sets_are_compared_item_by_item_and_noise_stands_for_nothing(run: Run, sets: list[str], told: list[str]) -> None:
    asked = load_study("geometry-sd14")
    (probe,) = asked.probes
    found = Run(run.path)
    found.probes = (replace(probe, sets=tuple(sets)),)
    *differences, unplanned = same_measurement(found, probe, asked.stand_ins).differences
    assert unplanned == "its plan has no cell of geometry"
    assert len(differences) == len(told)
    assert all(part in line for part, line in zip(told, differences, strict=True))


def test_the_reference_of_a_sweep_may_lie_anywhere(run: Run) -> None:
    (probe,) = load_study("speciation-edm2-sweep").probes
    found = Run(run.path)
    for folder, differences, unproved in (("/data/val", 0, ["that /data/val holds imagenet cannot be proved"]), ("imagenet", 0, [])):
        found.probes = (replace(probe, sweep=replace(probe.sweep, reference=folder)),)
        same = same_measurement(found, probe, {})
        assert len(same.differences) == differences + 1  # and the cells that are not there
        assert list(same.unproved) == unproved
    found.probes = (replace(probe, sweep=replace(probe.sweep, k=3, prompts=("class 0", "class 2", *probe.sweep.prompts[2:]))),)
    assert same_measurement(found, probe, {}).differences[0] == 'its sweep.prompts.1 is "class 2", and the recipe\'s "class 1"'


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (3, 5, "its x is 3, and the recipe's 5"),
        ([1, 2], [1, 2, 3], "its x is [1, 2], and the recipe's [1, 2, 3]"),
        ({"a": 1, "k": 3}, {"a": 1, "k": 5}, "its x.k is 3, and the recipe's 5"),
        (None, {"k": 5}, 'its x is null, and the recipe\'s {"k": 5}'),
        (
            [{"name": "a", "k": 1}, {"name": "b", "k": 2}],
            [{"name": "a", "k": 1}, {"name": "b", "k": 3}],
            "its x.b.k is 2, and the recipe's 3",
        ),
        ([{"k": 1}], [{"k": 1}, {"k": 2}], 'its x.1 is nothing, and the recipe\'s {"k": 2}'),
        (list(range(90)), [*range(89), 5], "its x.89 is 89, and the recipe's 5"),
        ("a" * 100 + "b", "a" * 100 + "c", f'its x is …{"a" * 12}b", and the recipe\'s …{"a" * 12}c"'),
    ],
)
def test_a_difference_is_told_at_its_first_leaf_with_both_values(one: object, other: object, told: str) -> None:
    assert places.difference(one, other, "x") == told


@pytest.mark.parametrize(
    ("path", "found"),
    [(["a"], [1]), (["sets", "m"], ["m=world"]), (["drawn", "p"], [1, 2]), (["drawn", "two", "p"], [2]), (["drawn", "three", "p"], [])],
)
def test_what_lies_at_a_place(path: Sequence[str], found: list[object]) -> None:
    value = {"a": 1, "sets": ["m=world", "noise"], "drawn": [{"name": "one", "p": 1}, {"name": "two", "p": 2}]}
    assert places.at(value, path) == found
    blank = places.blanked(value, path)
    assert (blank == value) is not bool(found)
    assert len(places.at(blank, path)) == len(found)


def test_a_recipe_that_is_copied_run_and_checked_with_the_copy_is_compared(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index in range(4):
        pixels = rng.stream("tests.photographs", index).integers(0, 256, (8, 8, 3)).astype("uint8")
        Image.fromarray(pixels).save(photographs / f"{index}.png")
    probe = {**PROBE, "budget": False}
    content = {"model": "exact:gaussian", "embedders": [], "probes": [probe], "reports": [about(lo=0)]}
    stands = {"stand_ins": {"drift.images": "photographs"}}
    shipped, kept, cleared = (tmp_path / f"{name}.yaml" for name in ("shipped", "kept", "cleared"))
    shipped.write_text(json.dumps(content | stands))
    own = content | {"probes": [{**probe, "images": str(photographs)}]}
    kept.write_text(json.dumps(own | stands))
    cleared.write_text(json.dumps(own))

    run = start(gaussian(), load_study(str(cleared)).probes, tmp_path / "run")
    found = only(run, load_study(str(cleared)))
    assert (found.outcome, found.caveats) == ("agree", ())
    found = only(run, load_study(str(shipped)))
    assert (found.outcome, found.caveats) == ("agree", ("that drift.images is photographs is taken on trust",))
    found = only(run, load_study(str(kept)))
    assert (found.outcome, "delete that line of 'stand_ins' in your copy" in found.why) == ("not comparable", True)
    stood = start(gaussian(), load_study(str(shipped)).probes, tmp_path / "stood")
    assert only(stood, load_study(str(shipped))).outcome == "not comparable"


@pytest.mark.parametrize(
    ("about_model", "asked", "differs", "unproved"),
    [
        ({"dtype": "float16"}, "float16", False, False),
        ({"dtype": "float32"}, "float16", True, False),
        ({}, "float16", False, True),
        ({"dtype": "float32"}, None, False, False),
    ],
)
def test_the_precision_of_the_study(about_model: dict[str, str], asked: str | None, differs: bool, unproved: bool) -> None:
    found = same_dtype(about_model, asked)
    assert (bool(found.differences), bool(found.unproved)) == (differs, unproved)


def test_a_run_in_another_precision_is_not_comparable(run: Run, tmp_path: Path) -> None:
    path = start(gaussian(), [small_drift()], tmp_path / "run").path
    content = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**content, "model": {**content["model"], "dtype": "float32"}}))
    found = only(Run(path), study(about(lo=0), torch_dtype="float16"))
    assert (found.outcome, found.why) == ("not comparable", "its model ran in float32, and the recipe's in float16")
    assert only(run, study(about(lo=0), torch_dtype="float16")).caveats == ("that its model ran in float16 is not recorded",)


def test_a_run_without_a_plan_is_not_complete(tmp_path: Path) -> None:
    path = start(gaussian(), [small_drift()], tmp_path / "run").path
    (path / "plan.json").write_text("{}")
    assert only(Run(path), study(about(lo=0))).why == "its plan has no cell of drift"


@pytest.mark.parametrize("changed", [{"model": "x"}, {"model": {"source": 5}}, {"facts": [1]}])
def test_a_run_json_with_odd_content_is_one_line(changed: dict[str, Any], tmp_path: Path) -> None:
    path = start(gaussian(), [small_drift()], tmp_path / "run").path
    content = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**content, **changed}))
    with pytest.raises(UserError, match=f"run.json is damaged \\('{next(iter(changed))}' is not what a run writes\\)"):
        check(Run(path), study(about(lo=0)))


def test_several_models_are_told_apart_by_source_or_name(run: Run) -> None:
    models = {"world": "exact:gaussian", "other": "exact:gmm"}
    asked = parse_study({"models": models, "probes": [PROBE], "reports": [about(lo=0, model=name) for name in models]})
    first, second = check(run, asked)
    assert (first.outcome, second.outcome, second.why) == ("agree", "not comparable", "there is no run of other")
    with pytest.raises(UserError, match="the study has no model 'third'"):
        check({"third": run}, asked)
    twice = parse_study({"models": {"a": "exact:gaussian", "b": "exact:gaussian"}, "probes": [PROBE]})
    with pytest.raises(UserError, match="could be any of the study's models \\(a, b\\)"):
        check(run, twice)
    none = parse_study({"models": {"a": "some/a", "b": "some/b"}, "probes": [PROBE]})
    with pytest.raises(UserError, match="is a run of none of the study's models \\(a, b\\): the source of its model is exact:gaussian"):
        check(run, none)


def test_a_run_is_known_by_the_directory_that_it_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = start(gaussian(), [small_drift()], tmp_path / "the-first")
    models = {"the first": "exact:gaussian", "second": "exact:gaussian"}
    asked = parse_study({"models": models, "probes": [PROBE], "reports": [about(lo=0, model=name) for name in models]})
    assert [verdict.outcome for verdict in check(found, asked)] == ["agree", "not comparable"]
    monkeypatch.chdir(found.path)
    assert [verdict.outcome for verdict in check(Run(Path()), asked)] == ["agree", "not comparable"]


def test_a_study_of_one_model_takes_its_run_whatever_it_is(run: Run) -> None:
    named = parse_study({"models": {"base": "some/a"}, "probes": [PROBE], "reports": [about(lo=0, model="base")]})
    assert only(run, named).why == "the source of its model is exact:gaussian, and the recipe's some/a"
    with pytest.raises(UserError, match="it has one, without a name: give its run alone"):
        check({"base": run}, study(about(lo=0)))


@pytest.mark.parametrize(
    ("identity", "spec", "differs", "unproved"),
    [
        ({"source": "a/b", "commit": "1", "family": "X"}, "a/b", False, False),
        ({"source": "a/c", "commit": "1", "family": "X"}, "a/b", True, False),
        ({"source": "/data/b", "family": "X"}, "a/b", False, True),
        ({"source": "embedded", "family": "X"}, "a/b", True, False),
        ({"source": "embedded-pastel", "lora_source": "embedded-pastel", "family": "X"}, "embedded-pastel", False, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l", "lora_scale": "0.6"}, "a/b+0.6*l", False, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l", "lora_scale": "0.7"}, "a/b+0.6*l", True, False),
        ({"source": "a/b", "commit": "1", "family": "X"}, "a/b+0.6*l", True, False),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "/data/l", "lora_scale": "0.6"}, "a/b+0.6*monet", False, True),
        (
            {"source": "a/b", "commit": "1", "family": "X", "lora_source": "me/l", "lora_commit": "2", "lora_scale": "0.6"},
            "a/b+0.6*monet",
            False,
            True,
        ),
        (
            {"source": "a/b", "commit": "1", "family": "X", "lora_source": "me/l", "lora_commit": "2", "lora_scale": "0.6"},
            "a/b+0.6*you/l",
            True,
            False,
        ),
        ({"source": "a/b", "commit": "1", "family": "X", "lora_source": "l"}, "a/b", True, False),
        ({"source": "/d/x.pkl", "unconditional": "/d/u.pkl", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl,vae=v", False, True),
        ({"source": "/d/y.pkl", "unconditional": "/d/u.pkl", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl", True, True),
        ({"source": "x.pkl", "unconditional": "zeros in place of a class", "family": "EDM2"}, "edm2:x.pkl,uncond=u.pkl", True, False),
    ],
)
def test_the_same_model(identity: dict[str, str], spec: str, differs: bool, unproved: bool) -> None:
    found = same_model({**identity, "weights": "sha256:0"}, spec)
    assert (bool(found.differences), bool(found.unproved)) == (differs, unproved)
