"""Saved diffusers pipelines as models: one door for every family, and LoRA weights on top."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from diffprobe.adapters.conditions import no_text, text_and_pooled, text_states
from diffprobe.adapters.denoisers import EdmDenoiser, FlowTransformer, UNetDenoiser, XlDenoiser
from diffprobe.adapters.pipelines import InstructEditor, PipelineEditor, PipelineGenerator, PixArtGenerator, VaeCodec, network_of
from diffprobe.adapters.schedulers import distilled, path_of
from diffprobe.adapters.weights import LoadOptions, check_digests, damage, digest_file, digest_folder, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.model import ImageEditor, ImageGenerator, Model
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding

LORA_FILE = "pytorch_lora_weights.safetensors"
ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
#: What to do about a pipeline that cannot be loaded, by a word of the libraries' error.
REMEDIES = {
    "torchvision": "pip uninstall torchvision, which nothing here needs",
    "tiktoken": "pip install sentencepiece protobuf, without which a T5 tokenizer's spiece.model is taken for tiktoken's",
}


@dataclass(frozen=True)
class Family:
    """The classes of a family: which one generates, which one edits, how that one begins, and whether it draws other sizes than its own.

    `bins`: the sides in latents for which the pipeline has resolutions of its own, and resizes from them to what is asked.
    """

    generator: str | None
    editor: str | None
    begins: Literal["strength", "noise"] = "strength"
    resizes: bool = True
    bins: tuple[int, ...] = ()


#: A folder saved from either class of a family will do.
FAMILIES = {
    "StableDiffusion": Family("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    "StableDiffusionXL": Family("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "StableDiffusion3": Family("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
    "StableDiffusionInstructPix2Pix": Family(None, "StableDiffusionInstructPix2PixPipeline", begins="noise"),
    "PixArtAlpha": Family("PixArtAlphaPipeline", None, bins=(32, 64, 128)),
    "PixArtSigma": Family("PixArtSigmaPipeline", None, bins=(32, 64, 128, 256)),
    "ClassConditional": Family("ClassConditionalPipeline", "ClassConditionalPipeline", resizes=False),
}


def load_pipeline(spec: str, options: LoadOptions, *, name: str | None = None, lora: str | None = None, lora_scale: float = 1.0) -> Model:
    """A folder written by `save_pretrained`, or a hub id, as a Model; `lora` is a folder or a hub id of LoRA weights on top of it.

    The adapters are fused into the weights with the strength `lora_scale`, so that the model costs what its base costs. Raises
    UserError where something is not found, not known or damaged.
    """
    folder, origin = resolve(spec, options.revision, options.local_files_only)
    kind, absent = _family(folder, spec)
    check_digests(folder)
    device, dtype = options.place()
    identity = {**origin, "weights": digest_folder(folder), "family": kind, "dtype": str(dtype).removeprefix("torch.")}
    loaded = dtype if lora is None else torch.float32  # a fused adapter may be smaller than half precision resolves
    made, edits = _pipelines(folder, FAMILIES[kind], {"dtype": loaded, "variant": options.variant, **absent})
    pipe = edits or made
    if lora is not None:
        identity |= _add_lora(pipe, lora, options, lora_scale)
    with quiet():
        pipe.to(device, dtype)
    if pipe.vae.dtype != torch.float32:  # half precision overflows in SDXL's decoder, and blurs what is to be measured in any
        with quiet():
            pipe.vae.to(torch.float32)
    for one in (made, edits):
        if one is not None:
            one.set_progress_bar_config(disable=True)
    path, codec = path_of(pipe.scheduler), VaeCodec(pipe.vae, device)
    identity |= distilled(pipe.scheduler)
    editor = None if edits is None else _editor(edits, codec, path, FAMILIES[kind])
    if isinstance(editor, InstructEditor):
        identity["image_guidance_scale"] = str(editor.image_guidance_scale)
    model = Model(
        name=name or Path(spec).name,
        path=path,
        codec=codec,
        editor=editor,
        generator=None if made is None else _generator(made, codec, FAMILIES[kind]),
        device=str(device),
        identity=identity,
        shape=_shape(pipe),
    )
    return _with_denoiser(model, kind, pipe)


def _pipelines(folder: Path, family: Family, options: dict[str, Any]) -> tuple[Any, Any]:
    """The pipeline that generates and the one that edits, on the same parts; a family may lack either."""
    import diffusers

    from diffprobe.adapters.edm import ClassConditionalPipeline

    def known(name: str) -> Any:
        return ClassConditionalPipeline if name == "ClassConditionalPipeline" else getattr(diffusers, name)

    try:
        with quiet():
            names = [name for name in (family.generator, family.editor) if name is not None]
            made = known(names[0]).from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
            edits = made if names[-1] == names[0] else known(names[-1]).from_pipe(made, torch_dtype=None)
            return made if family.generator else None, edits if family.editor else None
    except ERRORS as error:
        found = damage(folder)
        if found:
            raise UserError(found, 4) from error
        remedy = next((told for sign, told in REMEDIES.items() if sign in str(error)), "fetch it again or check its files")
        raise UserError(f"cannot load the pipeline in {folder}: {_first_line(error)}; {remedy}", 4) from error


def _editor(pipe: Any, codec: VaeCodec, path: NoisePath, family: Family) -> ImageEditor:
    kind = InstructEditor if family.begins == "noise" else PipelineEditor
    return kind(pipe, codec, path, _side(pipe))


def _generator(pipe: Any, codec: VaeCodec, family: Family) -> ImageGenerator:
    if family.bins:
        return PixArtGenerator(pipe, codec, _side(pipe), binned=int(network_of(pipe).config.sample_size) in family.bins)
    return PipelineGenerator(pipe, codec, _side(pipe), family.resizes)


def _shape(pipe: Any) -> tuple[int, int, int]:
    """That of one latent at the native size; an editor of instructions takes its picture in further channels."""
    settings = network_of(pipe).config
    return int(pipe.vae.config.latent_channels), int(settings.sample_size), int(settings.sample_size)


def _side(pipe: Any) -> int:
    """The native side in pixels."""
    return int(network_of(pipe).config.sample_size) * int(pipe.vae_scale_factor)


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
            pipe.fuse_lora(lora_scale=scale)
            pipe.unload_lora_weights()
    except (*ERRORS, AttributeError) as error:
        if "PEFT" in str(error):
            raise UserError("LoRA weights need the peft library: pip install 'diffprobe[lora]'", 4) from error
        raise UserError(damage(folder) or f"cannot put the LoRA weights in {folder} on this pipeline: {_first_line(error)}", 4) from error
    strength = {} if scale == 1 else {"lora_scale": str(scale)}
    return {"lora": weights, **{f"lora_{key}": value for key, value in origin.items()}, **strength}


def _lora_file(folder: Path) -> str:
    """The file that a folder of LoRA weights means: the one of diffusers' name, or the only one."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if LORA_FILE in names or len(names) == 1:
        return LORA_FILE if LORA_FILE in names else names[0]
    raise UserError(f"{folder} holds {len(names)} files that could be the LoRA weights: name one ({', '.join(names) or 'none is there'})")


def _with_denoiser(model: Model, kind: str, pipe: Any) -> Model:
    """The model with its network as a denoiser, where the network's calling convention is known."""
    path, settings = model.path, pipe.scheduler.config
    if isinstance(path, VarianceExploding):
        if kind == "ClassConditional" and settings.prediction_type == "epsilon":
            by_class = EdmDenoiser(pipe.unet, path, float(settings.sigma_data), pipe.labels[""], pipe.tokens)
            return replace(model, denoiser=by_class, condition=pipe.classes)
    elif kind == "StableDiffusion" and path is not None:
        states = text_states(pipe)
        by_text = UNetDenoiser(pipe.unet, path, settings.prediction_type, lambda: states([""]))
        return replace(model, denoiser=by_text, condition=states)
    elif kind == "StableDiffusionXL" and path is not None and _takes_sizes(pipe):
        texts = text_and_pooled(pipe, 2)
        by_both = XlDenoiser(pipe.unet, path, settings.prediction_type, no_text(pipe, texts), int(pipe.vae_scale_factor))
        return replace(model, denoiser=by_both, condition=texts)
    elif kind == "StableDiffusion3" and isinstance(path, RectifiedFlow):
        texts = text_and_pooled(pipe, 3)
        return replace(model, denoiser=FlowTransformer(pipe.transformer, path, no_text(pipe, texts)), condition=texts)
    return model


def _takes_sizes(pipe: Any) -> bool:
    """Whether Stable Diffusion XL's U-Net takes six numbers on the picture's size and crop; a refiner's takes a score among five."""
    settings = pipe.unet.config
    told = settings.projection_class_embeddings_input_dim - pipe.text_encoder_2.config.projection_dim
    return bool(told == 6 * settings.addition_time_embed_dim)


def _family(folder: Path, spec: str) -> tuple[str, dict[str, None]]:
    """The family of a saved pipeline, and the parts that it was saved without."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"'{spec}' holds no model_index.json: give a folder that a diffusers pipeline was saved to, or a hub id")
    try:
        content = dict(json.loads(index.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{index} is damaged ({_first_line(error)}): fetch it again", 4) from error
    kind = str(content.get("_class_name"))
    family = kind.removesuffix("Pipeline").removesuffix("Img2Img")
    if family not in FAMILIES:
        known = ", ".join(f"{name}Pipeline" for name in FAMILIES)
        raise UserError(f"'{spec}' is a {kind}, which no adapter knows: use a {known}, or wrap it as a diffprobe.Model")
    return family, {name: None for name, part in content.items() if isinstance(part, list) and part[0] is None}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
