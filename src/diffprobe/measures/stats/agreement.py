"""Whether people agree, with each other and with a score."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as ss

from diffprobe.measures.stats.intervals import Array, Interval, score_limits, wilson_interval

Unit = TypeVar("Unit", bound=Hashable)
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Agreement(NamedTuple):
    """What `human_agreement` found: the units with votes are decided, ties, even or unmatched, one of the four each."""

    agreement: Interval  # share of the decided units in which the majority chose the winner; nan where none is decided
    agreed: int
    decided: int  # units with a majority and a winner
    ties: int  # no choice has the most votes
    even: int  # a majority, but the winner is None: the scores are equal
    unmatched: int  # no entry in `winner`
    unvoted: int  # units of `winner` without a vote
    kappa: Interval  # Fleiss' kappa between the annotators, over the units with two votes or more
    annotators: int
    votes: int
    abstained: int  # choices that are None: they do not vote


def human_agreement(
    choices: Iterable[tuple[Unit, str | None, str]], winner: Mapping[Unit, str | None], *, level: float = 0.95
) -> Agreement:
    """How often the majority of the annotators chose what a score puts first.

    `choices`: (unit, chosen, annotator), such as (prompt, model, person), in any order; `winner`: for each unit the one with the
    higher score, None where the scores are equal. A unit whose vote is tied or whose scores are, is left out and counted. The
    interval is Wilson's over units. Raises ValueError where an annotator chose twice for a unit.
    """
    ballots: dict[Unit, dict[str, str | None]] = defaultdict(dict)
    for unit, chosen, annotator in choices:
        if annotator in ballots[unit]:
            raise ValueError(f"annotator {annotator!r} chose twice for {unit!r}: keep one choice for each unit and annotator")
        ballots[unit][annotator] = chosen
    cast = {unit: Counter(chosen for chosen in ballot.values() if chosen is not None) for unit, ballot in ballots.items()}
    voted = {unit: votes for unit, votes in cast.items() if votes}
    matched = {unit: votes for unit, votes in voted.items() if unit in winner}
    majority = {unit: found for unit, votes in matched.items() if (found := _majority(votes)) is not None}
    decided = {unit: found for unit, found in majority.items() if winner[unit] is not None}
    agreed = sum(found == winner[unit] for unit, found in decided.items())
    options = sorted({chosen for votes in voted.values() for chosen in votes})
    counts = [[votes[option] for option in options] for votes in voted.values()]
    return Agreement(
        agreement=wilson_interval(agreed, len(decided), level=level) if decided else UNKNOWN,
        agreed=agreed,
        decided=len(decided),
        ties=len(matched) - len(majority),
        even=len(majority) - len(decided),
        unmatched=len(voted) - len(matched),
        unvoted=sum(unit not in voted for unit in winner),
        kappa=fleiss_kappa(counts, level=level) if counts else UNKNOWN,
        annotators=len({annotator for ballot in ballots.values() for annotator in ballot}),
        votes=sum(votes.total() for votes in voted.values()),
        abstained=sum(chosen is None for ballot in ballots.values() for chosen in ballot.values()),
    )


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable], *, level: float = 0.95) -> Interval:
    """The agreement of two annotators' labels [units] beyond chance, -1 to 1 (Cohen 1960); a unit with a None does not count.

    Interval: see `_kappa`; good for 30 units or more, for a low kappa with a rare category 50. Nan with fewer than 2 units or where
    both know one category only. Raises ValueError for different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"kappa needs the labels of the same units, not {len(a)} and {len(b)}: align them by unit")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    codes = {label: code for code, label in enumerate(dict.fromkeys(label for pair in pairs for label in pair))}
    if len(pairs) < 2 or len(codes) < 2:
        return UNKNOWN
    first, second = np.array([[codes[x], codes[y]] for x, y in pairs]).T
    of_first, of_second = (np.bincount(labels, minlength=len(codes)) / len(pairs) for labels in (first, second))
    expected = float(of_first @ of_second)
    return _kappa((first == second).astype(np.float64), of_second[first] + of_first[second] - 2 * expected, expected, level)


def fleiss_kappa(counts: ArrayLike, *, level: float = 0.95) -> Interval:
    """The agreement of several annotators beyond chance, -1 to 1: counts [units, categories] of their votes (Fleiss 1971).

    Units may have unequal numbers of votes: each weighs the same in the agreement, each vote the same in the chance; units with
    fewer than 2 votes do not count. Interval: see `_kappa`; good for 30 units or more, but for a kappa of 0.2 it falls 1 to 4 points
    of coverage short up to 50 units. Nan with fewer than 2 units or one category. Raises ValueError for negative counts or another
    shape.
    """
    votes = np.asarray(counts, dtype=np.float64)
    if votes.ndim != 2 or not (votes >= 0).all():
        raise ValueError(f"kappa needs counts [units, categories] of 0 or more, not {list(votes.shape)}")
    votes = votes[votes.sum(1) >= 2]
    each = votes.sum(1)
    if len(votes) < 2 or (votes.sum(0) > 0).sum() < 2:
        return UNKNOWN
    agree = (votes * (votes - 1)).sum(1) / (each * (each - 1))
    share = votes.sum(0) / each.sum()
    expected = float(share @ share)
    return _kappa(agree, 2 * (votes @ share - each * expected) / each.mean(), expected, level)


def _kappa(agree: Array, moves: Array, expected: float, level: float) -> Interval:
    """(A - E) / (1 - E) from the agreement [units] with mean A, the chance E, and how far each unit moves that [units], mean 0.

    Wilson's interval for A, with the sample size that has kappa's variance over units (delta method: Fleiss, Cohen and Everitt 1969)
    and Student's t: it keeps a width where all agree.
    """
    observed, n = float(agree.mean()), len(agree)
    influence = ((agree - observed) * (1 - expected) - moves * (1 - observed)) / (1 - expected) ** 2
    variance = float((influence**2).sum()) / (n * (n - 1)) * (1 - expected) ** 2
    size = observed * (1 - observed) / variance if variance > 0 and 0 < observed < 1 else n
    lo, hi = score_limits(observed, size, float(ss.t.ppf((1 + level) / 2, n - 1)))
    return Interval(*((share - expected) / (1 - expected) for share in (observed, lo, hi)))


def _majority(votes: Counter[str]) -> str | None:
    """The choice with the most votes, None where two have as many."""
    first = votes.most_common(2)
    return None if len(first) == 2 and first[0][1] == first[1][1] else first[0][0]
