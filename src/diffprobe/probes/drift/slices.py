"""The records of a drift study as matrices: one slice a setting, images down, strengths across."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.measures.drift import HYPOTHESES, Factors, Levels, Selection, StrengthBudget
from diffprobe.measures.stats import Estimate
from diffprobe.probes.drift.editors import PIPELINE

PURE_NOISE = 1000.0  # a noise-to-signal ratio from which on a level says nothing about the image
LOOKS = ("cosine:", "lpips:")  # how the columns of distances begin that instruments give
Array = npt.NDArray[np.float64]
SETTING = ("prompt_set", "editor", "guidance_scale", "num_inference_steps", "resolution")


@dataclass(frozen=True)
class Asked:
    """What of a study's settings its summary needs: the order of each of SETTING, the confidence level, the tolerated error."""

    order: Mapping[str, tuple[str | float | int, ...]]
    level: float
    tolerance: float


@dataclass(frozen=True)
class Slice:
    """The edits of one setting, a matrix a metric: images down, strengths across; prompts and seeds are averaged within an image."""

    setting: dict[str, str | float | int]
    rows: pd.DataFrame
    levels: pd.DataFrame  # requested_strength (index), strength, steps, alpha, sigma

    @property
    def inverts(self) -> bool:
        """Whether its editor climbs to its level without noise, so that there is none whose share could be left."""
        return self.setting["editor"] != PIPELINE

    @property
    def told(self) -> bool:
        """Whether its editor says at which noise level a strength starts."""
        return bool(self.levels["sigma"].notna().all())

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws that can be tried: all, or those of the strength alone where nothing else is told."""
        return tuple(name for name, law in HYPOTHESES.items() if self.told or law.axis == "strength")

    def matrix(self, metric: str) -> Array:
        """[images, levels], nan where no sample counts."""
        table = self.rows.pivot_table(index="image", columns="requested_strength", values=metric, aggfunc="mean", dropna=False)
        return np.asarray(table.reindex(columns=self.levels.index), np.float64)

    def facets(self, strength: float) -> dict[str, str | float | int]:
        """Where the edits at a strength started; a start from pure noise (a flow's strength 1) has no noise-to-signal ratio."""
        level, sigma = self.levels.loc[strength], float(self.levels.loc[strength, "sigma"])
        steps = {"steps": int(level["steps"])} if self.told else {}
        return {**self.setting, "strength": strength, **steps} | ({"sigma": sigma} if np.isfinite(sigma) else {})

    def kernel(self, metric: str) -> tuple[Levels, Array]:
        """The levels that a law can be fitted to, which as good as pure noise is not, and the metric there, [images, levels].

        Where nothing else is told the strength stands in every field: it keeps the levels apart, and `laws` read no other.
        """
        if not self.told:
            return Levels(*[self.levels["strength"].to_numpy(np.float64)] * 4), self.matrix(metric)
        fit = self.levels["sigma"].to_numpy(np.float64) < PURE_NOISE
        columns = (self.levels[name].to_numpy(np.float64)[fit] for name in ("strength", "steps", "alpha", "sigma"))
        return Levels(*columns), self.matrix(metric)[:, fit]


@dataclass(frozen=True)
class Summary:
    """What charts, verdicts and cards are made from: the slices, the main one first, and what was computed of them."""

    asked: Asked
    slices: tuple[Slice, ...]
    originals: pd.DataFrame
    metrics: tuple[str, ...]
    means: tuple[Estimate, ...]
    selection: Selection
    budget: pd.DataFrame
    allowed: StrengthBudget | None

    @property
    def main(self) -> Slice:
        return self.slices[0]

    @property
    def factors(self) -> tuple[str, ...]:
        """The factors of the linear part of the main slice that mean something there."""
        return ("alignment",) if self.main.inverts else Factors._fields


def slices(asked: Asked, edits: pd.DataFrame) -> Iterator[Slice]:
    """One slice a setting, in the study's order, so that the first is the main one."""
    places = [{value: index for index, value in enumerate(asked.order[name])} for name in SETTING]
    groups = dict(iter(edits.groupby(list(SETTING), sort=False)))
    for key in sorted(groups, key=lambda values: [place[value] for place, value in zip(places, values, strict=True)]):
        rows = groups[key]
        levels = rows.groupby("requested_strength")[["strength", "steps", "alpha", "sigma"]].first().sort_index()
        setting = {name: asked.order[name][place[value]] for name, place, value in zip(SETTING, places, key, strict=True)}
        yield Slice(setting, rows, levels)
