"""Which editor a study means: the deployed pipeline, which adds noise, or one that inverts the image up to the same level."""

from __future__ import annotations

from diffprobe.inversion import METHODS, Inversion, InversionEditor
from diffprobe.model import ImageEditor, Level, Model

PIPELINE = "pipeline"
EDITORS = (PIPELINE, *METHODS)
#: How a sentence names what each does.
TOLD = {PIPELINE: "adding noise", **{method: f"inverting the image ({method})" for method in METHODS}}


def editor_of(model: Model, name: str) -> ImageEditor:
    """The editor that a model has by this name: its own pipeline, or an inversion that begins at that pipeline's levels."""
    if name == PIPELINE:
        assert model.editor is not None
        return model.editor
    return InversionEditor(model, Inversion(name))


def level_of(model: Model, strength: float, num_inference_steps: int) -> Level:
    """Where every editor of a model begins at a strength; UNTOLD where its pipeline does not say."""
    return (model.editor or InversionEditor(model)).level(strength, num_inference_steps)


def needs_of(name: str) -> frozenset[str]:
    """The capabilities of a model without which it has no editor of this name; a pipeline without a codec edits images themselves."""
    return frozenset({"editor"} if name == PIPELINE else {"denoiser", "path", "condition", "codec"})


def evaluations_of(name: str, guidance_scale: float) -> int:
    """Network evaluations a sample and step, at most, on the way up and down."""
    scale = max(guidance_scale, 1.0)
    climbs = scale if name == "fixed-point" else 1.0
    return (1 if scale == 1 else 2) + (0 if name == PIPELINE else Inversion(name, guidance_scale=climbs).evaluations)
