"""Which of several estimates or comparables a rule means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from diffprobe.errors import UserError, unknown
from diffprobe.probes.base import Facets
from diffprobe.report.numbers import label

_LISTED = 6  # values of a facet in an error


class Faceted(Protocol):
    @property
    def facets(self) -> Facets: ...


Some = TypeVar("Some", bound=Faceted)


def choose(found: Sequence[Some], wanted: Mapping[str, str], name: str) -> Some:
    """The one of several that the facets leave: of those left, the one with the fewest facets, if the others only add to these.

    Raises UserError for a facet that none has, and where several are left, with what to add.
    """
    left = narrowed(found, wanted, name)
    names = [frozenset(one.facets) for one in left]
    coarsest = min(names, key=len)
    if all(coarsest <= others for others in names):
        left = [one for one, its in zip(left, names, strict=True) if its == coarsest]
    if len(left) == 1:
        return left[0]
    values = {facet: [label(one.facets[facet]) for one in left if facet in one.facets] for one in left for facet in one.facets}
    varying = {facet: list(dict.fromkeys(its)) for facet, its in values.items() if len(set(its)) > 1 or len(its) < len(left)}
    told = " or ".join(f"{facet} ({', '.join(its[:_LISTED])}{', ...' if len(its) > _LISTED else ''})" for facet, its in varying.items())
    raise UserError(f"{name} means {len(left)} quantities: say in braces which {told}, such as {_example(name, varying)}")


def narrowed(found: Sequence[Some], wanted: Mapping[str, str], name: str) -> list[Some]:
    """Those that have the facets; raises UserError with the nearest valid name or value where none has."""
    names, bare = {facet for one in found for facet in one.facets}, name.partition("{")[0]
    left = list(found)
    for facet, value in wanted.items():
        if facet not in names:
            raise unknown(f"facet of {bare}", facet, names)
        valid = {label(one.facets[facet]) for one in left if facet in one.facets}
        left = [one for one in left if has(one.facets, {facet: value})]
        if not left:
            raise unknown(f"{facet} of {bare}", value, valid)
    return left


def has(facets: Facets, wanted: Mapping[str, str]) -> bool:
    """Whether the facets are among these, with the values as they were written."""
    return all(name in facets and _same(facets[name], value) for name, value in wanted.items())


def _same(value: str | float | int | bool, written: str) -> bool:
    """A number is known by its first six digits, which are what a report shows."""
    if isinstance(value, str | bool):
        return str(value).lower() == written.lower() if isinstance(value, bool) else value == written
    try:
        return bool(np.isclose(float(value), float(written), rtol=1e-5, atol=0))
    except ValueError:
        return False


def _example(name: str, varying: Mapping[str, Sequence[str]]) -> str:
    facet, values = next(iter(varying.items()), ("facet", ["value"]))
    start = f"{name.removesuffix('}')}, " if name.endswith("}") else f"{name}{{"
    return f"{start}{facet}={values[0]}}}"
