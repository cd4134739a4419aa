"""Model cards: both forms of the Hub's results, read back by the Hub's own library, and nothing else in a card touched."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, parse_eval_result_entries

from diffprobe.errors import UserError
from diffprobe.export import export
from diffprobe.export.card import measured, model_index
from diffprobe.export.section import END, START
from diffprobe.report.numbers import shown
from diffprobe.runs.result import Run
from tests.test_export import finished, unfinished

OTHERS = """---
license: mit   # ours to choose
tags: [ diffusion,  "toys" ]
model-index:
# scores from elsewhere
- name: toy
  results:
  - task: {type: text-to-image}
    dataset:
      name: COCO
      type: coco
    metrics:
    - {type: fid, value: 12.50}   # keep the zero
    - type: notes
      value: |
        two
        lines

# after the index
language: en
---

# Toy
Text with trailing blanks  \t
<!-- a comment -->
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("card"))


Exporting = Callable[..., str]


@pytest.fixture
def carded(run: Run, tmp_path: Path) -> Exporting:
    """What becomes of a card's text."""

    def exporting(text: str, of: Run = run) -> str:
        path = tmp_path / "README.md"
        path.write_bytes(text.encode())
        export(of, "card", card=path, out=tmp_path / "out")
        return path.read_bytes().decode()

    return exporting


def results(text: str) -> list[EvalResult]:
    found: list[EvalResult] = ModelCard(text.removeprefix("\ufeff")).data.get("eval_results", [])
    return found


def ours(text: str) -> list[EvalResult]:
    return [one for one in results(text) if "diffprobe" in (one.metric_args or {})]


def index(results: str) -> str:
    """A card whose index has these results."""
    return f"---\nmodel-index:\n- name: toy\n  results:\n  {results}\n---\n"


def stripped(text: str) -> str:
    """The text without what is ours, line by line: every other line must be there, in its order."""
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    return head + tail


def kept(before: str, after: str) -> bool:
    """Whether every line of the one is in the other, to the byte and in order."""
    lines = iter(after.splitlines(keepends=True))
    return all(line in lines for line in before.splitlines(keepends=True))


def test_a_new_card_is_read_by_the_hubs_library(run: Run, tmp_path: Path) -> None:
    done = export(run, "card", out=tmp_path)["card"]
    assert done.files == (tmp_path / "model-card.md", tmp_path / ".eval_results" / "diffprobe.yaml")
    text = done.files[0].read_text()
    found = {one.metric_type: one for one in results(text)}
    cards = [card for card in run.findings["drift"].cards if card.estimate.value is not None]
    assert len(found) == len(cards) == 4
    for card in cards:
        estimate, one = card.estimate, found[f"drift.{card.estimate.quantity}"]
        version = run.about["versions"]["diffprobe"]
        assert one.metric_value == estimate.value
        assert one.metric_args == {"diffprobe": version, "lo": estimate.lo, "hi": estimate.hi, "level": 0.95, "n": 4} | (
            {"unit": estimate.unit} if estimate.unit else {}
        )
        interval = shown(estimate).interval
        assert one.metric_name == f"{card.title} (95 % interval {interval}, n = 4)"
        assert (one.task_type, one.dataset_name) == ("image-to-image", "images world")
    assert ModelCard(text).data.get("model_name") == "exact:gaussian"


def test_the_newer_form_says_the_same(run: Run, tmp_path: Path) -> None:
    export(run, "card", out=tmp_path)
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "diffprobe.yaml").read_text()))
    classic = results((tmp_path / "model-card.md").read_text())
    assert [one.value for one in entries] == [one.metric_value for one in classic]
    assert len({(one.dataset_id, one.task_id) for one in entries}) == len(entries)
    assert entries[0].task_id == "drift/mse"
    for one, other in zip(entries, classic, strict=True):
        assert one.notes == f"{other.metric_name}; diffprobe {run.about['versions']['diffprobe']}"
        assert one.date == run.about["created"][:10]


def test_what_is_not_measured_is_in_the_section_with_its_reason(run: Run, tmp_path: Path) -> None:
    done = export(run, "card", out=tmp_path)["card"]
    text = done.files[0].read_text()
    assert "| drift | strength budget | — | the mean drift at 0.3 may reach" in text
    assert "strength_budget" not in text + done.files[1].read_text()
    assert done.notes == ("1 headline numbers are not measured: the section has them with the reason, the entries do not",)
    for verdict in run.findings["drift"].verdicts:
        assert f"- {verdict[:30]}" in text


def test_a_card_without_metadata_gets_a_block_and_a_section(carded: Exporting) -> None:
    after = carded("# Toy\nno break at the end")
    assert after.startswith("---\nmodel-index:\n")
    assert f"\n---\n# Toy\nno break at the end\n\n{START}\n" in after
    assert after.endswith(f"{END}\n")
    assert len(ours(after)) == 4


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_is_others_stays_to_the_byte(carded: Exporting, line_break: str, mark: str) -> None:
    before = mark + OTHERS.replace("\n", line_break)
    after = carded(before)
    assert kept(before, after)
    assert "\n" not in after.replace("\r\n", "") or line_break == "\n"
    assert [(one.metric_type, one.metric_value) for one in results(after)][:2] == [("fid", 12.5), ("notes", "two\nlines\n")]
    assert len(ours(after)) == 4
    data, was = (yaml.safe_load(text.removeprefix("\ufeff").split("---")[1]) for text in (after, before))
    assert {name: data[name] for name in ("license", "tags", "language")} == {name: was[name] for name in ("license", "tags", "language")}


@pytest.mark.parametrize(
    "block", ["license: mit\n", "model-index: []\nlicense: mit\n", "model-index:\nlicense: mit # ours\n", "model-index: ~\n"]
)
def test_an_index_that_is_empty_is_filled(carded: Exporting, block: str) -> None:
    after = carded(f"---\n{block}---\n# Toy\n")
    assert len(results(after)) == len(ours(after)) == 4
    assert [line for line in after.splitlines() if line.startswith("license")] == [line for line in block.splitlines() if "license" in line]


@pytest.mark.parametrize("before", [OTHERS, "# Toy\n", "---\nlicense: mit\n---\n# Toy\n", "---\nmodel-index: []\nlicense: mit\n---\n", ""])
def test_exporting_again_changes_nothing(carded: Exporting, before: str) -> None:
    once = carded(before)
    assert carded(once) == once


def test_another_run_replaces_ours_and_only_ours(carded: Exporting, run: Run, tmp_path: Path) -> None:
    part = unfinished(run, tmp_path, left=4)
    direct, replaced = carded(OTHERS, part), carded(carded(OTHERS), part)
    assert replaced == direct
    assert {(one.metric_args or {}).get("incomplete") for one in ours(direct)} == {"4 of 5 cells are measured"}
    assert "**Incomplete:** 4 of 5 cells are measured." in direct
    empty = unfinished(run, tmp_path / "empty", left=0)
    assert ours(carded(direct, empty)) == []
    assert stripped(carded(direct, empty)) == stripped(OTHERS + f"\n{START}{END}\n")
    assert not (tmp_path / ".eval_results" / "diffprobe.yaml").exists()


def test_ours_are_found_again_after_the_hubs_library_rewrote_the_card(carded: Exporting) -> None:
    saved = str(ModelCard(carded(OTHERS)))
    assert len(ours(saved)) == 4
    again = carded(saved)
    assert (len(ours(again)), len(results(again))) == (4, 6)


def test_a_metric_of_others_in_one_group_with_ours_stays(carded: Exporting, run: Run) -> None:
    """As when somebody adds a number to the group of the same task and data."""
    group = model_index(run)[0]
    group["metrics"].insert(1, {"type": "lpips", "value": 0.25})
    before = f"---\n{yaml.safe_dump({'model-index': [{'name': 'toy', 'results': [group]}]}, sort_keys=False)}---\n"
    after = carded(before)
    assert [one.metric_type for one in results(after) if "diffprobe" not in (one.metric_args or {})] == ["lpips"]
    assert len(ours(after)) == 4


def test_the_section_stays_where_it_stands(carded: Exporting) -> None:
    after = carded(f"# Toy\n{START}\nstale words\n{END} and on\n\nthe end")
    assert after.endswith(f"{END} and on\n\nthe end")
    assert "stale words" not in after
    assert after.count(START) == after.count(END) == 1


def test_a_cards_mode_and_link_stay(run: Run, tmp_path: Path) -> None:
    real = tmp_path / "real.md"
    real.write_text("# Toy\n")
    real.chmod(0o640)
    link = tmp_path / "README.md"
    link.symlink_to(real)
    export(run, "card", card=link, out=tmp_path / "out")
    assert link.is_symlink()
    assert START in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("---\na: [1\n---\n", "no valid YAML"),
        ("---\n- a\n---\n", "no keys and values"),
        ("---\nmodel-index: high\n---\n", "is no list"),
        ("---\nmodel-index:\n- name: toy\n---\n", "a model without results"),
        ("---\nmodel-index: [{name: toy, results: [{task: {type: a}, metrics: [{type: b, value: 1}]}]}]\n---\n", "one item a line"),
        ("---\nx: &x {type: b, value: 1}\nmodel-index:\n- name: toy\n  results:\n  - metrics:\n    - *x\n---\n", "without {}, & and *"),
        (index("- task: {type: a}\n    metrics:\n    - fid"), "cannot be changed in part"),
        (index("- task: {type: a}\n    metrics: {fid: 3}"), "cannot be changed in part"),
        (index("- high"), "cannot be changed in part"),
        (index("- metrics:\n    - {type: a, value: 1, args: 5}"), "cannot be changed in part"),
        ("---\nmodel-index:\n- toy\n- name: b\n  results:\n  - metrics:\n    - {type: a, value: 1}\n---\n", "cannot be changed in part"),
        ("---\n{license: mit}\n---\n# T\n", "as plain lines from the first column"),
        ("---\n  license: mit\n---\n# T\n", "as plain lines from the first column"),
        (f"# Toy\n{START}\n", "needs one <!-- diffprobe -->"),
        (f"# Toy\n{END}\n{START}\n", "needs one <!-- diffprobe -->"),
        ("# T\udcffy", "cannot be read as a Markdown file"),
    ],
)
def test_a_card_that_cannot_be_changed_in_part_is_left_alone(run: Run, tmp_path: Path, text: str, told: str) -> None:
    path, content = tmp_path / "README.md", text.encode(errors="surrogateescape")
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        export(run, "card", card=path, out=tmp_path / "out")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    assert not (tmp_path / ".eval_results").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"images": "world"}, "images world"),
        ({"images": "/home/me/photos/", "groups": ["snow"]}, "images photos; groups snow"),
        ({"prompts": ["private/prompts.csv"]}, "prompts prompts.csv"),
        ({"prompts": ["a and/or b", "c", "d", "e", "f", "g"]}, "prompts a and/or b, c, d, e and 2 more"),
        ({"sets": ["world", "mine=/data/x", "photos/"]}, "sets world, mine, photos"),
        ({"base": "", "variants": ["a red thing"], "partitions": [{"name": "hat", "sides": []}]}, "variants a red thing; partitions hat"),
        ({"level": 0.95}, "the probe's own settings"),
    ],
)
def test_what_was_measured_is_told_without_paths(settings: dict[str, Any], told: str) -> None:
    assert measured(settings) == told
