"""`python -m zoo.evaluate MEMBER`: what a member of the family reaches, by the world's own judge; writes its card, numbers and samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.embedded import MEMBERS, folder, load_embedded_clip, load_member
from diffprobe.adapters.pipelines import InstructEditor
from diffprobe.adapters.weights import LoadOptions
from diffprobe.measures.sets import frechet_distance, frechet_limit
from diffprobe.measures.similarity import psnr
from diffprobe.model import EditSettings, GenerateSettings, Model
from zoo import cards, classifier
from zoo.data import HEADS, HELD_OUT, Pool, edit_pool, pool
from zoo.lora import pastel

STEPS, BATCH, HELD = 50, 32, 1000
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 9.0)
Numbers = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo.evaluate", description=__doc__)
    parser.add_argument("member", choices=MEMBERS)
    parser.add_argument("--samples", type=int, choices=range(260, 441), default=300, metavar="N", help="a row of the card, 260 to 440")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="guidance scales; 2 and 5 must be among them")
    parser.add_argument("--work", type=Path, default=Path("zoo/work"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", help="float32 on a processor and bfloat16 on an accelerator unless said")
    parser.add_argument("--card", action="store_true", help="only write the card again, from the numbers in the folder")
    given = parser.parse_args()
    place = folder(given.member)
    model = load_member(given.member, LoadOptions(device=given.device, dtype=given.dtype))
    if given.card:
        (place / "README.md").write_text(cards.card(given.member, model, json.loads((place / "evaluation.json").read_text())))
        return
    measure = MEASURES.get(given.member, text)
    numbers, sheet = measure(model, pool(HELD, HELD_OUT, given.work), given)
    numbers |= {"steps": STEPS, "samples": given.samples, "dtype": model.identity["dtype"]}
    (place / "evaluation.json").write_text(json.dumps(numbers, indent=1) + "\n")
    _sheet(sheet, place / "samples.png")
    (place / "README.md").write_text(cards.card(given.member, model, numbers))
    print(json.dumps(numbers, indent=1))


def text(model: Model, held: Pool, given: argparse.Namespace) -> tuple[Numbers, Tensor]:
    """A text model: attributes and Frechet distance by guidance scale, beside the originals and their reconstructions."""
    judge, rebuilt = classifier.load(), _rebuilt(model, held)
    rows: Numbers = {
        "originals": classifier.accuracy(judge, held.images, held.labels),
        "reconstructions": classifier.accuracy(judge, rebuilt, held.labels),
    }
    labels, prompts = _asked(held, given.samples)
    drawn = {scale: _generate(model, prompts, scale) for scale in given.scales}
    rows |= {f"guidance {scale:g}": classifier.accuracy(judge, images, labels) for scale, images in drawn.items()}
    noise = psnr(held.images.float() / 255, rebuilt.float() / 255)
    others = _distances({0.0: held.images[_coloured(held)[1]][: given.samples]}, held)["0"]
    found = {"rows": rows, "frechet": _distances(drawn, held), "frechet_of_scenes": others}
    return {**found, "psnr": float(noise.mean()), "one_of_100": _retrieval(held)}, drawn[5.0][:48]


def classes(model: Model, held: Pool, given: argparse.Namespace) -> tuple[Numbers, Tensor]:
    """The class-conditional model: is what was asked for there, and how far is the set from the scenes?"""
    judge = classifier.load()
    labels, prompts = _asked(held, given.samples)
    drawn, rows = {scale: _generate(model, prompts, scale) for scale in given.scales}, {}
    for scale, images in drawn.items():
        found = classifier.accuracy(judge, images, labels)
        rows[f"guidance {scale:g}"] = {head: found[head] for head in ("shape", "colour")}
    free = _distances({0.0: _generate(model, [""] * given.samples, 1.0)}, held)["0"]
    return {"rows": rows, "frechet": _distances(drawn, held), "frechet_without_class": free}, drawn[2.0][:48]


def edits(model: Model, held: Pool, given: argparse.Namespace) -> tuple[Numbers, Tensor]:
    """The edit model: is the instruction followed, and the rest left alone? Measured on scenes in colour, at guidance 5 and 1.5."""
    assert isinstance(model.editor, InstructEditor)
    assert model.codec is not None
    judge, after = classifier.load(), edit_pool(HELD, HELD_OUT, given.work)
    heads, rows = list(HEADS), [i for half in _coloured(held) for i in half][: given.samples]
    made = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        latents = model.codec.encode(held.images[batch].float() / 255)
        told = [after.instructions[i] for i in batch]
        made.append(model.editor.edit(latents, told, batch, EditSettings(1.0, STEPS, 5.0)).images.detach().cpu())
    images = _bytes(torch.cat(made))
    right = classifier.answers(judge, images) == after.labels[rows]
    numbers: Numbers = {"kinds": {}}
    for kind in dict.fromkeys(after.kinds[i] for i in rows):
        chosen = torch.tensor([after.kinds[i] == kind for i in rows])
        others = [h for h, head in enumerate(heads) if head != kind and not (kind == "tone" and head in ("colour", "background"))]
        wanted = after.images[torch.tensor(rows)[chosen]].float() / 255
        numbers["kinds"][kind] = {
            "n": int(chosen.sum()),
            "followed": None if kind == "none" else float(right[chosen][:, heads.index(kind)].float().mean()),
            "rest": float(right[chosen][:, others].float().mean()),
            "psnr": float(psnr(wanted, images[chosen].float() / 255).mean()),
        }
    changed = torch.tensor([after.kinds[i] != "none" for i in rows])
    asked = torch.tensor([heads.index(after.kinds[i]) if after.kinds[i] != "none" else 0 for i in rows])
    numbers["followed"] = float(right.gather(1, asked[:, None])[changed].float().mean())
    pairs = torch.cat([held.images[rows], images], dim=2)  # before above after
    return numbers, pairs[:36]


def style(model: Model, held: Pool, given: argparse.Namespace) -> tuple[Numbers, Tensor]:
    """The LoRA: lightness and saturation of its samples beside those of the style, of the plain scenes and of the base."""
    labels, prompts = _asked(held, given.samples)
    plain = held.images[: given.samples].float() / 255
    base = _generate(load_member("embedded", LoadOptions(given.device, given.dtype)), prompts, 5.0)
    images = _generate(model, prompts, 5.0)
    sets = {"scenes": plain, "scenes in the style": pastel(plain), "base": base / 255, "this model": images / 255}
    rows = {name: {"lightness": float(x.mean()), "saturation": float((x.amax(1) - x.amin(1)).mean())} for name, x in sets.items()}
    return {"rows": rows, "attributes": classifier.accuracy(classifier.load(), images, labels)}, images[:48]


MEASURES: dict[str, Callable[[Model, Pool, argparse.Namespace], tuple[Numbers, Tensor]]] = {
    "embedded-edm": classes,
    "embedded-edit": edits,
    "embedded-pastel": style,
}


def _coloured(held: Pool) -> tuple[list[int], list[int]]:
    """The held-out scenes in colour: those of the first half, which samples are compared with, and those of the second."""
    rows = [i for i in range(HELD) if held.labels[i, list(HEADS).index("tone")] == 0]
    return [i for i in rows if i < HELD // 2], [i for i in rows if i >= HELD // 2]


def _asked(held: Pool, n: int) -> tuple[Tensor, list[str]]:
    """What samples are asked for: labels and full captions of the first n of the second half."""
    rows = _coloured(held)[1][:n]
    return held.labels[rows], [held.full[i] for i in rows]


def _rebuilt(model: Model, held: Pool) -> Tensor:
    assert model.codec is not None
    with torch.no_grad():
        parts = [model.codec.decode(model.codec.encode(part.float() / 255)).cpu() for part in held.images.split(BATCH)]
    return _bytes(torch.cat(parts))


def _generate(model: Model, prompts: Sequence[str], scale: float) -> Tensor:
    assert model.generator is not None
    parts = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        parts.append(model.generator.generate(batch, range(start, start + len(batch)), GenerateSettings(STEPS, scale)).cpu())
    return _bytes(torch.cat(parts))


def _distances(sets: dict[float, Tensor], held: Pool, resamples: int = 200) -> dict[str, Numbers]:
    """From each set to the reference scenes in the small CLIP's space: of so many samples, and extrapolated to infinitely many.

    `gap_se` is the standard error of the difference from the nearest set, over resamples of the prompts, which the sets share.
    """
    clip = load_embedded_clip(LoadOptions(device="cpu"))
    theirs = _features(clip, held.images[_coloured(held)[0]])
    ours = {scale: _features(clip, images) for scale, images in sets.items()}
    limits = {scale: frechet_limit(features, theirs) for scale, features in ours.items()}
    n, best = len(next(iter(ours.values()))), min(limits, key=lambda scale: limits[scale])
    draws = [rng.stream("zoo.distance", i).integers(n, size=n) for i in range(resamples)]
    spread = {scale: np.array([frechet_distance(features[rows], theirs) for rows in draws]) for scale, features in ours.items()}
    return {
        f"{scale:g}": {
            "n": n,
            "distance": frechet_distance(features, theirs),
            "limit": limits[scale],
            "gap_se": float((spread[scale] - spread[best]).std(ddof=1)),
        }
        for scale, features in ours.items()
    }


def _features(clip: Callable[[Tensor], Tensor], images: Tensor) -> Any:
    return torch.cat([clip(part.float() / 255) for part in images.split(100)]).double().numpy()


def _retrieval(held: Pool) -> float:
    clip = load_embedded_clip(LoadOptions(device="cpu"))
    images = torch.nn.functional.normalize(clip(held.images.float() / 255), dim=1)
    texts = torch.nn.functional.normalize(clip.embed_text(held.captions), dim=1)
    hits = [(images[i : i + 100] @ texts[i : i + 100].T).argmax(1) == torch.arange(100) for i in range(0, HELD, 100)]
    return float(torch.cat(hits).float().mean())


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _sheet(images: Tensor, path: Path, columns: int = 12) -> None:
    rows = [torch.cat(list(images[i : i + columns]), dim=2) for i in range(0, len(images) - len(images) % columns, columns)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()).save(path, optimize=True)


if __name__ == "__main__":
    main()
