"""Networks published for EDM2 as models: 'edm2:<file>', with an unconditional companion and the autoencoder where they are given."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.edm2_codec import LatentScale, latent_codec
from diffprobe.adapters.edm2_denoiser import Edm2Denoiser, classes_by_name
from diffprobe.adapters.edm2_network import Edm2, Edm2Config
from diffprobe.adapters.published import fill
from diffprobe.adapters.safe_pickle import PERSISTENT, Record, read_records, told
from diffprobe.adapters.saved_networks import saved, tensors
from diffprobe.adapters.weights import LoadOptions, digest_file, digest_folder
from diffprobe.errors import UserError, unknown
from diffprobe.model import Codec, Model
from diffprobe.paths import VarianceExploding

OPTIONS = ("uncond", "vae")
_POSITIONS = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
_UNUSED = {"use_fp16", "dropout"}  # how training ran; nothing that a trained network's output hangs on


def load_edm2(spec: str, options: LoadOptions) -> Model:
    """'<file>[,uncond=<file>][,vae=<folder>]' as a Model: the file of a network, of an unconditional one, and a diffusers AutoencoderKL.

    The files are NVIDIA's pickles, of which nothing is run. A network in pixels has its codec without a `vae`; one in latents has none
    without. Raises UserError where a file is missing, refused or of another network.
    """
    file, others = _parsed(spec)
    device, dtype = options.place()
    network, scale = _read(file, device, dtype)
    companion = _companion(others["uncond"], network, device, dtype) if "uncond" in others else None
    config = network.config
    identity = {"source": str(file), "weights": digest_file(file), "family": "EDM2", "dtype": str(dtype).removeprefix("torch.")}
    identity["unconditional"] = str(others.get("uncond", "zeros in place of a class")) if config.label_dim else "the network itself"
    if "uncond" in others:
        identity["unconditional_weights"] = digest_file(others["uncond"])
    codec: Codec | None = PixelCodec(device=device) if config.img_channels == 3 else None
    if "vae" in others:
        codec = latent_codec(others["vae"], config.img_channels, device, scale)
        identity |= {"vae_source": str(others["vae"]), "vae": digest_folder(others["vae"])}
    return Model(
        name=file.stem,
        path=VarianceExploding(0.002, 80.0, 7.0),
        denoiser=Edm2Denoiser(network, companion),
        codec=codec,
        condition=classes_by_name(config.label_dim),
        device=str(device),
        identity=identity,
        shape=(config.img_channels, config.img_resolution, config.img_resolution),
    )


def read_published(file: Path) -> tuple[Edm2Config, dict[str, Tensor], LatentScale]:
    """What a published file holds: the network's configuration, its tensors as saved, and the scale of its latents.

    The file is a dictionary with the network under 'ema', or the network alone. Raises UserError (exit code 4) for anything else.
    """
    content = read_records(file)
    alone = isinstance(content, Record)
    if not alone and (not isinstance(content, dict) or "ema" not in content):
        held = ", ".join(map(str, islice(content, 5))) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{file} holds no network under 'ema' ({told(held) or 'nothing'}): give a file that NVIDIA published for EDM2", 4)
    found = content if alone else content["ema"]
    about = saved(found, file)
    if about.kind != "Precond":
        raise UserError(f"{file} holds '{told(about.kind)}', not EDM2's 'Precond': give a file that NVIDIA published for EDM2", 4)
    if len(about.args) > len(_POSITIONS):
        raise UserError(f"{file} was made with {len(about.args)} arguments in a row, not {len(_POSITIONS)} at most: it cannot be read", 4)
    config = _config({**dict(zip(_POSITIONS, about.args, strict=False)), **about.arguments}, file)
    return config, tensors(found, file), LatentScale() if alone else _scale(content.get("encoder"), file)


def _parsed(spec: str) -> tuple[Path, dict[str, Path]]:
    """The network's file and what is given besides, by option; raises UserError for what is not there before anything is read."""
    whole = spec and Path(spec).expanduser().is_file()  # a name may hold what looks like an option
    first, *rest = [spec] if whole else re.split(r",(?=\w+=)", spec)
    others: dict[str, Path] = {}
    for part in rest:
        name, _, place = part.partition("=")
        if name not in OPTIONS:
            raise unknown("option of 'edm2:<file>'", name, OPTIONS)
        if name in others or not place:
            raise UserError(f"'{part}' in 'edm2:{spec}': give each of {', '.join(OPTIONS)} once, and what it stands for")
        others[name] = Path(place).expanduser()
    if not first:
        raise UserError(
            "'edm2:' lacks its file: give 'edm2:<file.pkl>', and ',uncond=<file.pkl>' and ',vae=<folder>' where they are to hand"
        )
    file = Path(first).expanduser()
    for pickled in (file, *(place for name, place in others.items() if name == "uncond")):
        if not pickled.is_file():
            raise UserError(
                f"no file '{pickled}': give the path of a network that NVIDIA published for EDM2 (.pkl), which you fetch yourself", 4
            )
    if "vae" in others and not (others["vae"] / "config.json").is_file():
        raise UserError(f"'{others['vae']}' holds no config.json: after vae= give the folder of a saved diffusers AutoencoderKL", 4)
    return file, others


def _read(file: Path, device: torch.device, dtype: torch.dtype) -> tuple[Edm2, LatentScale]:
    config, state, scale = read_published(file)
    return fill(lambda: Edm2(config), _as_published(state), file).settle(dtype).to(device), scale


def _as_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with gains as the published network has them act: over sqrt(fan-in) of their layer, rounded in their own format.

    The gains are saved in float16, and the network divides them before it multiplies a layer's float32 weights by them: up to 1 part
    in 2000 of each gain. Ours is multiplied by what that layer puts out, so the root is put back in full precision.
    """
    changed = dict(state)
    for name, gain in state.items():
        weight = state.get(f"{name.removesuffix('_gain')}_{'conv' if name == 'unet.out_gain' else 'linear'}.weight")
        if name.endswith("_gain") and gain.ndim == 0 and weight is not None and weight.ndim > 1:
            root = math.sqrt(weight[0].numel())
            changed[name] = (gain / root).double() * root
    return changed


def _companion(file: Path, network: Edm2, device: torch.device, dtype: torch.dtype) -> Edm2:
    """The network for rows of no class, which must see what the other sees."""
    if not network.config.label_dim:
        raise UserError(f"the network before uncond={file} is unconditional itself: leave uncond= out, or put the conditional one first")
    companion, _ = _read(file, device, dtype)
    if companion.config.label_dim:
        raise UserError(f"{file} is a network of {companion.config.label_dim} classes: give an unconditional one after uncond=")
    ours, theirs = ([one.img_channels, one.img_resolution, one.img_resolution] for one in (network.config, companion.config))
    if ours != theirs:
        raise UserError(f"{file} draws {theirs} and the conditional network {ours}: give a companion of the same shape")
    return companion


def _config(arguments: Mapping[str, Any], file: Path) -> Edm2Config:
    """The configuration of a network from what it was made with; what is not known would mean another network."""
    given = {name: value for name, value in arguments.items() if name not in _UNUSED}
    if given.pop("resample_filter", [1, 1]) not in ([1, 1], (1, 1)):
        raise UserError(f"{file} resamples by another filter than [1, 1], which no published network does: it cannot be read", 4)
    strange = sorted(map(str, given.keys() - {field.name for field in fields(Edm2Config)}))
    if strange:
        raise UserError(f"{file} was made with '{told(strange[0])}', which no published network has: it cannot be read", 4)
    try:
        return Edm2Config(**_tuples(given))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} was made with what makes no network ({error}): it is damaged, fetch it again", 4) from error


def _scale(encoder: object, file: Path) -> LatentScale:
    """The scale of latents: the published one, but for what the file's own encoder was made with."""
    if not isinstance(encoder, Record) or encoder.name != PERSISTENT:
        return LatentScale()
    known = {field.name for field in fields(LatentScale)}
    given = _tuples({name: value for name, value in saved(encoder, file).arguments.items() if name in known})
    try:
        return LatentScale(**given)
    except ValueError as error:
        raise UserError(f"{file} scales its latents by {error}: it is damaged, fetch it again", 4) from error


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples, which configurations are made of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
