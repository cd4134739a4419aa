"""Names that every tracker takes: letters, digits and underscores, each once, the same for the same estimates."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from diffprobe.measures.stats import Estimate
from diffprobe.report.numbers import label

#: MLflow takes 250 characters; what stands before and after a name has room in the rest.
LONGEST = 200


def metric_names(estimates: Sequence[Estimate]) -> list[str]:
    """`<probe>/<quantity>`, and after it the facets that tell it from the other estimates of its quantity: `drift/mse__strength_0p1`.

    A facet on which nothing hangs (a p value, a sigma beside the strength that set it) is not in the name: models that were measured
    alike then have the same names. Of two names that would be equal, letter case aside, each ends with a hash of what it stands for.
    """
    groups: dict[tuple[str, str], list[Estimate]] = {}
    for estimate in estimates:
        groups.setdefault((estimate.probe, estimate.quantity), []).append(estimate)
    telling = {group: _telling([one.facets for one in found]) for group, found in groups.items()}
    return distinct((_named(one, telling[one.probe, one.quantity]), _exactly(one)) for one in estimates)


def setting_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one flat mapping, `drift.strengths`, whose names keep dots and hyphens; lists stay lists."""
    found = dict(_flat(settings, ()))
    names = distinct((".".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part) for part in path), json.dumps(path)) for path in found)
    return dict(zip(names, found.values(), strict=True))


def distinct(named: Iterable[tuple[str, str]]) -> list[str]:
    """Of pairs (a name, what it exactly stands for) the names, short enough and each once: with a hash of the latter where they must."""
    pairs = list(named)
    counts = Counter(name.casefold() for name, _ in pairs)
    found: list[str] = []
    for name, exactly in pairs:
        clear = counts[name.casefold()] == 1 and len(name) <= LONGEST
        base = name if clear else f"{name[: LONGEST - 9]}_{hashlib.blake2b(exactly.encode(), digest_size=4).hexdigest()}"
        found.append(next(one for k in range(1, len(found) + 2) if (one := base if k == 1 else f"{base}_{k}") not in found))
    return found


def _named(estimate: Estimate, telling: Sequence[str]) -> str:
    facets = [f"{_clean(name)}_{_clean(estimate.facets[name])}" for name in telling if name in estimate.facets]
    return f"{_clean(estimate.probe)}/{'__'.join([_clean(estimate.quantity), *facets])}"


def _telling(facets: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of facets without which some of these would be the same; the ones given first are kept first."""
    kept = list(dict.fromkeys(name for one in facets for name in one))
    for name in reversed(tuple(kept)):
        fewer = [other for other in kept if other != name]
        if len({_values(one, fewer) for one in facets}) == len({_values(one, kept) for one in facets}):
            kept = fewer
    return kept


def _values(facets: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, facets[name]) for name in names if name in facets)


def _clean(value: object) -> str:
    """A number as 0p1, m2 or 1em05; of text the letters and digits, with an underscore for whatever stands between."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return label(value).replace(".", "p").replace("-", "m").replace("+", "")
    return re.sub(r"[^A-Za-z0-9]+", "_", str(value)).strip("_") or "unnamed"


def _exactly(estimate: Estimate) -> str:
    return json.dumps([estimate.probe, estimate.quantity, sorted(estimate.facets.items())], default=str)


def _flat(settings: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, (*path, str(name)))
        else:
            yield (*path, str(name)), value
