"""The model cards: what a member is, how it was made, and what it reaches, from the numbers of `zoo.evaluate`."""

from __future__ import annotations

from typing import Any

from diffprobe.adapters.embedded import LORAS, MEMBERS
from diffprobe.model import Model
from zoo.data import HEADS
from zoo.train import MEMBERS as PLANS

Numbers = dict[str, Any]
HEAD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: {tag}
---

# {name}

{told}. One of the models that come with diffprobe: small enough for a laptop's processor, and trained on a world
whose every attribute is known (`diffprobe.worlds`). It exists so that every probe has something real to look at
with no download; its pictures are of no other use.

![Samples](samples.png)

{parts}

{noise} Weights are float16 on disk; load, then cast. {training}

## What it reaches

Measured by `python -m zoo.evaluate {name}` on held-out scenes, {steps} steps, {samples} samples a row, {dtype}; shares with a 95 % Wilson
interval. The judge is the world's attribute classifier (`zoo/classifier.py`), which never saw these scenes.
"""


def card(name: str, model: Model, numbers: Numbers) -> str:
    """The card of a member as Markdown."""
    pipe = model.editor.pipe  # type: ignore[union-attr]
    head = HEAD.format(
        tag={"embedded-edit": "image-to-image", "embedded-edm": "unconditional-image-generation"}.get(name, "text-to-image"),
        name=name,
        told=MEMBERS[name][0].upper() + MEMBERS[name][1:],
        parts=_parts(pipe),
        noise=NOISE[name],
        training=f"Training budget of `python -m zoo.train {name}`: {PLANS[name].minutes:g} minutes on {_cores(PLANS[name].processes)}"
        + (f", from the weights of `{PLANS[name].begins}`." if PLANS[name].begins else "."),
        **{key: numbers[key] for key in ("steps", "samples", "dtype")},
    )
    body = {"embedded-edm": _classes, "embedded-edit": _edits, "embedded-pastel": _style}.get(name, _text)
    return f"{head}\n{body(numbers)}\n"


_VP = "Stable Diffusion 1.5's noise levels, DDIM, leading spacing, offset 1"
NOISE = {
    "embedded": f"{_VP}; predicts noise.",
    "embedded-v": f"{_VP}; predicts v (Salimans and Ho 2022).",
    "embedded-flow": "A rectified flow with shift 3, whose first-order solver is Euler's; predicts noise minus data.",
    "embedded-edm": "Noise from .002 to 80 (rho 7), sigma_data 1, EDMEulerScheduler. "
    "Load it with `diffprobe.adapters.edm.ClassConditionalPipeline`, a plain DiffusionPipeline: "
    "diffusers has none for a class-conditional latent model on this scheduler.",
    "embedded-edit": f"{_VP}; predicts noise, and sees the image's latents in four further channels. "
    "Its text encoder is the CLIP's, trained on with it.",
    "embedded-pastel": f"{_VP}. A LoRA of rank 8 on attention and convolutions, in peft's format: "
    f"`pipe.load_lora_weights(folder)` on `{LORAS['embedded-pastel']}`.",
}


def _cores(count: int) -> str:
    return "one processor core" if count == 1 else "two processor cores"


def _text(numbers: Numbers) -> str:
    rows = numbers["rows"]
    at_five = rows.get("guidance 5", {})
    table = _table(HEADS, {name: [_share(row[head], _count(name, numbers)) for head in HEADS] for name, row in rows.items()})
    lines = [
        f"- autoencoder: PSNR {numbers['psnr']:.2f} dB, mean over 1000 held-out scenes; details are read off its reconstructions "
        f"{rows['reconstructions']['detail'] / rows['originals']['detail']:.1%} as often as off the originals",
        f"- CLIP picks the right caption out of 100 for {numbers['one_of_100']:.1%} of the held-out scenes",
    ]
    if at_five:
        weakest = min(HEADS, key=lambda head: at_five[head])
        share = at_five["detail"] / rows["reconstructions"]["detail"]
        lines += [
            f"- its weakest attribute at guidance 5 is {weakest}: right in {at_five[weakest]:.0%} of samples; details are right in "
            f"{share:.0%} of what the judge reads off decoded originals"
        ]
    return "\n".join([table, "", *lines, "", _frechet(numbers, "frechet_of_scenes", "as many other held-out scenes")])


def _classes(numbers: Numbers) -> str:
    heads = ("shape", "colour")
    table = _table(heads, {name: [_share(row[head], numbers["samples"]) for head in heads] for name, row in numbers["rows"].items()})
    return "\n".join([table, "", _frechet(numbers, "frechet_without_class", "the unconditional class")])


def _edits(numbers: Numbers) -> str:
    def row(kind: str, found: Numbers) -> str:
        followed = "" if found["followed"] is None else _share(found["followed"], found["n"])
        return f"| {'no change' if kind == 'none' else kind} | {found['n']} | {followed} | {found['rest']:.3f} | {found['psnr']:.1f} |"

    lines = [row(kind, found) for kind, found in numbers["kinds"].items()]
    return "\n".join(
        [
            "Guidance 5, image guidance 1.5. Followed: the judge sees what the instruction asked for. Rest: the share of the other "
            "attributes that the judge sees unchanged. PSNR (dB): against the scene as the world itself would have changed it.",
            "",
            "| instruction | n | followed | rest | PSNR |",
            "|---|---|---|---|---|",
            *lines,
            "",
            f"- instructions followed, all kinds: {numbers['followed']:.1%}",
            "- instructions that ask for no change, the null prompts of drift studies among them, were 12 % of the training pairs",
        ]
    )


def _style(numbers: Numbers) -> str:
    heads = ("lightness", "saturation")
    table = _table(heads, {name: [f"{row[head]:.3f}" for head in heads] for name, row in numbers["rows"].items()})
    seen = ", ".join(f"{head} {share:.2f}" for head, share in numbers["attributes"].items())
    return f"{table}\n\nMean over pixels, guidance 5. The judge, which knows plain scenes only, still reads off its samples: {seen}."


def _frechet(numbers: Numbers, reference: str, told: str) -> str:
    """Squared distances by guidance scale, with a sentence on their shape."""
    found = {float(scale): row for scale, row in numbers["frechet"].items()}
    best = min(found, key=lambda scale: found[scale]["limit"])
    lines = [f"| {scale:g} | {row['distance']:.4f} | {row['limit']:.4f} | {row['gap_se']:.4f} |" for scale, row in found.items()]
    other = numbers[reference]
    return "\n".join(
        [
            "Frechet distance to the first 500 held-out scenes (those in colour) in the small CLIP's space (64 dimensions), of as many "
            f"samples as a row has and extrapolated to infinitely many. {_shape(found, best)} For comparison, {told}: "
            f"{other['distance']:.4f} and {other['limit']:.4f}.",
            "",
            "| guidance | distance | extrapolated | standard error of the difference from the lowest |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def _shape(found: dict[float, Numbers], best: float) -> str:
    """Whether the distance falls and rises again by more than two standard errors."""

    def rises(scale: float) -> bool:
        return bool(found[scale]["limit"] - found[best]["limit"] > 2 * found[scale]["gap_se"])

    before, after = rises(min(found)), rises(max(found))
    if before and after:
        return f"It has the usual U shape, with its lowest point at {best:g}."
    if after:
        return (
            f"It has no U shape, only the right half of one, from {best:g} up: samples are nearest to the scenes with little guidance, "
            "and more of it narrows the set."
        )
    if before and best < max(found):
        return (
            f"Of the usual U only the left side is certain: the distance falls to its lowest at {best:g}, and rises from there to "
            f"{max(found):g} by less than two standard errors."
        )
    return f"It has no U shape: it is lowest at {best:g}, within the error of the other ends."


def _parts(pipe: Any) -> str:
    found = {"autoencoder": "vae", "denoiser": "unet", "text encoder": "text_encoder"}
    parts = {name: getattr(pipe, key, None) for name, key in found.items()}
    lines = [
        f"| {name} | {type(part).__name__} | {part.num_parameters() / 1e6:.2f} M |" for name, part in parts.items() if part is not None
    ]
    return "\n".join(["| part | class | parameters |", "|---|---|---|", *lines])


def _table(heads: Any, rows: dict[str, list[str]]) -> str:
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join([f"| | {' | '.join(heads)} |", "|---" * (len(tuple(heads)) + 1) + "|", *lines])


def _count(name: str, numbers: Numbers) -> int:
    return int(numbers["samples"]) if name.startswith("guidance") else 1000  # about 920 where colour and background are asked


def _share(share: float, n: int, z: float = 1.96) -> str:
    middle, wide = (share + z**2 / (2 * n)) / (1 + z**2 / n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    return f"{share:.3f} ({middle - wide:.2f} to {middle + wide:.2f})"
