"""From a name to a model, and to a rig with its instruments: two literal registries, no magic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError, unknown
from diffprobe.model import Embedder, Model, Rig


def load(
    spec: str,
    *,
    device: str = "auto",
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
) -> Model:
    """A model by name: a member of the embedded family, 'exact:<world>', a folder of a saved diffusers pipeline, or a hub id.

    '<model>+<folder or hub id>' puts LoRA weights on top of a pipeline.
    Raises UserError with the remedy where it cannot be found, fetched or read.
    """
    from diffprobe.adapters.embedded import MEMBERS, load_member

    options = LoadOptions(device, torch_dtype, revision, variant, local_files_only)
    if spec in MEMBERS:
        return load_member(spec, options)
    if "+" in spec and not Path(spec).exists():
        return _with_lora(spec, options)
    if spec.startswith("exact:"):
        from diffprobe.adapters.exact import exact_model

        return exact_model(spec.removeprefix("exact:"))
    if spec.startswith("embedded") and "/" not in spec and not Path(spec).exists():
        raise unknown("embedded model", spec, MEMBERS)
    from diffprobe.adapters.diffusers import load_pipeline

    return load_pipeline(spec, options)


def _with_lora(spec: str, options: LoadOptions) -> Model:
    """'<pipeline>+<LoRA>'; members of the family stand on either side by name, and are identified by it."""
    from diffprobe.adapters.diffusers import load_pipeline
    from diffprobe.adapters.embedded import LORAS, MEMBERS, folder

    base, _, lora = spec.rpartition("+")
    if not base or not lora:
        raise UserError(f"'{spec}' lacks a side: give <pipeline>+<folder or hub id of LoRA weights>")
    if base.startswith("exact:") or base in LORAS:
        raise UserError(f"'{base}' takes no LoRA weights: they go on top of a saved pipeline")
    places = [str(folder(part)) if part in MEMBERS else part for part in (base, lora)]
    name = f"{base if base in MEMBERS else Path(base).name}+{lora if lora in MEMBERS else Path(lora).stem}"
    model = load_pipeline(places[0], options, name=name, lora=places[1])
    named = {key: part for key, part in (("source", base), ("lora_source", lora)) if part in MEMBERS}
    return replace(model, identity={**model.identity, **named})


def rig(model: Model, embedders: Sequence[str] = ("embedded",), *, batch_size: int = 16) -> Rig:
    """The model with its instruments by name: 'embedded', or 'clip:<folder or hub id>'. They run where the model runs."""
    options = LoadOptions(device=model.device)
    return Rig(model, {name: load_embedder(name, options) for name in embedders}, batch_size)


def load_embedder(name: str, options: LoadOptions) -> Embedder:
    """An instrument by name; raises UserError with the nearest valid name for one that is not known."""
    kind, _, spec = name.partition(":")
    if kind not in EMBEDDERS:
        raise unknown("embedder", name, EMBEDDERS)
    return EMBEDDERS[kind](spec, options)


def _embedded(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedded import load_embedded_clip

    return load_embedded_clip(options)


def _clip(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedders import load_clip

    return load_clip(spec, options)


EMBEDDERS: dict[str, Callable[[str, LoadOptions], Embedder]] = {"embedded": _embedded, "clip": _clip}
