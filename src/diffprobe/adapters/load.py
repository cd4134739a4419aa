"""From a name to a model, and to a rig with its instruments: two literal registries, no magic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError, unknown
from diffprobe.model import Distance, Embedder, Model, Rig


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

    'edm2:<file>' is a network that NVIDIA published for EDM2, with ',uncond=<file>' and ',vae=<folder>' after it where they are to hand.
    '<model>+<folder or hub id>' puts LoRA weights on top of a pipeline, '<model>+0.6*<folder or hub id>' at that strength.
    Raises UserError with the remedy where it cannot be found, fetched or read.
    """
    from diffprobe.adapters.embedded import MEMBERS, load_member, require

    options = LoadOptions(device, torch_dtype, revision, variant, local_files_only)
    require(spec)
    if spec in MEMBERS:
        return load_member(spec, options)
    if spec.startswith("edm2:"):
        from diffprobe.adapters.edm2 import load_edm2

        return load_edm2(spec.removeprefix("edm2:"), options)
    if "+" in spec and not Path(spec).exists():
        return _with_lora(spec, options)
    if spec.startswith("exact:"):
        from diffprobe.adapters.exact import exact_model

        return exact_model(spec.removeprefix("exact:"))
    from diffprobe.adapters.diffusers import load_pipeline

    return load_pipeline(spec, options)


def with_checkpoints(model: Model, specs: Iterable[str], torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None) -> Model:
    """The model with others as its checkpoints, by their specs in order; each is loaded when it is asked for, where the model runs."""
    later = {spec: partial(load, spec, device=model.device, torch_dtype=torch_dtype) for spec in specs}
    return replace(model, checkpoints={**model.checkpoints, **later})


def _with_lora(spec: str, options: LoadOptions) -> Model:
    """'<pipeline>+<LoRA>' or '<pipeline>+<scale>*<LoRA>'; members of the family stand on either side by name, and are identified by it."""
    from diffprobe.adapters.diffusers import load_pipeline
    from diffprobe.adapters.embedded import LORAS, MEMBERS, folder

    base, _, rest = spec.rpartition("+")
    scale, lora = _scaled(rest)
    if not base or not lora:
        raise UserError(f"'{spec}' lacks a side: give <pipeline>+<folder or hub id of LoRA weights>")
    if base.startswith("exact:") or base in LORAS:
        raise UserError(f"'{base}' takes no LoRA weights: they go on top of a saved pipeline")
    places = [str(folder(part)) if part in MEMBERS else part for part in (base, lora)]
    strength = "" if scale == 1 else f"{scale:g}*"
    name = f"{base if base in MEMBERS else Path(base).name}+{strength}{lora if lora in MEMBERS else Path(lora).stem}"
    model = load_pipeline(places[0], options, name=name, lora=places[1], lora_scale=scale)
    named = {key: part for key, part in (("source", base), ("lora_source", lora)) if part in MEMBERS}
    return replace(model, identity={**model.identity, **named})


def _scaled(lora: str) -> tuple[float, str]:
    """The strength of a LoRA and where it lies, of '0.6*<LoRA>' or '<LoRA>'; raises UserError for what is no number."""
    number, star, place = lora.partition("*")
    if not star or Path(lora).exists():
        return 1.0, lora
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise UserError(f"'{number}' is no LoRA scale: give a number before the star, as in <pipeline>+0.6*<LoRA>")
    return scale, place


def rig(model: Model, embedders: Sequence[str] = ("embedded",), scorers: Sequence[str] = (), *, batch_size: int = 16) -> Rig:
    """The model with its instruments by name, of EMBEDDERS, DISTANCES and `scorers.SCORERS`, or import paths; they run where it runs.

    Raises UserError for a name that is not known or given twice before anything is loaded.
    """
    from diffprobe.adapters.scorers import scorer

    options, named = LoadOptions(device=model.device), [*embedders, *scorers]
    for name in embedders:
        if name.partition(":")[0] not in DISTANCES:
            _loader(name)
    scoring = {name: scorer(name) for name in scorers}
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"the instrument '{name}' is named twice: name it once")
    looks = {name: load_embedder(name, options) for name in embedders if name.partition(":")[0] not in DISTANCES}
    comparisons = {name: load_distance(name, options) for name in embedders if name not in looks}
    scores = {name: load(options) for name, load in scoring.items()}
    found = Rig(model, looks, batch_size, distances=comparisons, scorers=scores)
    names = {fingerprint: name for name, fingerprint in found.fingerprints.items()}
    for name, fingerprint in found.fingerprints.items():
        if names[fingerprint] != name:
            raise UserError(f"'{name}' and '{names[fingerprint]}' are one instrument ({fingerprint}): name it once")
    return found


def load_embedder(name: str, options: LoadOptions) -> Embedder:
    """An instrument that looks at single images, by name; raises UserError with the nearest valid name for one that is not known."""
    return _loader(name)(name.partition(":")[2], options)


def load_distance(name: str, options: LoadOptions) -> Distance:
    """An instrument that compares two images, by name; raises UserError with the nearest valid name for one that is not known."""
    kind, _, spec = name.partition(":")
    if kind not in DISTANCES:
        raise unknown("distance", kind, DISTANCES)
    return DISTANCES[kind](spec, options)


def _loader(name: str) -> Callable[[str, LoadOptions], Embedder]:
    """What loads an embedder of this name; raises UserError where nothing does."""
    kind = name.partition(":")[0]
    if kind in EMBEDDERS:
        return EMBEDDERS[kind]
    if kind in DISTANCES:
        raise UserError(f"'{name}' compares two images and gives no features: name an embedder, such as 'embedded'")
    from diffprobe.adapters.custom import is_import_path, load_custom

    if is_import_path(name):
        return lambda _, options: load_custom(name, options)
    raise unknown("embedder", kind, [*EMBEDDERS, *DISTANCES, "<package.module>:<attribute>"])


def _embedded(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedded import load_embedded_clip

    if spec:
        raise UserError(f"'embedded' takes no '{spec}': there is one embedded CLIP; for another give 'clip:<folder or hub id>'")
    return load_embedded_clip(options)


def _clip(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedders import load_clip

    return load_clip(spec, options)


def _siglip(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedders import load_siglip

    return load_siglip(spec, options)


def _dinov2(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.embedders import load_dinov2

    return load_dinov2(spec, options)


def _inception(spec: str, options: LoadOptions) -> Embedder:
    from diffprobe.adapters.inception import load_inception

    return load_inception(spec, options)


def _lpips(spec: str, options: LoadOptions) -> Distance:
    from diffprobe.adapters.lpips import load_lpips

    return load_lpips(spec, options)


#: '<kind>' or '<kind>:<spec>' to what looks at single images.
EMBEDDERS: dict[str, Callable[[str, LoadOptions], Embedder]] = {
    "embedded": _embedded,
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "inception": _inception,
}
#: The same, to what compares two images.
DISTANCES: dict[str, Callable[[str, LoadOptions], Distance]] = {"lpips": _lpips}
