"""Pairs of scenes that differ in one attribute, with the instruction that leads from the first to the second."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from diffprobe import rng
from diffprobe.worlds.attributes import BACKGROUNDS, COLOURS, DETAILS, RESERVED, SHAPES, Attributes, caption
from diffprobe.worlds.drawing import render
from diffprobe.worlds.scenes import Scene, attributes_of

Kind = Literal["colour", "shape", "background", "detail", "tone", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: Instructions to change nothing; the first three are the null prompts of drift studies.
NO_OPS = ("Make no change.", "Identity.", "Do nothing.", "keep the picture as it is", "leave it as it is", "the same picture")
_SHARES = {"colour": 0.24, "shape": 0.2, "background": 0.2, "detail": 0.2, "tone": 0.04, "none": 0.12}


@dataclass(frozen=True)
class Edit:
    """`after` is `before` as `instruction` wants it: only the attribute `kind` differs, nothing at all where it is "none"."""

    before: Scene
    after: Scene
    instruction: str
    kind: Kind


def edits(n: int, seed: int, *, kinds: Iterable[Kind] = KINDS, start: int = 0) -> list[Edit]:
    """The edits number start to start + n of the world `seed`; `before` is that world's scene of the same number.

    `kinds` restricts what is changed; a black and white scene has neither colour nor tone to change, and stays as it is ("none")
    where nothing else is allowed. No edit leads to a reserved pair of shape and colour. Raises ValueError for an unknown kind.
    """
    allowed = tuple(kinds)
    unknown = sorted(set(allowed) - set(KINDS))
    if unknown or not allowed:
        raise ValueError(f"unknown kind of edit {', '.join(unknown) or '(none given)'}: choose from {', '.join(KINDS)}")
    return [_edit(seed, index, allowed) for index in range(start, start + n)]


def _edit(seed: int, index: int, kinds: tuple[Kind, ...]) -> Edit:
    draw = rng.stream("worlds.scene", seed, index)
    old, told = attributes_of(draw)
    before = Scene(render(old, deepcopy(draw)), old, told)
    choice = rng.stream("worlds.edit", seed, index)
    possible = [kind for kind in kinds if not (old.tone != "colour" and kind in ("colour", "tone"))] or ["none"]
    shares = np.array([_SHARES[kind] for kind in possible])
    kind: Kind = KINDS[KINDS.index(possible[int(choice.choice(len(possible), p=shares / shares.sum()))])]
    new, instruction = _changed(old, kind, choice)
    return Edit(before, Scene(render(new, draw), new, caption(new)), instruction, kind)


def _changed(old: Attributes, kind: Kind, choice: np.random.Generator) -> tuple[Attributes, str]:
    def pick(values: Iterable[str]) -> str:
        return str(choice.choice(sorted(values)))

    if kind == "colour":
        colour = pick(c for c in COLOURS if c != old.colour and (old.shape, c) not in RESERVED)
        return replace(old, colour=colour), pick((f"make the {old.shape} {colour}", f"make it {colour}"))
    if kind == "shape":
        shape = pick(s for s in SHAPES if s != old.shape and (s, old.colour) not in RESERVED)
        return replace(old, shape=shape), pick((f"turn the {old.shape} into a {shape}", f"turn it into a {shape}"))
    if kind == "background":
        background = pick(b for b in BACKGROUNDS if b != old.background)
        return replace(old, background=background), f"put it {BACKGROUNDS[background]}"
    if kind == "detail":
        room = old.y >= -0.96 + 1.3 * old.radius  # a hat needs it
        detail = pick(d for d in DETAILS if d != old.detail and (d != "hat" or room))
        without = f"a {old.shape} {DETAILS[old.detail].replace('with', 'without', 1)}"
        return replace(old, detail=detail), without if detail == "none" else f"the {old.shape} {DETAILS[detail]}"
    if kind == "tone":
        return replace(old, tone="black and white"), "make it black and white"
    return old, str(choice.choice(NO_OPS))
