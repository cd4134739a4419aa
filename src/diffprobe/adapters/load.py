"""From a name to a model, and to a rig with its instruments: two literal registries, no magic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import unknown
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
    """A model by name: 'embedded', 'exact:<world>', a folder of a saved diffusers pipeline, or a hub id.

    Raises UserError with the remedy where it cannot be found, fetched or read.
    """
    options = LoadOptions(device, torch_dtype, revision, variant, local_files_only)
    if spec == "embedded":
        from diffprobe.adapters.embedded import load_embedded

        return load_embedded(options)
    if spec.startswith("exact:"):
        from diffprobe.adapters.exact import exact_model

        return exact_model(spec.removeprefix("exact:"))
    from diffprobe.adapters.diffusers import load_pipeline

    return load_pipeline(spec, options)


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
