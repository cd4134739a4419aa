"""What of a prompt its consistency goes with: its length, its words, and what it says it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffprobe.measures.stats import Estimate, holm
from diffprobe.measures.stats.samples import rank_correlation, welch
from diffprobe.probes.base import estimated
from diffprobe.probes.consistency.scored import ImageSet
from diffprobe.probes.prompts import Prompt, has, words

UNNAMED = "not named"
_FEWEST = 5  # prompts on either side of a comparison


def traits(embedder: str, scored: Sequence[ImageSet], asked: Mapping[str, Prompt], level: float) -> Iterator[Estimate]:
    """How the score goes with the number of words, and what sets the prompts with a feature apart from all others.

    Features are those of the prompts' file or set; where it has none, single words. p values are Holm's over all of an instrument's.
    """
    scores = {one.prompt: one.score.value for one in scored if one.score}
    prompts = [prompt for name, prompt in asked.items() if name in scores]
    if len(prompts) < 2 * _FEWEST:
        return
    values = np.array([scores[prompt.id] for prompt in prompts])
    lengths = [len(prompt.text.split()) for prompt in prompts]
    yield estimated("consistency", f"scs_length:{embedder}", rank_correlation(values, lengths, level=level), len(prompts))
    found = []
    for feature, name, members in _groups(prompts):
        among = np.array(members)
        if _FEWEST <= among.sum() <= len(among) - _FEWEST:
            found.append((feature, name, int(among.sum()), *welch(values[among], values[~among], level=level)))
    adjusted = holm([p for *_, p in found])
    for (feature, name, n, difference, p), own in zip(found, adjusted, strict=True):
        facets: dict[str, str | float | int | bool] = {"feature": feature, "level": name, "p": p, "p_adjusted": float(own)}
        yield estimated("consistency", f"scs_trait:{embedder}", difference, n, facets, "points")


def _groups(prompts: Sequence[Prompt]) -> Iterator[tuple[str, str, list[bool]]]:
    """Each value of each feature, and which prompts have it."""
    features = [dict(prompt.features) for prompt in prompts]
    names = list(dict.fromkeys(name for known in features for name in known))
    for name in names:
        column = [known.get(name, "") for known in features]
        for value in sorted(set(column)):
            yield name, value or UNNAMED, [other == value for other in column]
    texts = [prompt.text for prompt in prompts]
    for word in () if names else words(texts):
        yield "word", word, [has(text, word) for text in texts]
