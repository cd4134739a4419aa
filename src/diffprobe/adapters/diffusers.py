"""Saved diffusers pipelines as models: one door for every family, and LoRA weights on top."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from diffprobe.adapters.codecs import VaeCodec, kind_of_codec, load_codec
from diffprobe.adapters.families import FAMILIES, Family, Pipelines
from diffprobe.adapters.pipelines import InstructEditor, PipelineEditor
from diffprobe.adapters.schedulers import described, digest_settings, distilled
from diffprobe.adapters.weights import VARIANT, Identity, LoadOptions, check_digests, damage, digest_file, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.model import Model

LORA_FILE = "pytorch_lora_weights.safetensors"
#: Families of flows, which run on other schedulers than the rest.
FLOWS = ("StableDiffusion3", "Flux")
#: Parts that are left out: what looks at finished pictures and blackens some.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
ERRORS = (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError)
#: What to do about a pipeline that cannot be loaded, by a word of the libraries' error.
REMEDIES = {
    "torchsde": "pip install torchsde, or save the pipeline with another scheduler",
    "torchvision": "pip uninstall torchvision, which nothing here needs",
    "tiktoken": "pip install sentencepiece protobuf, without which a T5 tokenizer's spiece.model is taken for tiktoken's",
}


def load_pipeline(spec: str, options: LoadOptions, *, name: str | None = None, lora: str | None = None, lora_scale: float = 1.0) -> Model:
    """A folder written by `save_pretrained`, or a hub id, as a Model; `lora` is a folder or a hub id of LoRA weights on top of it.

    The adapters are fused into the weights with the strength `lora_scale`, so that the model costs what its base costs. Raises
    UserError where something is not found, not known or damaged.
    """
    folder, origin = resolve(spec, options.revision, options.local_files_only, options.variant)
    if kind_of_codec(folder) and lora is None:
        return load_codec(spec, options)
    kind, parts = family_of(folder, spec)
    check_digests(folder)
    check_parts(folder, parts, options.variant)
    device, dtype = options.place()
    identity = {**origin, "family": kind, "dtype": str(dtype).removeprefix("torch.")}
    loaded = dtype if lora is None else torch.float32  # a fused adapter may be smaller than half precision resolves
    absent: dict[str, Any] = {part: None for part, kinds in parts.items() if kinds[0] is None or part in UNUSED}
    spread = {"device_map": "balanced"} if options.manner == "balanced" else {}
    formats = {"default": loaded, "vae": torch.float32, **{name: dtype for name, (_, part) in parts.items() if str(part).startswith("T5")}}
    made, edits = _pipelines(folder, FAMILIES[kind], {"dtype": formats, "variant": options.variant, **spread, **absent})
    pipe = made if edits is None else edits
    if lora is not None:
        identity |= _add_lora(pipe, lora, options, lora_scale)
        _narrow(pipe, dtype)
    _settle(pipe, options.manner, device)
    check_scheduler(kind, pipe.scheduler)
    identity |= {**distilled(pipe.scheduler), "scheduler": digest_settings(pipe.scheduler)}
    if options.variant is not None:
        identity["variant"] = options.variant
    try:
        model = assemble(kind, made, edits, device)
    except ValueError as error:
        raise UserError(f"{kind} pipelines do not run on this {type(pipe.scheduler).__name__}: {error}") from error
    if isinstance(model.editor, InstructEditor):
        identity["image_guidance_scale"] = str(model.editor.image_guidance_scale)
    facts = dict(model.facts)
    if parts.get("safety_checker", (None, None))[0]:
        facts["safety checker"] = "left out: it would blacken images after they are made"
    if options.manner:
        facts["placed"] = options.manner
    return replace(model, name=name or Path(spec).name, identity=Identity(folder, identity, options.variant), facts=facts)


def assemble(kind: str, made: Any, edits: Any, device: torch.device) -> Model:
    """The model that a family's pipelines make, without name and identity; their parts may lie on the meta device."""
    for one in (made, edits):
        if one is not None:
            one.set_progress_bar_config(disable=True)
    model = FAMILIES[kind].build(Pipelines(made, edits, device))
    return replace(model, facts={**told_of(model, made if edits is None else edits), **model.facts})


def _narrow(pipe: Any, dtype: torch.dtype) -> None:
    """Put what was loaded in float32 for LoRA weights into its number format.

    The autoencoder stays: half precision overflows in SDXL's decoder, and blurs what is to be measured in any. A T5 was loaded in
    its format already, but for the layers that it keeps in float32 itself.
    """
    with quiet():
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name != "vae" and not type(part).__name__.startswith("T5"):
                part.to(dtype)


def _settle(pipe: Any, manner: str | None, device: torch.device) -> None:
    """Put the networks where they run, in one of `weights.MANNERS` where it is given."""
    with quiet():
        if manner is None:
            pipe.to(device)
        if manner == "offload":
            pipe.enable_model_cpu_offload(device=device)
        elif manner == "offload-layers":
            pipe.enable_sequential_cpu_offload(device=device)


def _pipelines(folder: Path, family: Family, options: dict[str, Any]) -> tuple[Any, Any]:
    """The pipeline that generates and the one that edits, on the same parts; a family may lack either."""
    try:
        with quiet():
            first = class_of(family.generator or family.editor)
            made = first.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
            return both(made, family, folder)
    except ERRORS as error:
        found = damage(folder)
        if found:
            raise UserError(found, 4) from error
        remedy = next((told for sign, told in REMEDIES.items() if sign in str(error)), "fetch it again or check its files")
        raise UserError(f"cannot load the pipeline in {folder}: {_first_line(error)}; {remedy}", 4) from error


def class_of(name: str | None) -> Any:
    """The class of a pipeline by its name: diffusers' own, or the one that is ours."""
    import diffusers

    from diffprobe.adapters.edm import ClassConditionalPipeline

    return ClassConditionalPipeline if name == "ClassConditionalPipeline" else getattr(diffusers, str(name))


def both(made: Any, family: Family, folder: Path) -> tuple[Any, Any]:
    """What generates and what edits of a family, of the first of the two, on the parts of that as they are; None for what there is not.

    The second has the settings that the folder or the first one has for it. Not by `from_pipe`, which casts all parts to one number
    format, and takes no autoencoder but an AutoencoderKL.
    """
    edits = made
    if family.generator and family.editor not in (None, family.generator):
        kind = class_of(family.editor)
        taken = inspect.signature(kind.__init__).parameters
        told = {**json.loads((folder / "model_index.json").read_text()), **made.config, **made.components}
        edits = kind(**{name: value for name, value in told.items() if name in taken and name != "self"})
    return made if family.generator else None, edits if family.editor else None


def _add_lora(pipe: Any, spec: str, options: LoadOptions, scale: float) -> dict[str, str]:
    """Fuse LoRA weights into a pipeline; what identifies them, the scale only where it is not 1."""
    file = Path(spec) if spec.endswith(".safetensors") and Path(spec).is_file() else None
    folder, origin = (file.parent, {"source": spec}) if file else resolve(spec, local_files_only=options.local_files_only)
    check_digests(folder)
    name = file.name if file else _lora_file(folder)
    weights = digest_file(folder / name)  # of this file alone: others may lie beside it
    try:
        with quiet():
            pipe.load_lora_weights(folder, weight_name=name, use_safetensors=True, local_files_only=True)
            fits = any(pipe.get_list_adapters().values())
            if fits:
                pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
    except (*ERRORS, AttributeError) as error:
        if "PEFT" in str(error):
            raise UserError("LoRA weights need the peft library: pip install 'diffprobe[lora]'", 4) from error
        raise UserError(damage(folder) or f"cannot put the LoRA weights in {folder} on this pipeline: {_first_line(error)}", 4) from error
    if not fits:
        raise UserError(f"the LoRA weights in {folder} fit no part of this {type(pipe).__name__}: they are of another family")
    strength = {} if scale == 1 else {"lora_scale": str(scale)}
    return {"lora": weights, **{f"lora_{key}": value for key, value in origin.items()}, **strength}


def _lora_file(folder: Path) -> str:
    """The file that a folder of LoRA weights means: the one of diffusers' name, or the only one."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if LORA_FILE in names or len(names) == 1:
        return LORA_FILE if LORA_FILE in names else names[0]
    raise UserError(f"{folder} holds {len(names)} files that could be the LoRA weights: name one ({', '.join(names) or 'none is there'})")


def family_of(folder: Path, spec: str) -> tuple[str, dict[str, tuple[str | None, str | None]]]:
    """The family of a saved pipeline, and its parts with library and class (None for a part that it was saved without)."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"'{spec}' holds no model_index.json: give a folder that a diffusers pipeline was saved to, or a hub id")
    try:
        content = dict(json.loads(index.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{index} is damaged ({_first_line(error)}): fetch it again", 4) from error
    kind = str(content.get("_class_name"))
    family = kind.removesuffix("Pipeline").removesuffix("Img2Img")
    parts = {name: (part[0], part[1]) for name, part in content.items() if isinstance(part, list) and len(part) == 2}
    if family not in FAMILIES:
        known = ", ".join(f"{name}Pipeline" for name in FAMILIES)
        network = next((name for name in ("transformer", "unet") if name in parts), "network")
        raise UserError(
            f"'{spec}' is a {kind} of {', '.join(parts) or 'no parts'}, which no adapter knows: use a {known}, or load it with "
            f"diffusers and wrap what you want to measure, as in dp.wrap(pipe.{network}, ...) or dp.wrap(generator=...)"
        )
    return family, parts


def check_parts(folder: Path, parts: Mapping[str, tuple[str | None, str | None]], variant: str | None) -> None:
    """Raise UserError (exit code 4) for a part that a saved pipeline names and its folder lacks, or has in another variant alone."""
    for name, (library, kind) in parts.items():
        if library is None or name in UNUSED:
            continue
        place = place_of(folder, name)
        if place is None:
            raise UserError(f"{folder} lacks '{name}' ({kind}), which its model_index.json names: fetch it again", 4)
        if not (place / "config.json").is_file() or name.startswith(("tokenizer", "scheduler")):
            continue
        weights = [file.name for file in place.glob("*.safetensors")]
        if not weights:
            raise UserError(f"{place} has no .safetensors weights: fetch them, or save it with safe_serialization=True", 4)
        others = {found[1] for file in weights if (found := VARIANT.search(file))}
        if others and all(VARIANT.search(file) for file in weights) and variant not in others:
            raise UserError(f"{place} holds the variant '{min(others)}' alone: give variant='{min(others)}'")


def place_of(folder: Path, part: str) -> Path | None:
    """Where a part lies: in a folder of its name, or in the pipeline's own, as the oldest pipelines of pixels have it; None if nowhere."""
    place = folder / part
    if place.is_dir() and any(place.iterdir()):
        return place
    alone = "scheduler_config.json" if part == "scheduler" else "config.json"
    return folder if part in ("scheduler", "unet") and (folder / alone).is_file() else None


def check_scheduler(kind: str, scheduler: Any) -> None:
    """Raise UserError for a scheduler on which the family's pipelines do not run."""
    flows = kind in FLOWS
    runs = hasattr(scheduler, "scale_noise") if flows else hasattr(scheduler, "init_noise_sigma")
    if kind == "Flux":  # which brings sigmas of its own
        runs = runs and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    if not runs:
        fitting = "a FlowMatchEulerDiscreteScheduler" if flows else "another, such as a DDIMScheduler or an EulerDiscreteScheduler"
        raise UserError(f"{kind} pipelines do not run on a {type(scheduler).__name__}: save the pipeline with {fitting}")


def told_of(model: Model, pipe: Any) -> dict[str, str]:
    """What a reader of the numbers should know of a pipeline and no digest shows."""
    codec = model.codec.facts() if isinstance(model.codec, VaeCodec) else {}
    facts = {"scheduler": described(pipe.scheduler), **codec}
    if isinstance(model.editor, PipelineEditor):
        facts["strength"] = "rounded down to steps" if model.editor.level(0.58, 50).steps == 28 else "rounded up to steps"
    if getattr(getattr(pipe, "unet", None), "config", {}).get("time_cond_proj_dim") is not None:
        facts["guidance"] = "a scale that the network is told: guidance_scale guides away from nothing"
    return facts


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
