"""Effective levels under every scheduler that a family's pipelines take: where steps lie, and where an edit starts."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from diffprobe.adapters.diffusers import assemble
from diffprobe.adapters.load import load
from diffprobe.adapters.schedulers import path_of, visited
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, Model
from diffprobe.paths import RectifiedFlow, VariancePreserving
from tests.pipelines import BETAS

Folder = Callable[[str], Path]
CPU = torch.device("cpu")
EXTRA: tuple[dict[str, Any], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"timestep_spacing": "trailing"},
)
#: Schedulers whose class says that they fit a family and that do not: a package is missing, or a setting is another family's.
APART = {"DPMSolverSDEScheduler", "EDMEulerScheduler"}
FAMILIES = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux"}

pytestmark = [pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(scope="module", params=FAMILIES)
def deployed(request: pytest.FixtureRequest, pipelines: Folder) -> tuple[str, Any, Any]:
    """A family, the pipeline that generates and the one that edits."""
    model = load(str(pipelines(request.param)))
    made, edits = model.generator, model.editor
    return FAMILIES[request.param], made.pipe, edits.pipe  # type: ignore[union-attr]


def kinds(scheduler: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Every scheduler that says it fits where this one does, in every spacing that it has."""
    found = []
    for kind in sorted(scheduler.compatibles, key=lambda kind: kind.__name__):
        names = getattr(kind.__init__, "__wrapped__", kind.__init__).__code__.co_varnames
        if kind.__name__ not in APART:
            found += [(kind, extra) for extra in EXTRA if set(extra) <= set(names)]
    return found


def test_levels_and_starts_are_the_schedulers_own(deployed: tuple[str, Any, Any]) -> None:
    """The path of every scheduler: n levels that fall; an edit's level is one of them, the one whose steps are left to run."""
    family, made, edits = deployed
    before, asked = made.scheduler, 0
    try:
        for kind, extra in kinds(before):
            made.scheduler = edits.scheduler = kind.from_config(before.config, **extra)
            model = assemble(family, made, edits, CPU)
            _check(model, f"{kind.__name__} {extra}")
            asked += 1
    finally:
        made.scheduler = edits.scheduler = before
    assert asked >= (3 if family in ("StableDiffusion3", "Flux") else 30)


def _check(model: Model, named: str) -> None:
    assert model.path is not None
    assert model.editor is not None
    for n in (5, 10):
        levels = model.path.levels(n)
        assert len(levels) == n, named
        assert all(later < earlier for earlier, later in pairwise(levels)), named
        for strength in (0.25, 0.5, 0.9):
            level = model.editor.level(strength, n)
            assert level.t is not None
            if "Heun" in named or "KDPM2" in named or "Singlestep" in named or "PNDM" in named:
                continue  # they count their half steps
            start = float(model.path.ratio(levels[n - level.steps]))
            assert level.sigma == pytest.approx(start, rel=1e-3), (named, n, strength)


@pytest.mark.parametrize(("family", "executed"), [("sd", 28), ("sdxl", 28), ("sd3", 29), ("flux", 29), ("edm", 28)])
def test_strength_is_rounded_as_the_family_does_and_said_so(pipelines: Folder, family: str, executed: int) -> None:
    """50 x .58 is 28.999... in floats: Stable Diffusion runs 28 of 50 steps, flows 29."""
    model = load(str(pipelines(family)))
    assert model.editor is not None
    assert model.editor.level(0.58, 50).steps == executed
    assert model.facts["strength"] == ("rounded down to steps" if executed == 28 else "rounded up to steps")


def test_a_shift_by_size_is_that_of_the_size_at_hand(pipelines: Folder) -> None:
    """mu = .5 at 256 tokens and 1.15 at 4096, linear between; the shift is exp(mu). Esser et al. 2024."""
    model = load(str(pipelines("flux")))
    assert model.editor is not None
    small = model.editor.edit(torch.zeros(1, 4, 32, 32), ["a"], [0], EditSettings(0.8, 10, 1.0)).level
    expected = torch.tensor(0.5).exp() * 0.8 / (1 + (torch.tensor(0.5).exp() - 1) * 0.8)  # 16 x 16 tokens, t = .8 of equal steps
    assert small.sigma == pytest.approx(float(expected / (1 - expected)), rel=1e-4)
    native = model.editor.level(0.8, 10)
    assert native.sigma == pytest.approx(float(torch.tensor(1.15).exp() * 4), rel=1e-4)  # 64 x 64 tokens
    assert model.path is not None
    assert float(model.path.ratio(model.path.levels(10)[2])) == pytest.approx(native.sigma, rel=1e-4)


def test_a_path_keeps_its_own_rule_where_that_is_the_schedulers() -> None:
    for scheduler in (DDIMScheduler(**BETAS, steps_offset=1), PNDMScheduler(**BETAS, steps_offset=1, skip_prk_steps=True)):
        path = visited(path_of(scheduler), scheduler)
        assert isinstance(path, VariancePreserving)
        assert path.grid is None
    for other in (DPMSolverMultistepScheduler(**BETAS), EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)):
        path = visited(path_of(other), other)
        assert isinstance(path, VariancePreserving)
        assert path.grid is not None
        assert path == path_of(other), "the levels are no part of what a path is"


def test_a_number_of_steps_that_a_scheduler_cannot_take_is_refused_by_name() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    path = RectifiedFlow(grid=None)
    with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler cannot take them .*mu"):
        visited(path, scheduler)


def test_zero_terminal_snr_begins_at_pure_noise(pipelines: Folder) -> None:
    model = load(str(pipelines("v2")))
    assert model.path is not None
    assert model.denoiser is not None
    first = model.path.levels(10)[0]
    assert float(model.path.alpha(first)) == 0
    assert "zero terminal SNR" in model.facts["scheduler"]
    with torch.no_grad():
        assert bool(model.denoiser(torch.ones(1, 4, 16, 16), first).isfinite().all())


def test_what_no_pipeline_of_a_family_runs_on_is_refused(pipelines: Folder, tmp_path: Path) -> None:
    from tests.test_parity import changed

    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    with pytest.raises(UserError, match="StableDiffusion pipelines do not run on a FlowMatchEulerDiscreteScheduler: save"):
        load(str(changed(pipelines("sd"), tmp_path / "sd", flow)))
    with pytest.raises(UserError, match=r"StableDiffusion3 pipelines do not run on a DDIMScheduler: save .* FlowMatchEuler"):
        load(str(changed(pipelines("sd3"), tmp_path / "sd3", {"_class_name": "DDIMScheduler", **BETAS})))
    with pytest.raises(UserError, match="pip install torchsde"):
        load(str(changed(pipelines("sd"), tmp_path / "sde", {"_class_name": "DPMSolverSDEScheduler", **BETAS})))


def test_levels_beyond_what_a_network_knows_are_refused(pipelines: Folder, tmp_path: Path) -> None:
    from tests.test_parity import changed

    far = {"_class_name": "EulerDiscreteScheduler", **BETAS, "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 80.0}
    with pytest.raises(UserError, match=r"this EulerDiscreteScheduler: .*reaches sigma 80, and the network was trained up to 14\.61"):
        load(str(changed(pipelines("sd"), tmp_path / "far", far)))


def test_a_solver_on_which_a_flow_cannot_be_edited_is_refused(pipelines: Folder, tmp_path: Path) -> None:
    from tests.test_parity import changed

    solver = {"_class_name": "DPMSolverMultistepScheduler", **BETAS, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for family in ("sd3", "flux"):
        with pytest.raises(UserError, match="pipelines do not run on a DPMSolverMultistepScheduler"):
            load(str(changed(pipelines(family), tmp_path / family, solver)))


def test_the_steps_of_a_level_are_the_calls_of_the_network(pipelines: Folder, tmp_path: Path) -> None:
    """PNDM, which Stable Diffusion 1 is published with, visits one level twice."""
    from tests.test_parity import changed

    pndm = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}
    model, calls = load(str(changed(pipelines("sd"), tmp_path / "pndm", pndm))), list[int]()
    assert model.editor is not None
    model.editor.pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[attr-defined]
    edited = model.editor.edit(torch.zeros(1, 4, 16, 16), ["a"], [0], EditSettings(0.3, 20, 1.0))
    assert edited.level.steps == len(calls) == 7
