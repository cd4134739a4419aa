"""Any recipe as a study of seconds: few of everything, tiny resolutions, and pipelines of its families with random weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffprobe.adapters.embedded import load_embedded_clip
from diffprobe.adapters.load import load
from diffprobe.adapters.weights import LoadOptions
from diffprobe.model import Rig
from diffprobe.probes.base import Probe
from diffprobe.runs.study import parse_probe, settings

#: A part of a spec to the tiny pipeline that stands for its family.
FAMILIES = {
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3.5": "sd3",
    "stable-diffusion-2-1": "v2",
    "instruct-pix2pix": "edit",
    "PixArt": "pixart",
    "stable-diffusion": "sd",
    "embedded-flow": "flow",
    "embedded": "sd",
}
SIDE = 32  # pixels of a tiny pipeline
CLASSES = 5  # that a tiny network of classes knows
#: The most of a number, and of a list's items.
NUMBERS = {"count": 8, "repetitions": 4, "num_inference_steps": 10, "samples": 6, "draws": 3, "control_count": 8, "offset_samples": 3}
NUMBERS |= {"directions": 4, "points": 3, "size": 3, "images": 24, "reference_images": 24, "priors": 2, "replayed": 1, "keep_images": 1}
NUMBERS |= {"level_sets": 2, "iterations": 1, "snapshots": 2, "k": 3, "projections": 1}
LISTS = {"num_inference_steps": 2, "seeds": 2, "groups": 1, "variants": 2, "partitions": 2, "offsets": 4, "scales": 2}
LISTS |= {"intervals": 1, "resolution": 2, "pushes": 1, "schemes": 6}


@dataclass(frozen=True)
class Pixelwise:
    """A distance of images, in the place of LPIPS."""

    fingerprint: str = "pixelwise/1"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))


def shrunk(probe: Probe, reference: Path) -> Probe:
    """The probe at a size of seconds; `reference` is a folder of images for whatever needs one."""
    small = {name: _smaller(name, value) for name, value in settings(probe).items()}
    if probe.name == "drift":
        steps = [NUMBERS["num_inference_steps"] + place for place, _ in enumerate(small["num_inference_steps"])]
        few = {"count": 3 if len(small["editors"]) == 1 else 2, "guidance_scale": small["guidance_scale"][:2]}
        small |= few | {"num_inference_steps": steps}
    if probe.name == "consistency":
        small |= {"count": 2, "seeds": small["seeds"] and [1, 2, 3, 4]}
    if probe.name == "interpolation":
        small |= {"count": 8, "control_count": 8, "sizes": small["sizes"] and [2, 4], "num_inference_steps": 3}
    if probe.name == "speciation":
        small |= {"samples": 3, "num_inference_steps": 5}
        if small["sweep"]:
            fewer = {"prompts": small["sweep"]["prompts"][:3], "num_inference_steps": 8}
            small["sweep"] |= fewer | ({} if small["sweep"]["reference"] == "scenes" else {"reference": str(reference)})
    if probe.name == "geometry":
        for one in (*small["generated"], *small["slices"]):
            one["num_inference_steps"] = 4
        for one in small["generated"]:
            one["count"] = one["count"] and 2
    return parse_probe(small)


def _smaller(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _smaller(key, part) for key, part in value.items()}
    if isinstance(value, list):
        items = [_smaller("" if isinstance(item, list) else name, item) for item in value[: LISTS.get(name)]]
        return items if name != "resolution" else _sides(value)
    if isinstance(value, str):
        whole = re.sub(r"class \{0\.\.\d+\}", "class {0..2}", value)
        return re.sub(r"class (\d+)", lambda found: f"class {int(found[1]) % CLASSES}", whole)
    if name in {"height", "width", "measured", "resolution"}:
        return value and SIDE
    return min(value, NUMBERS[name]) if isinstance(value, int) and not isinstance(value, bool) and name in NUMBERS else value


def _sides(values: list[int]) -> list[int]:
    return [SIDE + 16 * place for place, _ in enumerate(values[:2])] if any(values) else values


def tiny(spec: str, pipelines: Callable[[str], Path], edm2: dict[str, Path]) -> str:
    """The spec of a pipeline of the same family with random weights, with LoRA weights or an autoencoder where it has them."""
    if spec.startswith("edm2:"):
        vae = f",vae={pipelines('sd') / 'vae'}" if "vae=" in spec else ""
        return f"edm2:{edm2['cond']},uncond={edm2['uncond']}{vae}"
    if "+" in spec:
        return f"{pipelines('sd')}+0.6*{pipelines('lora')}"
    return str(pipelines(next(family for part, family in FAMILIES.items() if part in spec)))


def worker(spec: str, embedders: tuple[str, ...]) -> Rig:
    """The model of a spec under the study's own names of instruments, behind which the embedded CLIP and a plain distance look."""
    model = load(spec, device="cpu")
    clip = load_embedded_clip(LoadOptions("cpu"))
    looks = {name: clip for name in embedders if not name.startswith("lpips")}
    return Rig(model, looks, distances={name: Pixelwise() for name in embedders if name.startswith("lpips")})
