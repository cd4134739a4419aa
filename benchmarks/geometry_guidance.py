"""`python -m benchmarks.geometry_guidance`: does guidance by geometry move psi of what the embedded model draws, and what else?

The same seeds and prompts at every strength, so that all differences are paired.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe import worlds
from diffprobe.adapters.embedded import load_embedded_clip
from diffprobe.adapters.load import load
from diffprobe.adapters.weights import LoadOptions
from diffprobe.controls import GeometryGuide, GuideSettings, LabelSettings, steered, train_guide
from diffprobe.measures.geometry import directions, jacobian_spectrum, local_scaling
from diffprobe.measures.sets import subsample_interval
from diffprobe.measures.stats import bootstrap, wilson_interval
from diffprobe.model import Model
from diffprobe.sampling import Guidance, final, guided, start, trajectory
from zoo import classifier
from zoo.data import HEADS, HELD_OUT

RESULTS = Path(__file__).parent / "results" / "geometry_guidance.jsonl"
LEARNT_FROM = 3  # the seed of a world that no other script draws from
STRENGTHS = (-30.0, -10.0, -3.0, 0.0, 3.0, 10.0, 30.0)
#: What prompts name. The background decides most of psi in this world: a prompt that names it leaves a guide little to choose.
NAMED = {"open": ("size", "colour", "shape", "detail"), "full": ("size", "colour", "shape", "detail", "background")}
Numbers = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry_guidance", description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["clean", "noised"], choices=["noised", "clean"])
    parser.add_argument("--images", type=int, nargs="+", default=[400, 128], help="to learn from, one number a target")
    parser.add_argument("--directions", type=int, default=24)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--prompts", nargs="+", default=["open", "full"], choices=list(NAMED), help="without and with the background")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("zoo/work"), help="where labels and guides are kept")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load("embedded")
    judges = {named: Judge(model, given.samples, given.directions, NAMED[named]) for named in given.prompts}
    for target, images in zip(given.targets, given.images, strict=True):
        guide = _guide(model, target, images, given)
        common = {"benchmark": "geometry_guidance", "target": target, "images": images, **_machine(given)}
        _write(common | {"kind": "guide", **{key: round(value, 4) for key, value in guide.quality.items()}})
        for named, scale in product(given.prompts, given.guidance):
            judge = judges[named]
            found = [judge(_sampled(model, guide, judge.prompts, scale, strength, given.steps)) for strength in given.strengths]
            for line in _lines(found, given.strengths):
                _write(common | {"kind": "samples", "prompts": named, "guidance": scale, **line})


def _guide(model: Model, target: Any, images: int, given: argparse.Namespace) -> GeometryGuide:
    """The guide that is kept, or one from labels that are, or both anew."""
    kept = given.work / f"guide-{target}-{images}-{given.directions}.safetensors"
    if kept.exists():
        return GeometryGuide.load(kept)
    seen = torch.from_numpy(np.stack([scene.image for scene in worlds.scenes(images, LEARNT_FROM)])).permute(0, 3, 1, 2).float() / 255
    settings = GuideSettings(LabelSettings(directions=given.directions, target=target))
    guide = train_guide(model, seen, settings, cache=given.work / f"labels-{target}-{images}.safetensors")
    guide.save(kept)
    return guide


@torch.no_grad()
def _sampled(model: Model, guide: GeometryGuide, prompts: list[str], scale: float, strength: float, steps: int) -> Tensor:
    """Final latents [n, C, h, w], deterministic, seed i for prompt i."""
    assert model.path is not None
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    times = model.path.levels(steps)
    x = start(model.path, times[0], model.shape, range(len(prompts)))
    denoiser = steered(guided(model.denoiser, model.path, Guidance(scale)), model.path, guide, strength)
    return final(trajectory(denoiser, model.path, x, times, cond=model.condition(prompts)))


class Judge:
    """Latents to what they show: psi, CLIP features, sharpness, and whether the attributes that the prompt named are there."""

    def __init__(self, model: Model, samples: int, count: int, named: Sequence[str]) -> None:
        found = [scene.attributes for scene in worlds.scenes(2 * samples, HELD_OUT) if scene.attributes.tone == "colour"][:samples]
        self.prompts = [worlds.caption(one, named) for one in found]
        self._labels = torch.tensor([[values.index(getattr(one, head)) for head, values in HEADS.items()] for one in found])
        self._named = tuple(named)
        self._model, self._directions = model, directions(3 * 64 * 64, count)
        self._clip, self._classifier = load_embedded_clip(LoadOptions(device="cpu")), classifier.load()

    def __call__(self, latents: Tensor) -> Numbers:
        codec = self._model.codec
        assert codec is not None
        psi = local_scaling(jacobian_spectrum(lambda z: 2 * codec.decode(z) - 1, latents, self._directions))
        with torch.no_grad():
            images = torch.cat([codec.decode(part) for part in latents.split(32)]).clamp(0, 1)
            seen = classifier.answers(self._classifier, (images * 255).round().to(torch.uint8))
            features = self._clip(images)
        energy = images.diff(dim=-1).square().mean((1, 2, 3)) + images.diff(dim=-2).square().mean((1, 2, 3))
        return {"latents": latents, "psi": psi.numpy(), "features": features.numpy(), "energy": energy.numpy(), **self._seen(seen)}

    def _seen(self, seen: Tensor) -> Numbers:
        """Of what the prompt names, whether it is there; and the backgrounds that are."""
        heads = [list(HEADS).index(name) for name in self._named]
        backgrounds = Counter(HEADS["background"][i] for i in seen[:, list(HEADS).index("background")].tolist())
        return {"right": (seen == self._labels)[:, heads].numpy(), "backgrounds": dict(backgrounds), "named": self._named}


def _lines(found: list[Numbers], strengths: list[float]) -> list[Numbers]:
    """One line a strength, and one on all of them."""
    plain = found[strengths.index(0.0)]
    lines = [{"strength": strength, **_line(one, plain)} for strength, one in zip(strengths, found, strict=True)]
    psi = np.stack([one["psi"] for one in found], 1)
    rho = np.asarray(strengths) - np.mean(strengths)
    slopes = (psi @ rho) / (rho @ rho)
    rises = np.diff(psi, axis=1) > 0
    whole = {
        "slope": _told(bootstrap(slopes)),
        "means_monotone": bool((np.diff(psi.mean(0)) > 0).all()),
        "samples_monotone": round(float(rises.all(1).mean()), 3),
        "steps_that_rise": round(float(rises.mean()), 3),
        "spread_of_psi": round(float(plain["psi"].std(ddof=1)), 3),
    }
    return [*lines, whole]


def _line(one: Numbers, plain: Numbers) -> Numbers:
    change: NDArray[np.float64] = one["psi"] - plain["psi"]
    moved = (one["latents"] - plain["latents"]).flatten(1).square().mean(1).sqrt().numpy()
    right = one["right"]
    return {
        "psi": _told(bootstrap(one["psi"])),
        "psi_change": _told(bootstrap(change)),
        "vendi": _told(subsample_interval(one["features"])),
        "sharpness": _told(bootstrap(one["energy"])),
        "sharpness_change": _told(bootstrap(one["energy"] - plain["energy"])),
        "attributes": _told(bootstrap(right.mean(1))),
        "by_attribute": {head: _told(wilson_interval(int(right[:, i].sum()), len(right))) for i, head in enumerate(one["named"])},
        "backgrounds": one["backgrounds"],
        "moved": round(float(moved.mean()), 4),
        "latent_sd": round(float(one["latents"].std()), 4),
    }


def _told(interval: tuple[float, float, float]) -> list[float]:
    return [round(value, 5) for value in interval]


def _machine(given: argparse.Namespace) -> Numbers:
    kept = {name: getattr(given, name) for name in ("directions", "samples", "steps", "threads")}
    return kept | {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def _write(line: Numbers) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    shown = (
        "kind",
        "prompts",
        "guidance",
        "strength",
        "psi",
        "psi_change",
        "vendi",
        "sharpness",
        "attributes",
        "moved",
        "slope",
        "means_monotone",
    )
    print(json.dumps({key: line[key] for key in shown if key in line} | ({} if line["kind"] == "samples" else line)), flush=True)


if __name__ == "__main__":
    main()
