"""Studies: what a YAML file may say, and the one line that answers what it may not."""

import math
from pathlib import Path
from typing import Any

import pytest

from diffprobe.errors import UserError
from diffprobe.probes.base import Probe
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Geometry
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.speciation import Speciation
from diffprobe.runs.execute import plan
from diffprobe.runs.study import load_study, parse_probe, parse_study, preset, settings


def refusal(action: Any) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def study(tmp_path: Path, text: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return str(path)


def test_a_study_file_says_what_the_dataclass_says(tmp_path: Path) -> None:
    text = """
model: exact:gaussian
embedders: []
batch_size: 4
probes:
  - kind: drift
    strengths: [0.2, 0.4]
    prompt_sets: [null, copy]
    num_inference_steps: 10
    guidance_scale: 3
    seeds: 7
    count: 2
"""
    found = load_study(study(tmp_path, text))
    assert (found.model, found.embedders, found.batch_size) == ("exact:gaussian", (), 4)
    expected = Drift(
        strengths=(0.2, 0.4), prompt_sets=("null", "copy"), num_inference_steps=(10,), guidance_scale=(3.0,), seeds=(7,), count=2
    )
    assert found.probes == (expected,)


def test_a_bare_name_is_a_probe_with_its_defaults() -> None:
    assert parse_study({"probes": ["drift"]}).probes == (Drift(),)


@pytest.mark.parametrize("value", [None, [None], "null", ["null"]])
def test_yaml_reads_null_as_nothing_and_we_as_the_prompt_set(value: object) -> None:
    assert parse_probe({"kind": "drift", "prompt_sets": value}) == Drift(prompt_sets=("null",))


@pytest.mark.parametrize(
    "probe",
    [
        Drift(),
        Drift.preset("quick"),
        Drift.preset("standard"),
        Drift.preset("paper"),
        Drift(count=3, guidance_scale=(1.0, 7.5), num_inference_steps=(20, 50), equal_start=True, measured=64, resolution=(0, 128)),
        Consistency.preset("standard"),
        Consistency(("a fox", "a hen"), repetitions=2, seeds=(5, 3), suffix="!", negative_prompt="", height=64, jpeg_quality=75),
    ],
)
def test_settings_and_back(probe: Probe) -> None:
    assert parse_probe(settings(probe)) == probe


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"modle": "embedded", "probes": ["drift"]}, "unknown key in the study 'modle': did you mean 'model'?"),
        ({"probes": ["drfit"]}, "unknown probe 'drfit': did you mean 'drift'?"),
        ({"probes": [{"kind": "drift", "strenghts": 0.3}]}, "unknown setting of drift 'strenghts': did you mean 'strengths'?"),
        ({"probes": [{"kind": "drift", "prompt_sets": "nul"}]}, "unknown prompt set 'nul': did you mean 'null'?"),
        ({"probes": [{"kind": "drift", "prompt_sets": ["copy", "zzz"]}]}, "unknown prompt set 'zzz': choose from"),
        ({"probes": [{"kind": "drift", 5: 1}]}, "unknown setting of drift '5'"),
        ({"probes": [{"strengths": 0.3}]}, "each probe in a study needs 'kind:'"),
        ({"probes": [7]}, "each probe in a study needs 'kind:'"),
        ({"probes": "drift"}, "a study needs 'probes:', a list"),
        ({"probes": []}, "a study needs 'probes:', a list"),
        ({}, "a study needs 'probes:', a list"),
        ({"model": "a", "models": {"b": "c"}, "probes": ["drift"]}, "either 'model:' or 'models:'"),
        ({"models": ["a", "b"], "probes": ["drift"]}, "'models:' needs a name for each model"),
        ({"models": {"a": {"drift": {}}}, "probes": ["drift"]}, "the model 'a' of the study needs 'model:'"),
        ({"models": {"a": {"model": "b", "drfit": {}}}, "probes": ["drift"]}, "unknown probe of this study 'drfit': did you mean 'drift'?"),
        ({"models": {"a": {"model": "b", "drift": {"cuont": 1}}}, "probes": ["drift"]}, "unknown setting of drift 'cuont'"),
        ({"probes": [{"kind": "consistency", "prompts": 3}]}, "consistency: 'prompts.0' is 3"),
        ({"probes": [{"kind": "consistency", "repetitions": 1}]}, "one image has nothing to agree with"),
        ({"probes": ["drift", {"kind": "drift", "count": 3}]}, "the probe 'drift' comes twice"),
        ({"batch_size": 0, "probes": ["drift"]}, "the study: 'batch_size' is 0"),
        ({"batch_size": "many", "probes": ["drift"]}, "the study: 'batch_size' is 'many'"),
        ({"torch_dtype": "int8", "probes": ["drift"]}, "the study: 'torch_dtype' is 'int8'"),
        ({"model": 3, "probes": ["drift"]}, "the study: 'model' is 3"),
        ({"embedders": "clip:x", "probes": ["drift"]}, "the study: 'embedders' is 'clip:x'"),
        ({"probes": [{"kind": "drift", "count": "all"}]}, "drift: 'count' is 'all'"),
        ({"stand_ins": {"drfit.images": "x"}, "probes": ["drift"]}, "unknown probe of this study 'drfit': did you mean 'drift'?"),
        ({"stand_ins": {"drift.image": "x"}, "probes": ["drift"]}, "unknown setting of drift 'image': did you mean 'images'?"),
        ({"stand_ins": {"drift": "x"}, "probes": ["drift"]}, "unknown setting of drift ''"),
        (
            {"stand_ins": {"geometry.generated.promts": "x"}, "probes": [{"kind": "geometry", "generated": [{"prompts": ["scenes"]}]}]},
            "unknown setting of geometry 'generated.promts': did you mean 'generated.prompts'?",
        ),
        (
            {"stand_ins": {"geometry.sets.refrence": "x"}, "probes": [{"kind": "geometry", "sets": ["reference=world", "noise"]}]},
            "unknown setting of geometry 'sets.refrence': did you mean 'sets.reference'?",
        ),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "lo": math.nan}], "probes": ["drift"]}, "'reports.0.lo' is nan"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "hi": math.inf}], "probes": ["drift"]}, "'reports.0.hi' is inf"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "lo": 1, "hi": 0}], "probes": ["drift"]}, "a range from 1 down to 0"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "value": "1e500"}], "probes": ["drift"]}, "too large or too small"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "value": "0e500"}], "probes": ["drift"]}, "too large or too small"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "value": "nan"}], "probes": ["drift"]}, "'reports.0.value' is 'nan'"),
        (
            {"reports": [{"what": "x", "quantity": "drift.mse", "value": 1, "plus_minus": math.inf, "spread": "se"}], "probes": ["drift"]},
            "'reports.0.plus_minus' is inf",
        ),
        ({"reports": [{"what": "x", "note": "y", "valeu": 1}], "probes": ["drift"]}, "the study: 'reports.0.valeu' is 1"),
        ({"reports": [{"what": "x"}], "probes": ["drift"]}, "the report 'x' needs a 'quantity' and a 'value', or else a 'note'"),
        ({"reports": [{"what": "x", "note": "y", "value": 1}], "probes": ["drift"]}, "the report 'x' needs a 'quantity'"),
        ({"reports": [{"what": "x", "quantity": "mse", "value": 1}], "probes": ["drift"]}, "needs a quantity such as 'drift.mse'"),
        ({"reports": [{"what": "x", "quantity": "drift.mse"}], "probes": ["drift"]}, "with a 'value' or with 'lo' and 'hi'"),
        ({"reports": [{"what": "x", "quantity": "drift.mse", "value": 1, "lo": 0}], "probes": ["drift"]}, "with a 'value' or with"),
        (
            {"reports": [{"what": "x", "quantity": "drift.mse", "value": 1, "plus_minus": 1}], "probes": ["drift"]},
            "'plus_minus' and 'spread: sd'",
        ),
        (
            {"reports": [{"what": "x", "quantity": "drift.mse", "value": 1, "plus_minus": 1, "spread": "sd"}], "probes": ["drift"]},
            "with sd also 'n'",
        ),
        (
            {"reports": [{"what": "x", "quantity": "drift.mse", "lo": 1, "plus_minus": 1, "spread": "se"}], "probes": ["drift"]},
            "a range has none",
        ),
        ({"reports": [{"what": "x", "quantity": "drfit.mse", "value": 1}], "probes": ["drift"]}, "unknown probe of this study 'drfit'"),
        (
            {"models": {"a": "b"}, "reports": [{"what": "x", "quantity": "drift.mse", "value": 1}], "probes": ["drift"]},
            "the report 'x' needs 'model:', one of a",
        ),
        (
            {"models": {"a": "b"}, "reports": [{"what": "x", "note": "y", "model": "c"}], "probes": ["drift"]},
            "unknown model of this study 'c'",
        ),
        ({"probes": [{"kind": "drift", "count": 2.5}]}, "drift: 'count' is 2.5"),
        ({"probes": [{"kind": "drift", "budget": "maybe"}]}, "drift: 'budget' is 'maybe'"),
        ({"probes": [{"kind": "drift", "strengths": ["strong"]}]}, "drift: 'strengths.0' is 'strong'"),
        ({"probes": [{"kind": "drift", "strengths": {"a": 1}}]}, "drift: 'strengths.0' is {'a': 1}"),
        ({"probes": [{"kind": "drift", "num_inference_steps": 7.5}]}, "drift: 'num_inference_steps.0' is 7.5"),
    ],
)
def test_what_is_not_known_or_of_the_wrong_kind_is_one_line(content: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: parse_study(content))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strengths": 0}, "strength 0.0 is outside (0, 1]"),
        ({"strengths": -0.5}, "strength -0.5 is outside (0, 1]"),
        ({"strengths": 1.2}, "strength 1.2 is outside (0, 1]"),
        ({"strengths": math.nan}, "strength nan is outside (0, 1]"),
        ({"strengths": math.inf}, "strength inf is outside (0, 1]"),
        ({"strengths": 0.05}, "strength 0.05 runs no step of 15: use a strength of at least 0.067, or at least 20 num_inference_steps"),
        ({"strengths": []}, "drift needs at least one value in 'strengths'"),
        ({"strengths": [0.3, 0.3]}, "drift's 'strengths' names a value twice"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 must be at least 1"),
        ({"guidance_scale": -1}, "guidance_scale must be"),
        ({"guidance_scale": math.nan}, "guidance_scale must be"),
        ({"resolution": 100}, "resolution must be a multiple of 8"),
        ({"count": 0}, "count must be at least 1"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"tolerance": 0}, "tolerance above 0"),
        ({"tolerance": math.nan}, "tolerance above 0"),
    ],
)
def test_a_setting_out_of_range_is_one_line(changes: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: parse_probe({"kind": "drift", **changes}))


def test_the_smallest_strength_that_is_proposed_is_accepted() -> None:
    assert Drift(strengths=(0.067,)).strengths == (0.067,)


def test_images_that_are_not_there_stop_the_plan() -> None:
    assert "no images at 'nowhere': give a folder, a manifest" in refusal(lambda: plan([Drift(images="nowhere")]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("probes: [drift", "is no valid YAML"),
        ("just words", "must hold keys such as 'model:' and 'probes:'"),
        ("", "must hold keys such as 'model:' and 'probes:'"),
        ("!!python/object/apply:os.getcwd []", "is no valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in refusal(lambda: load_study(study(tmp_path, text)))


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"\xff\xfe\x00\x9f")
    assert "is no valid YAML" in refusal(lambda: load_study(str(path)))


def test_a_study_that_is_not_there_is_one_line() -> None:
    assert refusal(lambda: load_study("nope.yaml")) == "no study file at 'nope.yaml'"
    assert refusal(lambda: load_study("noop-bensh")) == "unknown study 'noop-bensh': did you mean 'noop-bench'?"


def test_presets_by_name() -> None:
    assert preset([], "quick") == tuple(kind.preset("quick") for kind in (Drift, Consistency, Geometry, Interpolation, Speciation))
    assert preset(["drift"], "quick") == (Drift.preset("quick"),)
    assert refusal(lambda: preset(["drfit"], "quick")) == "unknown probe 'drfit': did you mean 'drift'?"
