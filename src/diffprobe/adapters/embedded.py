"""The models that ship with the project: trained on `diffprobe.worlds` by the scripts in zoo/, one autoencoder and one CLIP in all."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.errors import UserError, unknown

if TYPE_CHECKING:  # the list of models is shown without loading torch
    from diffprobe.adapters.embedders import ClipEmbedder
    from diffprobe.adapters.weights import LoadOptions
    from diffprobe.model import Model

#: What each is; the first is in the package, the others in the distribution `diffprobe-models`.
MEMBERS = {
    "embedded": "text to 64 x 64 scenes, variance-preserving, predicts noise (default)",
    "embedded-v": "the same, predicts v",
    "embedded-flow": "the same as a rectified flow, with Stable Diffusion 3's shift",
    "embedded-edm": "a class (colour and shape) to scenes, variance-exploding, with Karras et al.'s preconditioning",
    "embedded-edit": "InstructPix2Pix: changes a scene as an instruction says; has no strength axis",
    "embedded-pastel": "embedded with a LoRA tuned to pastel colours",
}
LORAS = {"embedded-pastel": "embedded"}
_PACKAGE = Path(__file__).parent.parent


def folder(name: str = "embedded") -> Path:
    """Where a member's files lie; raises UserError, with how to get them, where the installation lacks them."""
    if name == "embedded":
        if not (_PACKAGE / "assets" / name / "model_index.json").is_file():
            raise UserError("this installation lacks the embedded model: reinstall diffprobe, or name another with --model", exit_code=4)
        return _PACKAGE / "assets" / name
    for place in _places():
        if (place / name / "SHA256SUMS").is_file():
            return place / name
    raise UserError(f"'{name}' is not installed: run `pip install ./models` in a clone of diffprobe's repository", exit_code=4)


def require(spec: str) -> None:
    """Raise UserError where a model's spec names a member that there is not, or that the installation lacks; nothing is loaded."""
    base, _, rest = spec.rpartition("+")
    for name in () if Path(spec).exists() else (base, rest.rpartition("*")[2]):
        if name in MEMBERS:
            folder(name)
        elif name.startswith("embedded") and "/" not in name and not Path(name).exists():
            raise unknown("embedded model", name, MEMBERS)


def load_member(name: str, options: LoadOptions) -> Model:
    """A member of the family, loaded as any saved pipeline is; its files must be those that were shipped."""
    from diffprobe.adapters.diffusers import load_pipeline

    base = LORAS.get(name, name)
    lora = str(folder(name)) if name in LORAS else None
    model = load_pipeline(str(folder(base)), options, name=name, lora=lora)
    sources = {"source": name} | ({"lora_source": name} if lora else {})  # names, since paths differ between machines
    return replace(model, identity={**model.identity, **sources})


def load_embedded_clip(options: LoadOptions) -> ClipEmbedder:
    """The small CLIP that was trained with them. Use it for differences, not for absolute values."""
    from diffprobe.adapters.embedders import load_clip
    from diffprobe.adapters.weights import check_digests

    check_digests(folder())
    return load_clip(str(folder() / "clip"), options, tokenizer=folder() / "tokenizer")


def _places() -> list[Path]:
    """The checkout that this file may be in, and the installed distribution."""
    spec = find_spec("diffprobe_models")
    installed = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return [_PACKAGE.parent.parent / "models" / "diffprobe_models", *installed]
