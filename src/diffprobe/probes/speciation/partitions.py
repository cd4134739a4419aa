"""What is set against what: sides of a partition, each a set of conditions, and the guidance that trajectories may follow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

from diffprobe.errors import UserError

_LINKS = frozenset({"a", "an", "at", "in", "of", "on", "the", "with"})
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Partition:
    """Conditions (prompts, or "class 3" for a model of classes) in two sides or more, of which a sample decides for one.

    "" is the unconditional model: against one class it stands for the complement, the usual proxy. `priors` has a number for
    every condition, of the shape of `sides`, and sums to 1; empty: every side is as likely, and so is every condition within one.
    With priors, "" against one condition is the whole of which that is a part: it is set against the rest of the whole.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a mistyped key in a study is an error

    name: str
    sides: tuple[tuple[str, ...], ...]
    priors: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("a partition needs a name, by which the report speaks of it")
        if len(self.sides) < 2 or not all(self.sides):
            raise UserError(f"the partition '{self.name}' needs two sides or more, each with a condition at least")
        twice = next((one for index, one in enumerate(self.conditions) if one in self.conditions[:index]), None)
        if twice is not None:
            raise UserError(f"'{twice}' stands on two sides, or twice on one, of the partition '{self.name}': sides must not overlap")
        if not self.priors:
            return
        if [len(side) for side in self.priors] != [len(side) for side in self.sides]:
            raise UserError(f"the priors of the partition '{self.name}' need the shape of its sides, a number a condition")
        given = list(chain.from_iterable(self.priors))
        if not all(0 < one < 1 for one in given) or abs(sum(given) - 1) > 1e-6:
            raise UserError(f"the priors of the partition '{self.name}' must lie between 0 and 1 and sum to 1, not to {sum(given):g}")

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.sides))

    @property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """The prior probability of each condition, in the shape of the sides; exactly normalised."""
        total = sum(chain.from_iterable(self.priors))
        if self.priors:
            return tuple(tuple(one / total for one in side) for side in self.priors)
        return tuple(tuple(1 / len(self.sides) / len(side) for _ in side) for side in self.sides)

    @property
    def proxy(self) -> int | None:
        """The place of "" where it is the whole of which one other condition is a part with a given prior; None for anything else."""
        if self.priors and len(self.conditions) == 2 and "" in self.conditions:
            return self.conditions.index("")
        return None

    @property
    def entropy(self) -> float:
        """What is undecided in pure noise: the entropy of the sides' prior, in nats; ln 2 for two that are as likely."""
        return -sum(sum(side) * math.log(sum(side)) for side in self.weights)


@dataclass(frozen=True)
class Push:
    """Classifier-free guidance of the sampled trajectories where lo < sigma <= hi (None: no upper end), away from the negative prompt.

    The likelihoods stay those of the unguided model. `sides` "first" guides the first side of a partition alone, "all" every one.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    scale: float
    lo: float = 0.0
    hi: float | None = None
    sides: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        for name in ("scale", "lo", "hi"):  # 2 and 2.0 are one push, and must be one cell
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        if not math.isfinite(self.scale) or self.scale < 0 or self.scale == 1:
            raise UserError(f"a push needs a guidance scale, a finite number of at least 0 other than 1 (no guidance), not {self.scale:g}")
        if not 0 <= self.lo < self.top:
            raise UserError(f"guidance acts where lo < sigma <= hi: {self.lo} to {self.hi} holds nothing")

    @property
    def top(self) -> float:
        return math.inf if self.hi is None else self.hi

    def __str__(self) -> str:
        reach = "" if self.lo == 0 and self.hi is None else f" on sigma {self.lo:g} to {'∞' if self.hi is None else f'{self.hi:g}'}"
        return f"scale {self.scale:g}{reach}{', all sides' if self.sides == 'all' else ''}"


def expanded(variants: Sequence[str]) -> tuple[str, ...]:
    """Each variant, or where it holds a range such as {0..9}, one for each number of it."""
    found: list[str] = []
    for variant in variants:
        span = _RANGE.search(variant)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else range(1)
        if not numbers:
            raise UserError(f"'{variant}' holds no number: a range runs from the smaller to the larger, as in {{0..9}}")
        found += [_RANGE.sub(str(number), variant, count=1) if span else variant for number in numbers]
    return tuple(found)


def ladder(base: str, variants: Sequence[str]) -> Iterator[Partition]:
    """Every variant against the base, named by the words that it has and the base lacks."""
    if base in variants:
        raise UserError(f"'{base}' is the base and a variant: two equal prompts stay undecided at every level, so leave one out")
    names = [label(base, variant) for variant in variants]
    for variant, name in zip(variants, names, strict=True):
        yield Partition(name if names.count(name) == 1 else variant, ((variant,), (base,)))


def label(base: str, variant: str) -> str:
    """What a variant adds to the base: the words that only it has, or all of it where there are none."""
    held = set(re.findall(r"\w+", base.lower()))
    added = [word for word in variant.split() if not set(re.findall(r"\w+", word.lower())) <= held]
    while added and added[-1].lower() in _LINKS:  # "black and white picture of" has lost what it is of
        added.pop()
    return " ".join(added).strip(" ,.;") or variant


def drawn(partitions: Sequence[Partition], push: Push | None, negative: str, most: int) -> Iterator[tuple[str, ...]]:
    """The trajectories that the partitions need: for each kind the condition that is sampled, then all that are evaluated along it.

    A condition that many partitions share (the base of a ladder) is sampled once, and evaluated under all of theirs: up to
    `most` of them at once where partitions can be kept apart. A push draws anew only the sides that it guides.
    """
    needed: dict[str, list[tuple[str, ...]]] = {}
    for partition in partitions:
        for side in partition.sides if push is None or push.sides == "all" else partition.sides[:1]:
            for prompt in side:
                needed.setdefault(prompt, []).append(partition.conditions)
    for prompt, asked in needed.items():
        always = (prompt,) if push is None else (prompt, negative)
        group = dict.fromkeys(always)
        for conditions in asked:
            wider = dict.fromkeys((*group, *conditions))
            if len(wider) > most and len(group) > len(set(always)):
                yield tuple(group)
                wider = dict.fromkeys((*always, *conditions))
            group = wider
        yield tuple(group)
