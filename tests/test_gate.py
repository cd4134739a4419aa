"""The gate on runs of exact worlds: what a rule names, what is compared with what, what is written, and the exit codes."""

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest

import diffprobe as dp
from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.probes.consistency import Consistency
from diffprobe.runs.gate import GateResult, gate
from diffprobe.runs.gating.ruling import Ruling
from diffprobe.runs.result import Run, open_run, start
from tests import test_cli
from tests.small import Pixels, gaussian, small_drift
from tests.test_cli import Command, refused
from tests.test_pairing import flag
from tests.test_result import Brightness

diffprobe = test_cli.diffprobe

DRIFT = small_drift(count=12, strengths=(0.2, 0.3, 0.45, 0.6))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start(gaussian(), [DRIFT], tmp_path_factory.mktemp("gate") / "base")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twice the steps: a little more drift."""
    return start(gaussian(), [replace(DRIFT, num_inference_steps=(30,))], tmp_path_factory.mktemp("gate") / "steps")


@pytest.fixture
def partial(base: Run, tmp_path: Path) -> Run:
    """The baseline without its edits at 0.6."""
    path = tmp_path / "partial"
    shutil.copytree(base.path, path)
    for file in (path / "cells" / "drift").iterdir():
        table = pq.read_table(file)
        if table.schema.metadata[b"class"] == b"Edits" and table["requested_strength"][0].as_py() == 0.6:
            file.unlink()
    return open_run(path)


def one(run: Run | Path, baseline: Run | Path | None, rule: str, **options: object) -> Ruling:
    return gate(run, baseline, rule, **options).outcomes[0]  # type: ignore[arg-type]


def value(run: Run, quantity: str, **facets: object) -> float:
    found = run.table[run.table["quantity"] == quantity]
    for name in ("strength", "domain"):
        found = found[found[name] == facets[name] if name in facets else found[name].isna()]
    return float(found["value"].iloc[0])


def test_a_run_against_itself_is_exactly_equal(base: Run) -> None:
    found = gate(base, base.path, ["drift.k <= baseline", "drift.psnr within 0.1 of baseline", "drift.mse < baseline"])
    assert [told.outcome for told in found.outcomes] == ["pass", "pass", "fail"]
    assert [told.rate for told in found.outcomes] == [1.0] * 3
    assert found.exit_code == 1


def test_the_three_outcomes_of_paired_quantities(base: Run, steps: Run) -> None:
    mse = {run: value(run, "mse") for run in (base, steps)}
    rules = ["drift.mse <= 1.2*baseline", "drift.mse <= baseline", f"drift.mse <= baseline + {mse[steps] - mse[base]:.9f}"]
    found = gate(steps, base, rules, across=["num_inference_steps"])
    assert [told.outcome for told in found.outcomes] == ["pass", "fail", "inconclusive"]
    assert all(told.paired and told.n == 12 for told in found.outcomes)
    assert [told.value for told in found.outcomes] == pytest.approx([mse[steps]] * 3)
    assert found.outcomes[1].threshold == pytest.approx(mse[base])
    assert "The same strength starts at another noise level" in found.notes[0]


def test_a_facet_names_one_of_many(base: Run, steps: Run) -> None:
    told = one(steps, base, "drift.mse{strength=0.3} >= baseline", across=["num_inference_steps"])
    rows = [run.records("drift").query("requested_strength == 0.3")["mse"].mean() for run in (steps, base)]
    assert [told.value, told.threshold] == pytest.approx(rows)
    assert (told.outcome, told.paired) == ("pass", True)
    again = one(steps, base, "drift.mse{strength=.30, num_inference_steps=30} >= baseline", across="num_inference_steps")
    assert again.room == told.room


def test_what_has_no_units_is_compared_unpaired(base: Run, steps: Run) -> None:
    across = ["num_inference_steps"]
    told = one(steps, base, "drift.codec_share within 0.5 of baseline", across=across)
    assert (told.outcome, told.paired, told.rate) == ("pass", False, None)
    assert told.value == pytest.approx(value(steps, "codec_share"))
    domain = base.records("drift")["domain"].iloc[0]
    told = one(steps, base, f"drift.mse{{strength=0.6, domain={domain}, num_inference_steps=30}} <= 9*baseline", across=across)
    assert (told.outcome, told.paired) == ("pass", False)
    assert told.value == pytest.approx(value(steps, "mse", strength=0.6, domain=domain))


def test_unpaired_estimates_of_other_settings_are_not_compared(base: Run, tmp_path: Path) -> None:
    other = start(gaussian(), [replace(DRIFT, count=8)], tmp_path)
    told = one(other, base, "drift.codec_share <= 2*baseline")
    assert told.outcome == "inconclusive"
    assert "drift's count is 12 in" in told.sentence
    assert "or say that it may differ (--across count)" in told.sentence
    assert one(other, base, "drift.codec_share <= 2*baseline", across=["count"]).paired is False
    told = one(other, base, "drift.mse <= 2*baseline")
    assert (told.outcome, told.n) == ("pass", 8)
    assert told.rate == pytest.approx(8 / 12)
    assert "67 % of the rows" in told.sentence


def test_a_number_needs_no_baseline(base: Run) -> None:
    row = base.table.query("quantity == 'mse' and strength.isna()").iloc[0]
    rules = [f"drift.mse <= {row['hi'] * 1.01}", f"drift.mse >= {row['hi'] * 1.01}", f"drift.mse <= {row['value'] * 1.05}"]
    found = gate(base, None, rules)
    assert [told.outcome for told in found.outcomes] == ["pass", "fail", "inconclusive"]
    told = found.outcomes[2]
    assert told.lo == pytest.approx(row["value"] * 1.05 - row["hi"])
    assert "images would decide" in told.sentence
    assert (told.paired, found.baseline) == (None, None)


def test_the_level_is_the_gates_own_and_not_the_studys(base: Run) -> None:
    row = base.table.query("quantity == 'mse' and strength.isna()").iloc[0]
    rule = f"drift.mse <= {row['value'] + 0.7 * (row['hi'] - row['value'])}"
    assert [one(base, None, rule, level=level).outcome for level in (0.95, 0.6)] == ["inconclusive", "pass"]


def test_what_was_not_measured_or_has_no_interval_is_inconclusive_with_the_reason(base: Run) -> None:
    found = gate(base, None, ["drift.strength_budget >= 0.2", "drift.law_share >= 0.5"])
    assert [told.outcome for told in found.outcomes] == ["inconclusive"] * 2
    assert "it has no value in" in found.outcomes[0].sentence
    assert "over the tolerance of 0.005" in found.outcomes[0].sentence
    assert "it has no interval in" in found.outcomes[1].sentence
    assert (found.exit_code, found.passed) == (3, False)


def test_one_unit_has_no_interval(tmp_path: Path) -> None:
    small = start(gaussian(), [small_drift(count=1)], tmp_path)
    assert "an interval needs two images with a value in both runs, and there is 1" in one(small, small, "drift.mse <= baseline").sentence
    assert "it has no interval" in one(small, None, "drift.mse <= 1").sentence


def test_no_flag_is_a_count_of_none_and_flags_of_all_reasons_are_added(base: Run, tmp_path: Path) -> None:
    assert one(base, None, "drift.flagged <= 0").outcome == "pass"
    assert one(base, None, "drift.samples{of=edits} >= 48").outcome == "pass"
    spoilt = flag(start(gaussian(), [DRIFT], tmp_path / "run"), list(base.records("drift")["image"].iloc[:2]))
    found = gate(
        spoilt, base, ["drift.flagged <= 7", "drift.flagged{of=originals} <= 0", "drift.flagged <= baseline + 8", "drift.k <= baseline"]
    )
    assert [told.outcome for told in found.outcomes] == ["fail", "pass", "pass", "pass"]
    assert found.outcomes[0].value == 8
    assert found.outcomes[3].n == 10
    assert found.outcomes[3].rate == pytest.approx(10 / 12)


def test_counts_of_other_numbers_of_samples_are_not_compared(base: Run, tmp_path: Path) -> None:
    other = start(gaussian(), [replace(DRIFT, count=8)], tmp_path)
    told = one(other, base, "drift.flagged{of=edits} <= baseline")
    assert told.outcome == "inconclusive"
    assert f"it is 0 of 32 samples in {other.path}, and 0 of 48 in {base.path}: measure as many in both" in told.sentence
    assert one(other, base, "drift.flagged{of=edits} <= 0").outcome == "pass"
    assert one(other, base, "drift.samples{of=edits} >= baseline").outcome == "fail"
    assert "(a count, of 48, and of 48 in the baseline)" in one(base, base, "drift.flagged{of=edits} <= baseline").sentence


def test_consistency_pairs_by_prompt_and_one_prompt_has_images(tmp_path: Path) -> None:
    asked = Consistency(prompts=("class 0", "class 1", "class 2"), repetitions=4)
    rig, across = Rig(exact_model("gmm"), {"pixels": Pixels()}), ["num_inference_steps"]
    runs = [start(rig, [replace(asked, num_inference_steps=steps)], tmp_path / str(steps)) for steps in (4, 8)]
    told = one(runs[0], runs[1], "consistency.scs:pixels within 2 of baseline", across=across)
    assert (told.outcome, told.n, told.paired) == ("pass", 3, True)
    assert "3 prompts, paired" in told.sentence
    told = one(runs[0], runs[1], "consistency.scs:pixels{prompt=class 1} within 5 of baseline", across=across)
    assert (told.outcome, told.n, told.paired) == ("pass", 4, False)
    assert "n = 4 images, unpaired, 4 in the baseline" in told.sentence


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("drfit.k <= 1", "unknown probe of .*base 'drfit': did you mean 'drift'?"),
        ("drift.codec_shre <= 1", "unknown quantity of drift in .*base 'codec_shre': did you mean 'codec_share'?"),
        ("drift.codec_shre <= baseline", "unknown quantity of drift in .*base 'codec_shre': did you mean 'codec_share'?"),
        ("drift.mse{strenght=0.3} <= 1", "unknown facet of drift.mse 'strenght': did you mean 'strength'?"),
        ("drift.mse{strength=0.31} <= baseline", "unknown strength of drift.mse '0.31': did you mean '0.3'?"),
        ("drift.k{strength=0.3} <= 1", "unknown facet of drift.k 'strength': choose from nothing"),
        ("drift.flagged{flag=odd} <= 1", "unknown facet of drift.flagged 'flag': choose from of"),
        ("drift.floor_share <= 1", r"drift.floor_share means 4 quantities: say in braces which strength \(0.2, 0.3, 0.45, 0.6\) or steps"),
        (
            "drift.samples <= 1",
            r"drift.samples means 2 quantities: say in braces which of \(edits, originals\), such as drift.samples{of=edits}",
        ),
        ("drift.k <=", "the rule 'drift.k <=' cannot be read at its end"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(base: Run, rule: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        gate(base, base, rule)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_facets_that_leave_several_say_what_to_add(tmp_path: Path) -> None:
    run = start(gaussian(), [small_drift(prompt_sets=("null", "empty"), budget=False)], tmp_path)
    with pytest.raises(
        UserError,
        match=r"means 2 quantities: say in braces which prompt_set \(null, empty\), such as drift.mse{strength=0.6, prompt_set=null}",
    ):
        gate(run, run, "drift.mse{strength=0.6} <= baseline")
    assert one(run, run, "drift.mse{strength=0.6, prompt_set=empty} <= baseline").outcome == "pass"


@pytest.mark.parametrize(
    ("rules", "options", "told"),
    [
        ([], {}, "a gate needs a rule"),
        (["drift.k <= baseline"], {}, r"the rule 'drift.k <= baseline' speaks of a baseline: name that run \(--baseline RUN\)"),
        (["drift.k <= 1"], {"across": ["seeds"]}, "without a baseline there is nothing to compare across"),
        (["drift.k <= 1"], {"level": 0.2}, "level 0.2 must be at least 0.5"),
        (["drift.k <= 1"], {"level": 1.0}, "level 1 must be at least 0.5"),
    ],
)
def test_what_is_asked_amiss_is_one_line(base: Run, rules: list[str], options: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        gate(base, None, rules, **options)  # type: ignore[arg-type]


def test_runs_that_do_not_pair_are_refused_with_the_cause(base: Run, steps: Run, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no row of drift pairs, since num_inference_steps is 15 in .* and 30 in .*--across num_inference_steps"
    ):
        gate(steps, base, "drift.k <= baseline")
    shutil.copytree(steps.path, tmp_path / "unfinished")
    next((tmp_path / "unfinished" / "cells" / "drift").iterdir()).unlink()
    with pytest.raises(UserError, match="no row of drift pairs") as caught:
        gate(tmp_path / "unfinished", base, "drift.k <= baseline")
    assert caught.value.exit_code == 3
    with pytest.raises(UserError, match="unknown setting of a shared probe 'num_steps'"):
        gate(steps, base, "drift.k <= baseline", across=["num_steps"])
    runs = [
        start(Rig(exact_model("gaussian"), {"brightness": Brightness(f"brightness/{version}")}), [small_drift()], tmp_path / str(version))
        for version in (1, 2)
    ]
    with pytest.raises(UserError, match="the instrument brightness is another one"):
        gate(runs[0], runs[1], "drift.k <= baseline")


def test_an_incomplete_run_is_ruled_and_told_and_does_not_pass(base: Run, partial: Run, tmp_path: Path) -> None:
    found = gate(partial, base, ["drift.mse <= baseline", "drift.mse{strength=0.6} <= 1", "drift.mse{strength=0.3} <= baseline"])
    assert [told.outcome for told in found.outcomes] == ["pass", "inconclusive", "pass"]
    assert "is incomplete: unknown strength of drift.mse '0.6'" in found.outcomes[1].sentence
    assert found.outcomes[0].rate == pytest.approx(3 / 4)
    assert found.notes[0].startswith(f"{partial.path} is incomplete: ")
    whole = gate(base, partial, "drift.mse <= baseline")
    assert [told.outcome for told in whole.outcomes] == ["pass"]
    assert (whole.exit_code, whole.passed, whole.incomplete) == (3, False, {"baseline": whole.notes[0]})
    assert gate(partial, base, "drift.mse < baseline").exit_code == 1
    root = ET.fromstring(whole.junit())
    assert [root.get(name) for name in ("tests", "failures", "skipped")] == ["3", "0", "1"]
    skipped = {case.get("name"): told.get("message") for case in root.iter("testcase") for told in case.iter("skipped")}
    assert skipped == {"the baseline is whole": whole.notes[0]}
    shutil.copytree(partial.path, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "cells")
    told = one(tmp_path / "empty", base, "drift.mse <= baseline")
    assert told.sentence == f"drift.mse cannot be decided: nothing of drift is measured in {tmp_path / 'empty'} yet."


MIXED = ("drift.k <= 1.5*baseline", "drift.k < baseline", "drift.law_share <= 0.5")


@pytest.fixture(scope="module")
def mixed(base: Run) -> GateResult:
    return gate(base, base, MIXED)


def test_the_result_is_that_of_all_rules(base: Run, mixed: GateResult) -> None:
    assert dp.gate is gate
    assert [told.outcome for told in mixed.outcomes] == ["pass", "fail", "inconclusive"]
    assert (mixed.outcome, mixed.exit_code, mixed.passed) == ("fail", 1, False)
    assert (gate(base, base, MIXED[2]).exit_code, gate(base, base, MIXED[0]).exit_code) == (3, 0)
    assert gate(base, base, MIXED[0]).passed
    assert len(gate(base, base, [MIXED[0], MIXED[0]]).outcomes) == 1


def test_junit_has_a_case_a_rule_and_skips_what_is_inconclusive(mixed: GateResult) -> None:
    root = ET.fromstring(mixed.junit().encode())
    suite = root.find("testsuite")
    assert root.tag == "testsuites"
    assert suite is not None
    for element in (root, suite):
        assert {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
            "tests": "5",
            "failures": "1",
            "errors": "0",
            "skipped": "1",
        }
    *cases, run, baseline = suite.findall("testcase")
    assert [(case.get("name"), len(case)) for case in (run, baseline)] == [("the run is whole", 0), ("the baseline is whole", 0)]
    assert [case.get("name") for case in cases] == list(MIXED)
    assert {case.get("classname") for case in cases} == {"diffprobe.gate.drift"}
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["failure", "system-out"], ["skipped", "system-out"]]
    for case, told in zip(cases, mixed.outcomes, strict=True):
        assert case.findtext("system-out") == told.sentence
        assert all(child.get("message") == told.sentence for child in case if child.tag != "system-out")
    about = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert (about["level"], about["outcome"], about["run"]) == ("0.95", "fail", mixed.run)


def test_junit_is_readable_whatever_a_rule_says() -> None:
    odd = Ruling('consistency.scs:e{prompt=<a & "b"> \x00\x0b} > 1', "consistency", "fail", "tab\t\x1b[0m ]]> \ud800")
    root = ET.fromstring(GateResult("a<b", None, 0.95, (odd,), ("n\x07te",)).junit())
    case = next(root.iter("testcase"))
    assert case.get("name") == 'consistency.scs:e{prompt=<a & "b"> \ufffd\ufffd} > 1'
    assert case.findtext("system-out") == "tab\t\ufffd[0m ]]> \ufffd"


def test_markdown_is_a_table_that_shows_what_was_written(mixed: GateResult) -> None:
    lines = mixed.markdown().splitlines()
    assert lines[0].startswith("## FAIL: ")
    assert lines[2:4] == ["| outcome | rule | what was found |", "| --- | --- | --- |"]
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| pass", "| FAIL", "| inconclusive"]
    assert r"drift.k &lt;= 1.5\*baseline" in lines[4]
    told = replace(mixed.outcomes[0], rule="drift.mse{domain=a|b} <= 1")
    assert r"domain=a\|b" in replace(mixed, outcomes=(told,), notes=("so",)).markdown()


def test_the_command_prints_a_line_a_rule_and_writes_both_files(diffprobe: Command, base: Run, steps: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("# what we keep\ndrift.psnr within 2 of baseline\n")
    files = tmp_path / "out" / "gate.xml", tmp_path / "gate.md"
    options = ("--rules", rules, "--across", "num_inference_steps", "--junit", files[0], "--markdown", files[1])
    answer = diffprobe(
        "gate", steps.path, "--baseline", base.path, "--rule", "drift.mse <= 1.2*baseline", "--rule", "drift.mse <= baseline", *options
    )
    assert (answer.code, answer.err) == (1, "")
    lines = answer.out.splitlines()
    assert lines[0].startswith("pass         drift.mse <= 1.2*baseline: drift.mse is ")
    assert lines[1].startswith("FAIL         drift.mse <= baseline: drift.mse is ")
    assert lines[2].startswith("pass         drift.psnr within 2 of baseline: drift.psnr is ")
    assert lines[-3:] == ["outcome: FAIL", *(f"written: {file}" for file in files)]
    assert len(list(ET.fromstring(files[0].read_bytes()).iter("testcase"))) == 5
    assert files[1].read_text(encoding="utf-8").count("\n| ") == 5


@pytest.mark.parametrize(("rule", "code"), [("drift.k <= baseline", 0), ("drift.k < baseline", 1), ("drift.law_share < 0.5", 3)])
def test_exit_codes(diffprobe: Command, base: Run, rule: str, code: int) -> None:
    assert diffprobe("gate", base.path, "--baseline", base.path, "--rule", rule).code == code


def test_an_incomplete_run_has_exit_code_3_unless_a_rule_fails(diffprobe: Command, base: Run, partial: Run) -> None:
    answer = diffprobe("gate", partial.path, "--baseline", base.path, "--rule", "drift.mse <= baseline")
    assert answer.code == 3
    assert "cells are missing; the rules are set against what it has" in answer.out
    assert diffprobe("gate", partial.path, "--baseline", base.path, "--rule", "drift.mse < baseline").code == 1


def test_bad_input_is_one_line(diffprobe: Command, base: Run, tmp_path: Path) -> None:
    path = base.path
    refused(diffprobe("gate", path), "a gate needs a rule")
    refused(diffprobe("gate", path, "--rule", "drift.k <= baseline"), "name that run (--baseline RUN)")
    refused(diffprobe("gate", path, "--rule", "drift.k =< 1"), "cannot be read at character 9")
    refused(diffprobe("gate", path, "--rules", tmp_path / "none.txt"), "cannot read rules from")
    refused(diffprobe("gate", tmp_path, "--rule", "drift.k <= 1"), "holds no run")
    refused(diffprobe("gate", path, "--baseline", tmp_path, "--rule", "drift.k <= 1"), "holds no run")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_line(diffprobe: Command, base: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = diffprobe("gate", base.path, "--rule", "drift.flagged <= 0", "--junit", tmp_path / "file" / "out.xml")
    assert answer.code == 4
    assert "cannot write to" in answer.err
