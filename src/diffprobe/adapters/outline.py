"""What a model is, from its configuration files alone: its parts on the meta device, with shapes and no numbers, and what is missing."""

from __future__ import annotations

import glob
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffprobe.adapters.codecs import VaeCodec, kind_of_codec
from diffprobe.adapters.diffusers import ERRORS, REMEDIES, UNUSED, assemble, both, check_scheduler, class_of, family_of, place_of
from diffprobe.adapters.families import FAMILIES, Family
from diffprobe.adapters.schedulers import distilled
from diffprobe.adapters.stored import Stored, stored
from diffprobe.adapters.weights import LoadOptions, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.model import Model

META = torch.device("meta")
#: What a hub id's files are asked for: all but weights.
CONFIGURATIONS = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Component:
    """A part of a model by its name: class, parameters (0 for what has none), what its files hold, and what is missing of them here."""

    name: str
    kind: str
    parameters: int = 0
    files: Stored | None = None
    lacks: str | None = None


@dataclass(frozen=True)
class Outline:
    """A model before it is loaded: `title` is what it is, `side` its native one in pixels (None where it does not say).

    `model` has every capability that the loaded one will have, on the meta device: a call of it says shapes and gives no numbers. Its
    conditions are blank, whatever the prompt. An exact world is itself, since it is small.
    """

    spec: str
    title: str
    kind: str
    model: Model
    side: int | None
    components: tuple[Component, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What is missing here, a line a part."""
        return tuple(f"{one.name}: {one.lacks}" for one in self.components if one.lacks)


def outline(spec: str, options: LoadOptions) -> Outline:
    """The outline of whatever `load` takes by name. Of a hub id what is in the cache counts; where none of it is, its configuration
    files are fetched if the hub can be reached.

    Networks are in the number format of `options`, autoencoders in float32, as they will be loaded. Raises UserError where the model is
    not found, not known, or too damaged to say what it is.
    """
    from diffprobe.adapters.embedded import LORAS, MEMBERS, folder, require

    require(spec)
    if spec.startswith("exact:"):
        return _exact(spec)
    if spec.startswith("edm2:"):
        return _edm2(spec, options)
    base, plus, rest = ("", "", spec) if Path(spec).exists() else spec.rpartition("+")
    if plus or spec in LORAS:
        told, lora = outline(base if plus else LORAS[spec], options), rest.rpartition("*")[2]
        part = _lora(str(folder(lora)) if lora in MEMBERS else lora, options)
        return replace(told, spec=spec, components=(*told.components, part))
    place = folder(spec) if spec in MEMBERS else _configurations(spec, options)
    if kind_of_codec(place) is not None:
        return _codec(spec, place, options)
    return _pipeline(spec, place, options)


def _configurations(spec: str, options: LoadOptions) -> Path:
    """The folder of a model: what is there, or in the cache; else its configuration files, fetched."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return resolve(spec, options.revision, local_files_only=True)[0]
    except UserError:
        if options.local_files_only or huggingface_hub.constants.HF_HUB_OFFLINE or "/" not in spec:
            raise
        try:
            return Path(huggingface_hub.snapshot_download(spec, revision=options.revision, allow_patterns=list(CONFIGURATIONS)))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            pass
        raise


def _pipeline(spec: str, place: Path, options: LoadOptions) -> Outline:
    kind, named = family_of(place, spec)
    family, (_, dtype) = FAMILIES[kind], options.place()
    index = json.loads((place / "model_index.json").read_text())
    parts, components = dict[str, Any](), list[Component]()
    for name, (library, made) in named.items():
        if library is None or made is None or name in UNUSED:
            parts[name] = None
            continue
        lies = place_of(place, name) or place / name
        parts[name], lacks = _part(lies, library, made)
        components.append(_component(name, made, parts[name], stored(lies, options.variant), lacks))
    for one in components:
        if parts[one.name] is None and not one.name.startswith("tokenizer"):
            raise UserError(f"'{one.name}' ({one.kind}) of {place}: {one.lacks}", 4)
    if parts.get("scheduler") is None:
        raise UserError(f"{place / 'model_index.json'} names no scheduler: fetch it again", 4)
    check_scheduler(kind, parts["scheduler"])
    pipelines = _pipelines(family, parts, place)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            with quiet():
                part.to(dtype)
    model = assemble(kind, *pipelines, META)
    pipe = next(one for one in pipelines if one is not None)
    identity = {"source": spec, "family": kind, "dtype": str(dtype).removeprefix("torch."), **distilled(parts["scheduler"])}
    condition = None if model.condition is None else lambda prompts: family.blank(pipe, len(prompts))
    model = replace(model, name=Path(spec).name, identity=identity, condition=condition)
    return Outline(spec, family.title, str(index["_class_name"]), model, _side(model), tuple(components))


def _part(place: Path, library: str, kind: str) -> tuple[Any, str | None]:
    """A part of a pipeline without weights (a scheduler, a tokenizer, a network on the meta device), or None and why there is none."""
    import diffusers
    import transformers

    if not (place.is_dir() and any(place.iterdir())):
        return None, "its folder is missing: fetch it"
    try:
        with quiet():
            known = getattr(diffusers if library == "diffusers" else transformers, kind, None)
            return (None, f"{library} has no {kind} here: update it") if known is None else (_made(known, place), None)
    except (*ERRORS, TypeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        return None, next((remedy for sign, remedy in REMEDIES.items() if sign in str(error)), f"cannot be read: {told}")


def _made(known: Any, place: Path) -> Any:
    """A part of a class of diffusers or transformers by its configuration; float32, as both make them."""
    if not issubclass(known, torch.nn.Module):
        return known.from_pretrained(place, local_files_only=True)
    if hasattr(known, "config_class"):  # of transformers
        config = known.config_class.from_pretrained(place, local_files_only=True)
        with META:
            return known(config).eval()
    config = known.load_config(place, local_files_only=True)
    with META:
        return known.from_config(config).eval().to(META)  # tables of positions may be made elsewhere


def _component(name: str, kind: str, part: Any, files: Stored | None, lacks: str | None) -> Component:
    """What is told of a part; a network needs weights that are whole."""
    if not isinstance(part, torch.nn.Module):
        return Component(name, kind, lacks=lacks)
    count = sum(one.numel() for one in part.parameters())
    return Component(name, kind, count, files, lacks or (files.lacks if files else "its weights are missing: fetch them"))


def _pipelines(family: Family, parts: Mapping[str, Any], place: Path) -> tuple[Any, Any]:
    """The family's pipelines of parts that are there already, with the settings of a saved pipeline."""
    index = json.loads((place / "model_index.json").read_text())
    with quiet():
        first = class_of(family.generator or family.editor)
    taken = inspect.signature(first.__init__).parameters
    settings = {name: value for name, value in index.items() if name in taken and not isinstance(value, list)}
    absent = {name: None for name, one in taken.items() if one.default is one.empty and name != "self"}
    with quiet(), warnings.catch_warnings(action="ignore", category=FutureWarning):  # of settings that newer files have otherwise
        made = first(**{**absent, **settings, **{name: part for name, part in parts.items() if name in taken}})
        return both(made, family, place)


def _codec(spec: str, place: Path, options: LoadOptions) -> Outline:
    kind = str(kind_of_codec(place))
    vae, lacks = _part(place, "diffusers", kind)
    if vae is None:
        raise UserError(f"the {kind} in {place} {lacks}: fetch it again", 4)
    codec, size = VaeCodec(vae, META), _pixels(vae.config)
    model = Model(name=Path(spec).name, codec=codec, device="meta", identity={"source": spec, "family": kind, "dtype": "float32"})
    with torch.no_grad():
        shape = tuple(codec.encode(torch.zeros(1, 3, size, size, device=META)).shape[1:])
    component = _component("vae", kind, vae, stored(place, options.variant), lacks)
    return Outline(spec, "an autoencoder alone", kind, replace(model, shape=shape, facts=codec.facts()), size, (component,))


def _edm2(spec: str, options: LoadOptions) -> Outline:
    """Published files are pickles, which say what they hold only as a whole: here alone weights are read, and not kept."""
    from diffprobe.adapters.edm2 import load_edm2

    _, dtype = options.place()
    named = replace(options, device="meta", dtype=str(dtype).removeprefix("torch."))
    model = load_edm2(spec.removeprefix("edm2:"), named)
    return Outline(spec, "EDM2", "EDM2", model, _side(model), ())


def _exact(spec: str) -> Outline:
    from diffprobe.adapters.exact import exact_model

    model = exact_model(spec.removeprefix("exact:"))
    return Outline(spec, "a world whose answers are exact", "exact", model, _side(model), ())


def _lora(spec: str, options: LoadOptions) -> Component:
    """LoRA weights, which are fused: they add nothing to what the model takes."""
    file = Path(spec)
    place = file.parent if file.is_file() else _configurations(spec, options)
    found = stored(place, None, glob.escape(file.name) if file.is_file() else "*.safetensors")
    return Component(f"LoRA {file.name}", "LoRA weights", 0, found, found.lacks if found else "its weights are missing: fetch them")


def _side(model: Model) -> int | None:
    """The native side in pixels."""
    if model.editor is not None:
        return model.editor.size
    if model.codec is None or model.shape is None:
        return None
    with torch.no_grad():
        return int(model.codec.decode(torch.zeros(1, *model.shape, device=model.device)).shape[-1])


def _pixels(settings: Any) -> int:
    """The side that an autoencoder was made for; 512 where it does not say."""
    told = getattr(settings, "sample_size", None) or 512
    return int(told[0] if isinstance(told, list | tuple) else told)
