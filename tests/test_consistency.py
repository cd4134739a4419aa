"""The consistency probe: its plan, its prompts, and what it concludes where the truth is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import exact_model
from diffprobe.errors import UserError
from diffprobe.measures.stats import Estimate
from diffprobe.model import GenerateSettings, Model, Rig
from diffprobe.probes.base import key
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.consistency.cells import Asked, Samples, through_jpeg
from diffprobe.probes.prompts import everyday, read_prompts, scenes, words
from diffprobe.runs.execute import plan
from diffprobe.runs.pairing import check, paired
from diffprobe.runs.result import Run, start
from tests.small import Pixels


@dataclass(frozen=True)
class Colours:
    """Red for even seeds and green for odd ones; a prompt that says "same" is always red, "broken" has seeds that are not finite."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        images = torch.zeros(len(prompts), 3, 16, 16)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            image[0 if "same" in prompt or seed % 2 == 0 else 1] = 1
            image[2, 0, 0] = 1 / 255  # no image is constant
            if "broken" in prompt and seed > 0:
                image[:] = torch.nan
        return images


@dataclass(frozen=True)
class Channels:
    """The means of red and green, so that the two colours are orthogonal."""

    fingerprint: str = "channels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2]


@dataclass(frozen=True)
class Blind:
    """Sees nothing in red images."""

    fingerprint: str = "blind"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([images[:, 1].mean((1, 2)), images[:, 1].mean((1, 2))], 1)


def measured(folder: Path, probe: Consistency, model: Model | None = None, **embedders: Any) -> Run:
    return start(Rig(model or Model("colours", generator=Colours()), embedders or {"channels": Channels()}), [probe], folder)


def one(run: Run, quantity: str, **facets: object) -> Estimate:
    found = [e for e in run.estimates if e.quantity == quantity and all(e.facets.get(name) == value for name, value in facets.items())]
    return next(e for e in found if facets or "prompt" not in e.facets)


def test_two_orthogonal_halves_and_one_image(tmp_path: Path) -> None:
    run = measured(tmp_path, Consistency(("either", "always the same"), repetitions=4))
    either, same = (one(run, "scs:channels", prompt=prompt) for prompt in ("either", "always the same"))
    assert either.value == pytest.approx(100 * 2 / 6)  # two of six pairs agree, the others are orthogonal
    assert either.lo == 0  # half luck: the images are equally typical
    assert either.hi == pytest.approx(75.63, abs=0.01)
    assert (same.value, same.lo, same.hi) == (100, 100, 100)
    assert one(run, "vendi:channels", prompt="either").value == pytest.approx(2)
    assert one(run, "vendi:channels", prompt="always the same").value == pytest.approx(1)
    mean = one(run, "scs:channels")
    assert mean.value == pytest.approx((100 + 100 / 3) / 2)
    assert mean.n == 2
    assert any("always the same" in v and "heed its seed" in v for v in run.findings["consistency"].verdicts)


def test_two_images_have_a_score_and_no_interval(tmp_path: Path) -> None:
    run = measured(tmp_path / "one", Consistency(("either",), repetitions=2))
    found, mean = one(run, "scs:channels", prompt="either"), one(run, "scs:channels")
    assert (found.value, found.lo, found.hi, found.n) == (0, None, None, 2)
    assert (mean.value, mean.lo, mean.n) == (0, None, 1)
    several = measured(tmp_path / "several", Consistency(("either", "or"), repetitions=2))
    assert not any("nan" in verdict for verdict in several.findings["consistency"].verdicts)
    assert one(run, "repetitions:channels").reason == "no prompt has 4 images that count"


def test_what_is_no_image_is_counted_and_not_averaged(tmp_path: Path) -> None:
    run = measured(tmp_path, Consistency(("broken", "either"), repetitions=4))
    assert run.records("consistency")["flag"].value_counts().to_dict() == {"not finite": 3}
    assert one(run, "flagged").value == 3
    lost = one(run, "scs:channels", prompt="broken")
    assert lost.value is None
    assert lost.reason == "1 of its images count: two are needed"
    assert one(run, "scs:channels").n == 1
    assert "3 of 8 images do not count: not finite." in run.findings["consistency"].verdicts


def test_an_embedding_of_zero_is_left_out_for_its_instrument_alone(tmp_path: Path) -> None:
    run = measured(tmp_path, Consistency(("either",), repetitions=4), channels=Channels(), blind=Blind())
    assert one(run, "scs:blind", prompt="either").n == 2
    assert one(run, "scs:channels", prompt="either").n == 4
    assert one(run, "flagged", flag="no embedding by blind").value == 2


def test_a_study_without_an_instrument_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs an instrument that looks at the images"):
        start(Rig(Model("colours", generator=Colours()), {}), [Consistency(("a",))], tmp_path)
    with pytest.raises(UserError, match="consistency needs generator"):
        start(Rig(Model("nothing"), {"channels": Channels()}), [Consistency(("a",))], tmp_path)


def test_the_report_shows_sets_by_typicality(tmp_path: Path) -> None:
    run = measured(tmp_path, Consistency(("either", "always the same"), repetitions=5))
    first, last = run.findings["consistency"].gallery
    assert (first.label, last.label) == ("least consistent", "most consistent")
    assert [name.split(",")[0] for name in first.pictures] == ["most typical", "seed 2", "seed 4", "seed 1", "least typical"]
    assert all((run.path / "media" / path).is_file() for path in first.pictures.values())
    page = run.report().read_text()
    assert "least typical, seed 3" in page
    assert [chart.name for chart in run.findings["consistency"].charts] == ["distribution", "prompts", "settling", "precision"]


def test_the_exact_world_is_less_consistent_without_a_class(tmp_path: Path) -> None:
    """A class of the mixture is a narrow cloud, the whole mixture a wide one: no prompt that names a class is less consistent."""
    model = exact_model("gmm")
    prompts = ("anything", *(f"class {k}" for k in range(4)))
    run = measured(tmp_path, Consistency(prompts, repetitions=12, guidance_scale=1.0), model, pixels=Pixels())
    scores = [one(run, "scs:pixels", prompt=prompt).value or 0.0 for prompt in prompts]
    assert scores[0] < min(scores[1:])


def test_the_plan_pins_seeds_and_settings() -> None:
    probe = Consistency(("a", "b"), repetitions=25, seeds=tuple(range(100, 130)), prefix="see ", suffix="!", height=64, keep_images=1)
    asked, *samples = probe.plan()
    assert isinstance(asked, Asked)
    assert [prompt.id for prompt in asked.prompts] == ["a", "b"]
    assert all(isinstance(cell, Samples) for cell in samples)
    drawn = [cell for cell in samples if isinstance(cell, Samples)]
    assert [(cell.prompt_id, cell.prompt, len(cell.seeds), cell.keep) for cell in drawn] == [
        ("a", "see a!", 20, True),
        ("a", "see a!", 5, True),
        ("b", "see b!", 20, False),
        ("b", "see b!", 5, False),
    ]
    assert drawn[0].seeds + drawn[1].seeds == tuple(range(100, 125))
    assert drawn[0].settings == GenerateSettings(20, 7.5, None, 64, None)
    assert sum(step.cell.cost().evaluations for step in plan([probe])) == 2 * 25 * 20 * 2


def test_more_repetitions_keep_what_is_measured() -> None:
    few, many = ({key(step.cell) for step in plan([Consistency(count=3, repetitions=n)])} for n in (20, 60))
    assert few < many


def test_settings_that_only_shape_the_summary_change_no_cell() -> None:
    plain = [step.key for step in plan([Consistency(count=3)])]
    assert [step.key for step in plan([Consistency(count=3, half_width=0.5, level=0.9)])] == plain


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"repetitions": 1}, "one image has nothing to agree with"),
        ({"repetitions": 2.5}, "at least 2"),
        ({"repetitions": 3, "seeds": (1, 2)}, "3 repetitions need as many different seeds"),
        ({"repetitions": 2, "seeds": (1, 2, 2)}, "a seed comes twice"),
        ({"prompts": ()}, "needs 'prompts'"),
        ({"count": 0}, "count must be at least 1"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"height": 63}, "multiples of 8"),
        ({"jpeg_quality": 0}, "between 1 and 95"),
        ({"level": 1.0}, "level must lie"),
        ({"half_width": 0.0}, "half_width above 0"),
    ],
)
def test_bad_settings_get_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Consistency(**changes)


def test_built_in_prompts_are_different_and_described() -> None:
    for found in (scenes(100), everyday(None)):
        assert len({prompt.id for prompt in found}) == 100
        assert all(prompt.features for prompt in found)
    assert [prompt.id for prompt in scenes(5)] == [prompt.id for prompt in scenes(100)[:5]]
    named = dict(next(prompt for prompt in scenes(100) if "star" in prompt.text).features)
    assert named["shape"] == "star"
    for place in {dict(prompt.features)["place"] for prompt in everyday(None)}:  # balanced
        assert sum(dict(prompt.features)["place"] == place for prompt in everyday(None)) == 20
    pairs = {(dict(p.features)["place"], dict(p.features)["medium"]) for p in everyday(None)}
    assert len(pairs) == 25


def test_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a fox\n\n a hen \n")
    assert [p.text for p in read_prompts([str(tmp_path / "p.txt")], None)] == ["a fox", "a hen"]
    (tmp_path / "p.csv").write_text('id,prompt,kind\n1,"a fox, red",animal\n2,"a house\nby a lake",\n')
    first, second = read_prompts([str(tmp_path / "p.csv")], None)
    assert (first.id, first.text, first.features) == ("1", "a fox, red", (("kind", "animal"),))
    assert (second.text, second.features) == ("a house\nby a lake", (("kind", ""),))
    (tmp_path / "p.json").write_text(json.dumps(["a fox", {"prompt": "a hen", "kind": "bird"}]))
    assert [p.features for p in read_prompts([str(tmp_path / "p.json")], None)] == [(), (("kind", "bird"),)]
    assert [p.id for p in read_prompts(["a fox", "a hen", "an owl"], 2)] == ["a fox", "a hen"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "text\na fox\n", "without `prompt`: it needs that column, and has text"),
        ("p.csv", "prompt\na fox\na fox\n", "comes twice"),
        ("p.txt", "\n\n", "holds no prompt"),
        ("p.json", "{", "no valid JSON"),
        ("p.json", "[1]", "must hold a list"),
        ("p.csv", "id,prompt\n7,\n", "is empty"),
        ("P.CSV", "text\na fox\n", "without `prompt`"),
        ("gone.txt", None, "cannot read the prompts"),
    ],
)
def test_bad_prompt_files_get_one_line(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        read_prompts([str(tmp_path / name)], None)


def test_a_mistyped_set_and_too_large_a_count_are_told() -> None:
    for name in ("scnes", "Everyday"):
        with pytest.raises(UserError, match=r"unknown set of prompts .*: did you mean"):
            read_prompts([name], None)
    with pytest.raises(UserError, match="there are 100 prompts, not 200"):
        read_prompts(["everyday"], 200)
    assert Consistency(prompts="scenes") == Consistency()  # type: ignore[arg-type]


def test_words_that_split_the_prompts() -> None:
    texts = [f"a {'red' if i % 2 else 'blue'} thing number {i}" for i in range(20)]
    assert set(words(texts)) == {"red", "blue"}


def test_features_that_matter_are_found(tmp_path: Path) -> None:
    """Prompts that say "same" give one image: their scores are 100, the others' a third of it."""
    prompts = tmp_path / "p.csv"
    rows = [f"prompt {i} {'same' if i % 2 else 'open'},{'fixed' if i % 2 else 'free'},{i % 3}" for i in range(24)]
    prompts.write_text("prompt,kind,third\n" + "\n".join(rows) + "\n")
    run = measured(tmp_path / "run", Consistency((str(prompts),), repetitions=4))
    fixed = one(run, "scs_trait:channels", feature="kind", level="fixed")
    assert fixed.value == pytest.approx(100 - 100 / 3)
    assert fixed.n == 12
    assert float(fixed.facets["p_adjusted"]) < 1e-6
    other = one(run, "scs_trait:channels", feature="third", level="1")
    assert float(other.facets["p_adjusted"]) > 0.5
    assert any("Prompts with the kind “f" in verdict for verdict in run.findings["consistency"].verdicts)


def test_the_pairs_of_two_runs_are_prompts(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Redder(Colours):
        def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
            return super().generate(["same"] * len(prompts), seeds, settings)

    base = measured(tmp_path / "a", Consistency(("x", "y"), repetitions=4))
    other = measured(tmp_path / "b", Consistency(("y", "x", "z"), repetitions=6), Model("redder", generator=Redder()))
    check(base, other)
    pairing = paired(base, other, "consistency")
    assert (pairing.common, pairing.base_only, pairing.other_only) == (8, 0, 10)
    scs = next(pair for pair in pairing.pairs if pair.base_comparable.quantity == "scs:channels")
    assert scs.units == ("x", "y")
    assert np.allclose(scs.base, 100 / 3)
    assert np.allclose(scs.other, 100)
    with pytest.raises(UserError, match=r"consistency's guidance_scale is 7\.5 in"):
        check(base, measured(tmp_path / "c", Consistency(("x",), repetitions=4, guidance_scale=1)))
    check(base, measured(tmp_path / "d", Consistency(("x",), repetitions=4, guidance_scale=2)), across=("guidance_scale",))


def test_reliability_is_the_share_that_is_not_luck(tmp_path: Path) -> None:
    """Prompts whose scores are 100 and about a half of it, known nearly without error, differ by themselves, not by luck."""
    run = measured(tmp_path, Consistency(tuple(f"{'same' if i % 2 else 'open'} {i}" for i in range(12)), repetitions=40))
    spread, found = one(run, "scs_spread:channels"), one(run, "scs_reliability:channels")
    scores = [e.value or 0.0 for e in run.estimates if e.quantity == "scs:channels" and "prompt" in e.facets]
    assert spread.value == pytest.approx(np.std(scores, ddof=1))
    assert 0.97 < (found.value or 0) < 1
    assert (found.lo or 0) < (found.value or 0) < (found.hi or 0) <= 1


def test_ids_name_prompts_and_texts_are_what_is_read(tmp_path: Path) -> None:
    prompts = tmp_path / "p.csv"
    rows = [f"case number {i} of this list,{'same' if i % 2 else 'open'} prompt{' and more' * i}" for i in range(12)]
    prompts.write_text("id,prompt\n" + "\n".join(rows) + "\n")
    run = measured(tmp_path / "run", Consistency((str(prompts),), repetitions=4))
    words_found = {e.facets["level"] for e in run.estimates if e.quantity == "scs_trait:channels"}
    assert words_found == {"same", "open"}
    length = one(run, "scs_length:channels")
    assert length.n == 12
    assert length.value is not None
    first = run.findings["consistency"].gallery[0]
    assert first.caption.startswith("“open prompt")
    assert one(run, "scs:channels", prompt="case number 3 of this list").value == 100


def test_each_interval_is_of_the_level_that_was_asked(tmp_path: Path) -> None:
    widths = []
    for level in (0.5, 0.95):
        run = measured(tmp_path / str(level), Consistency(("either", "or"), repetitions=7, level=level))
        widths.append([(e.hi or 0) - (e.lo or 0) for e in (one(run, "scs:channels", prompt="or"), one(run, "vendi:channels", prompt="or"))])
    assert all(narrow < wide for narrow, wide in zip(*widths, strict=True))


def test_other_words_and_sizes_under_one_name_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt\n1,a cat\n2,a dog\n")
    (tmp_path / "b.csv").write_text("id,prompt\n1,a cat\n2,a car\n")
    one_run, other = (measured(tmp_path / name, Consistency((str(tmp_path / f"{name}.csv"),), repetitions=3)) for name in "ab")
    assert paired(one_run, other, "consistency").notes == ("The prompt is another one in 50% of the pairs (“a dog” and “a car”).",)


def test_jpeg_is_a_file_between_model_and_instrument(tmp_path: Path) -> None:
    noisy = torch.from_numpy(rng.stream("test.jpeg", 0).random((3, 32, 32), dtype=np.float32))
    assert float((through_jpeg(noisy, 75) - noisy).abs().mean()) > 0.05
    smooth = torch.full((3, 16, 16), 128 / 255)
    assert torch.allclose(through_jpeg(smooth, 95), smooth, atol=1.5 / 255)
    plain, squeezed = (measured(tmp_path / str(q), Consistency(("either",), repetitions=2, jpeg_quality=q)) for q in (None, 10))
    a, b = (run.records("consistency")["feature:channels"][0] for run in (plain, squeezed))
    assert not np.array_equal(a, b)


def test_presets_grow() -> None:
    costs = [sum(step.cell.cost().samples for step in plan([Consistency.preset(budget)])) for budget in ("quick", "standard", "paper")]
    assert costs == [160, 2000, 2000]
    assert replace(Consistency(), guidance_scale=5) == Consistency(guidance_scale=5.0)
