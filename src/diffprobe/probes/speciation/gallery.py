"""What the denoiser sees on the way: the pictures beside the curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from diffprobe.probes.base import Exhibit, Records
from diffprobe.probes.speciation.contests import Contest

_CONDITIONS = 12


def exhibits(plain: Sequence[Contest], records: Records) -> Iterator[Exhibit]:
    """A row a condition and kept seed: E[x_0 | x_t] from noise to data; a variant's captions say how much is undecided there."""
    if "Snapshots" not in records:
        return
    frame: pd.DataFrame = records["Snapshots"].to_pandas().dropna(subset=["picture"])
    owner = {condition: one for one in reversed(plain) for condition in one.partition.conditions}
    own = {one.partition.conditions[0]: one.partition.name for one in reversed(plain) if len(one.partition.conditions) == 2}
    shared = {condition for condition in owner if sum(condition in one.partition.conditions for one in plain) > 1}
    wanted = dict.fromkeys(condition for one in plain for condition in reversed(one.partition.conditions))
    for condition in list(wanted)[:_CONDITIONS]:
        contest = None if condition in shared and condition not in own else owner[condition]
        for seed, rows in frame[frame["prompt"] == condition].groupby("seed"):
            title = f"“{condition}”" if condition else "no condition"
            pictures = {_told(float(row["sigma"]), contest): str(row["picture"]) for _, row in rows.sort_values("step").iterrows()}
            yield Exhibit(
                own.get(condition, "base" if contest is None else condition or "none"), f"{title}, seed {seed}", pictures, _numbers(contest)
            )


def _told(sigma: float, contest: Contest | None) -> str:
    level = f"σ {sigma:.3g}" if math.isfinite(sigma) else "σ ∞"
    if contest is None:
        return level
    place = int(np.argmin(np.abs(np.log(np.minimum(contest.sigma, 1e30)) - math.log(min(sigma, 1e30)))))
    return f"{level}, {contest.profile.entropy[place] / contest.partition.entropy:.0%} undecided"


def _numbers(contest: Contest | None) -> dict[str, float | str]:
    if contest is None or math.isnan(contest.profile.commitment.value):
        return {}
    return {"half decided at σ": contest.profile.commitment.value}
