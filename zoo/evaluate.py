"""`python -m zoo.evaluate`: what the embedded model reaches, by the world's own judge; writes the model card and a sheet of samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffprobe.adapters.embedded import folder, load_embedded, load_embedded_clip
from diffprobe.adapters.weights import LoadOptions
from diffprobe.measures.similarity import psnr
from diffprobe.model import Model
from zoo import classifier
from zoo.data import HEADS, HELD_OUT, Pool, pool

STEPS, BATCH = 50, 25
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# embedded

The model that ships with diffprobe: a text-conditioned latent diffusion model of 64 x 64 scenes, small enough for a laptop's processor and
trained on a world whose every attribute is known (`diffprobe.worlds`). It exists so that every probe has something real to look at
with no download; its pictures are of no other use.

| part | class | parameters |
|---|---|---|
{parts}

Scheduler: DDIM with Stable Diffusion 1.5's noise levels, leading spacing, offset 1. Weights are float16 on disk; load, then cast.
Trained by `python -m zoo.train`, in this order: clip, autoencoder, unet, on {threads}.

## What it reaches

Measured by `python -m zoo.evaluate` on held-out scenes, {steps} steps, {samples} samples a row; shares with a 95 % Wilson interval.
The judge is the world's attribute classifier (`zoo/classifier.py`), which never saw these scenes.

| | {heads} |
|---|{rule}|
{rows}

- autoencoder: PSNR {psnr:.2f} dB, mean over {held} held-out scenes
- CLIP picks the right caption out of 100 for {clip:.1%} of {held} held-out scenes
- {limits}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo.evaluate", description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 5.0], help="guidance scales; the card needs 5")
    parser.add_argument("--work", type=Path, default=Path("zoo/work"))
    parser.add_argument("--sheet", type=Path, default=Path("zoo/embedded.png"))
    parser.add_argument("--trained", default="two CPU cores in about 100 minutes (30 + 32 + 70, the first two side by side)")
    given = parser.parse_args()
    model, held, judge = load_embedded(LoadOptions()), pool(1000, HELD_OUT, given.work), classifier.load()
    coloured = [i for i in range(1000) if held.labels[i, list(HEADS).index("tone")] == 0][: given.samples]
    labels, prompts = held.labels[coloured], [held.full[i] for i in coloured]
    rebuilt = _rebuilt(model, held)
    results: dict[str, dict[str, float]] = {
        "originals": classifier.accuracy(judge, held.images, held.labels),
        "autoencoder's reconstructions": classifier.accuracy(judge, rebuilt, held.labels),
    }
    for scale in given.scales:
        images = _samples(model, prompts, scale)
        results[f"samples at guidance {scale:g}"] = classifier.accuracy(judge, images, labels)
        print(scale, results[f"samples at guidance {scale:g}"], flush=True)
        if scale == 5.0:
            _sheet(images[:96], given.sheet)
    noise = psnr(held.images.float() / 255, rebuilt.float() / 255)
    numbers = {"results": results, "psnr": float(noise.mean()), "one_of_100": _retrieval(held), "samples": len(coloured)}
    given.sheet.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    (folder() / "README.md").write_text(_card(model, numbers, given.trained))
    print(json.dumps(numbers, indent=1))


def _rebuilt(model: Model, held: Pool) -> Tensor:
    assert model.codec is not None
    with torch.no_grad():
        parts = [model.codec.decode(model.codec.encode(part.float() / 255)) for part in held.images.split(100)]
    return _bytes(torch.cat(parts))


def _samples(model: Model, prompts: list[str], scale: float) -> Tensor:
    assert model.generator is not None
    parts = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        parts.append(model.generator.generate(batch, range(start, start + len(batch)), STEPS, scale))
    return _bytes(torch.cat(parts))


def _retrieval(held: Pool) -> float:
    clip = load_embedded_clip(LoadOptions())
    images = torch.nn.functional.normalize(clip(held.images.float() / 255), dim=1)
    texts = torch.nn.functional.normalize(clip.embed_text(held.captions), dim=1)
    hits = [(images[i : i + 100] @ texts[i : i + 100].T).argmax(1) == torch.arange(100) for i in range(0, 1000, 100)]
    return float(torch.cat(hits).float().mean())


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _sheet(images: Tensor, path: Path, columns: int = 12) -> None:
    rows = [torch.cat(list(images[i : i + columns]), dim=2) for i in range(0, len(images), columns)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).resize((columns * 96, len(rows) * 96), 0).save(path, optimize=True)


def _wilson(share: float, n: int, z: float = 1.96) -> str:
    middle, wide = (share + z**2 / (2 * n)) / (1 + z**2 / n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    return f"{share:.3f} ({middle - wide:.2f} to {middle + wide:.2f})"


def _card(model: Model, numbers: dict, trained: str) -> str:  # type: ignore[type-arg]
    pipe = model.editor.pipe  # type: ignore[union-attr]
    parts = {"autoencoder": pipe.vae, "denoiser": pipe.unet, "text encoder": pipe.text_encoder}
    rows = []
    for name, shares in numbers["results"].items():
        n = numbers["samples"] if name.startswith("samples") else 1000
        rows.append(f"| {name} | " + " | ".join(_wilson(shares[head], n) for head in HEADS) + " |")
    at_five = numbers["results"]["samples at guidance 5"]
    weakest = min(HEADS, key=lambda head: at_five[head])
    return CARD.format(
        parts="\n".join(f"| {name} | {type(part).__name__} | {part.num_parameters() / 1e6:.2f} M |" for name, part in parts.items()),
        threads=trained,
        steps=STEPS,
        samples=numbers["samples"],
        held=1000,
        heads=" | ".join(HEADS),
        rule="|".join("---" for _ in HEADS),
        rows="\n".join(rows),
        psnr=numbers["psnr"],
        clip=numbers["one_of_100"],
        limits=f"its weakest attribute at guidance 5 is {weakest}: right in {at_five[weakest]:.0%} of samples",
    )


if __name__ == "__main__":
    main()
