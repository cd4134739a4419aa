"""Every shipped recipe plans the images, latents, trajectories and edits of its design."""

import pytest

from diffprobe.probes.consistency.cells import Samples
from diffprobe.probes.drift.cells import Edits
from diffprobe.probes.geometry import Geometry
from diffprobe.probes.geometry.cells import Samples as Described
from diffprobe.probes.interpolation.mixtures import Mixtures
from diffprobe.probes.speciation import Speciation
from diffprobe.probes.speciation.cells import Paths
from diffprobe.runs.execute import plan
from diffprobe.runs.study import load_study, recipes

COMPARISONS = {
    "noop-bench": 10_000 * 3,
    "noop-ablation": 100 * 4 * 6,
    "guidance": 50 * 4 * 3 * 6,
    "steps": 50 * 4 * 3 * 5,
    "steps-equal-strength": 50 * 4 * 3 * 5,
    "seeds": 50 * 4 * 3 * 5,
    "inversion": 50 * 4 * 3 * 3,
    "resolution": 100 * 4 * 3 * 3,
}


IMAGES = {
    "consistency-embedded": (3, 100 * 20),
    "consistency-sdxl-pixart": (2, 100 * 20),
    "consistency-sdxl-lora": (2, 50 * 20),
    "consistency-repetitions": (1, 10 * 100),
}

#: Latents at which a map is described.
GEOMETRY = {
    "geometry-embedded": 5 * 60 + 60 + 24 * 3 * 5 + 24**2,
    "geometry-sd14": 3 * 20_000,
    "geometry-sd14-slice": 512**2,
    "geometry-sd14-level-sets": 50_000 + 100 * 500,
    "geometry-sd14-populations": 4 * 1000,
    "geometry-sd14-trajectories": 100 * 6 * 51 + 100 * 51,
}

#: Models, and images made of mixtures.
MIXTURES = {
    "interpolation-embedded": (3, 2 * 11 * 7 * 16 * 2),
    "interpolation-sd15": (1, 10 * 6 * 6 * 1000),
    "interpolation-sd35": (1, 10 * 6 * 6 * 1000),
    "interpolation-sd15-steps": (1, 3 * 6 * 8),
    "interpolation-sd35-steps": (1, 3 * 6 * 8),
    "interpolation-sd15-null-text": (1, 2 * 6 * 8),
    "interpolation-sd15-centroids": (1, 2 * 4 * 6 * 8),
    "interpolation-sd15-generated": (1, 2 * 2 * 6 * 8),
    "interpolation-sd35-centroids": (1, 4 * 6 * 8),
    "interpolation-sd35-generated": (1, 2 * 2 * 6 * 8),
    "interpolation-sd35-twelve": (1, 5 * 3 * 8),
    "interpolation-channels": (2, 8 * 7 * 8),
    "interpolation-offsets": (1, 0),
}

#: Models, partitions, and trajectories a condition.
LADDERS = {
    "speciation-embedded": (3, 5, 64, 50),
    "speciation-guidance": (1, 5, 64, 50),
    "speciation-edm2-chosen": (1, 6, 1500, 64),
    "speciation-edm2-all": (1, 1000, 150, 64),
    "speciation-edm2-guidance": (1, 3, 1500, 64),
    "speciation-sd15": (1, 4, 200, 100),
    "speciation-sd15-car": (1, 4, 200, 100),
    "speciation-sd15-cat": (1, 3, 200, 100),
    "speciation-sdxl": (1, 4, 200, 100),
    "speciation-sd35": (1, 11, 200, 100),
}


def test_every_shipped_recipe_is_here() -> None:
    planned = set(COMPARISONS) | set(IMAGES) | set(LADDERS) | set(GEOMETRY) | set(MIXTURES)
    # Two need a folder of images before they can be planned.
    assert set(recipes()) == planned | {"speciation-edm2-sweep", "speciation-edm2-samples"}


@pytest.mark.parametrize("name", sorted(GEOMETRY))
def test_a_shipped_geometry_plans_the_latents_of_its_design(name: str) -> None:
    ((_, (probe,)),) = load_study(name).variants().values()
    assert isinstance(probe, Geometry)
    assert probe.directions == (64 if name == "geometry-embedded" else 120)
    cells = [step.cell for step in plan([probe])]
    assert sum(cell.place.rows for cell in cells if isinstance(cell, Described)) == GEOMETRY[name]


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_a_shipped_interpolation_plans_the_mixtures_of_its_design(name: str) -> None:
    variants = load_study(name).variants()
    mixed = {sum(len(step.cell.draws) for step in plan(probes) if isinstance(step.cell, Mixtures)) for _, probes in variants.values()}
    assert (len(variants), *mixed) == MIXTURES[name]


@pytest.mark.parametrize("name", sorted(LADDERS))
def test_a_shipped_ladder_plans_the_trajectories_of_its_design(name: str) -> None:
    variants = load_study(name).variants()
    models, partitions, samples, steps = LADDERS[name]
    assert len(variants) == models
    for _, (probe,) in variants.values():
        assert isinstance(probe, Speciation)
        assert (len(probe.asked), probe.samples, probe.num_inference_steps) == (partitions, samples, steps)
        drawn: dict[object, list[int]] = {}
        for step in plan([probe]):
            if isinstance(step.cell, Paths):
                drawn.setdefault((step.cell.conditions, step.cell.push), []).extend(step.cell.seeds)
        assert {tuple(sorted(seeds)) for seeds in drawn.values()} == {tuple(range(samples))}


def test_the_shown_images_of_a_shipped_sweep_are_of_the_classes_of_its_figures() -> None:
    for name, count in (("speciation-edm2-samples", 6), ("speciation-edm2-sweep", 50_000)):
        (probe,) = load_study(name).probes
        assert isinstance(probe, Speciation)
        assert probe.sweep is not None
        asked = [text for _, text in probe.sweep.asked()]
        assert len(asked) == count
        assert name.endswith("sweep") or asked[:3] == ["class 3", "class 27", "class 696"]


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_a_shipped_recipe_of_several_models_plans_the_images_of_its_design(name: str) -> None:
    variants = load_study(name).variants()
    drawn = {
        len([seed for step in plan(probes) if isinstance(step.cell, Samples) for seed in step.cell.seeds])
        for _, probes in variants.values()
    }
    assert (len(variants), *drawn) == IMAGES[name]


def test_a_model_may_have_a_word_of_its_own() -> None:
    first, second = load_study("consistency-sdxl-lora").variants().values()
    cells = [[step.cell for step in plan(probes) if isinstance(step.cell, Samples)] for _, probes in (first, second)]
    assert [cell.prompt_id for cell in cells[0]] == [cell.prompt_id for cell in cells[1]]
    assert all(cell.prompt.endswith(" in the style of TOK") for cell in cells[1])
    assert second[0].endswith("+0.6*monet-lora")


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_a_shipped_recipe_plans_the_comparisons_of_its_design(name: str) -> None:
    steps = plan(load_study(name).probes)
    assert sum(len(step.cell.seeds) for step in steps if isinstance(step.cell, Edits)) == COMPARISONS[name]
    assert len({step.key for step in steps}) == len(steps)
