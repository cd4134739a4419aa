"""Every recipe at a tiny size on random weights of its own families: it runs to the end, and what it reports can be set against it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffprobe import rng
from diffprobe.runs.published import check
from diffprobe.runs.result import start
from diffprobe.runs.study import load_study, recipes
from tests.edm2_files import Tiny, random_arrays, save_published
from tests.shrunk import CLASSES, SIDE, shrunk, tiny, worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def edm2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("edm2")
    kinds = {"cond": Tiny(side=16, classes=CLASSES), "uncond": Tiny(side=16, classes=0)}
    return {
        name: save_published(folder / f"{name}.pkl", kind, random_arrays(kind, seed)) for seed, (name, kind) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    for index in range(30):
        pixels = rng.stream("tests.reference", index).integers(0, 256, (SIDE, SIDE, 3)).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_runs_to_the_end_and_can_be_checked(
    name: str, pipelines: Callable[[str], Path], edm2: dict[str, Path], reference: Path, tmp_path: Path
) -> None:
    study = load_study(name)
    for model, (spec, probes) in study.variants().items():
        place = tiny(spec, pipelines, edm2)
        small = tuple(shrunk(probe, reference) for probe in probes)
        run = start(worker(place, study.embedders), small, tmp_path / (model or "run"))
        assert not run.failures, next(iter(run.failures.values()))["error"]
        assert run.done == run.planned > 0
        assert (run.path / "summary.json").is_file()
        asked = [report.model_copy(update={"model": None}) for report in study.reports if report.quantity and report.model in {None, model}]
        mine: dict[str, Any] = {"models": {}, "model": place, "probes": small, "reports": tuple(asked)}
        mine |= {"scheduler": None, "torch_dtype": None}  # which the tiny pipelines have as they are
        for verdict in check(run, study.model_copy(update=mine | {"stand_ins": {}})):
            assert verdict.estimate is not None, f"{verdict.report}: {verdict.why}"
            assert verdict.estimate.value is not None, f"{verdict.report}: {verdict.why}"
        for verdict in check(run, study.model_copy(update=mine)):
            stood = str(verdict.report.quantity).partition(".")[0] in {setting.partition(".")[0] for setting in study.stand_ins}
            assert ("stands in for" in verdict.why) is stood, f"{verdict.report}: {verdict.why}"
