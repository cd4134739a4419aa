"""Whether a finished run is one of a study: of its model, with its settings and its data, and complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffprobe.adapters.embedded import MEMBERS
from diffprobe.probes.base import Probe
from diffprobe.runs.result import Run
from diffprobe.runs.study import settings

_TOLD = 3  # differences of settings that are named
_LONG = 60  # characters of a setting's value
#: Settings that shape neither a measurement nor an estimate that is compared: pictures, and thresholds of verdicts.
_LOOKS = frozenset({"keep_images", "snapshots", "snapshot_sigmas", "tolerance", "half_width", "margin"})


class Sameness(NamedTuple):
    """What shows that a part of a run is another one than the study's, and what cannot be shown either way."""

    differences: tuple[str, ...]
    unproved: tuple[str, ...]


def same_model(about: Mapping[str, str], spec: str) -> Sameness:
    """A model's identity, as run.json has it, against a study's spec: by hub id, or by name where it ships or is one of EDM2's files.

    A local folder may hold the weights of any hub id, so that it is neither the same nor another.
    """
    wanted, other, unproved = _sources(spec), [], []
    for key, place in wanted.items():
        source = about.get(key)
        if source == place:
            continue
        if source is not None and (_named_alike(source, place) if spec.startswith("edm2:") else _local(about, key)):
            unproved.append(f"that {source} holds {place} cannot be proved")
        else:
            other.append(f"the {key.replace('_', ' ')} of its model is {source or 'not there'}, and the recipe's {place}")
    if wanted["source"] not in MEMBERS:
        more = [key for key in ("lora_source", "lora_scale") if key in about and key not in wanted]
        other += [f"the {key.replace('_', ' ')} of its model is {about[key]}, and the recipe's has none" for key in more]
    return Sameness(tuple(other), tuple(unproved))


def same_scheduler(about: Mapping[str, Any], scheduler: str | None) -> Sameness:
    """Whether a run's pipeline, by what run.json says of it, samples with the class of a study; None asks for none."""
    if scheduler is None:
        return Sameness((), ())
    found = str(about.get("facts", {}).get("scheduler", "")).partition(",")[0]
    if found:
        return Sameness(() if found == scheduler else (f"its pipeline samples with {found}, and the study's with {scheduler}",), ())
    return Sameness((), (f"that its pipeline samples with {scheduler} is not recorded",))


def obstacles(run: Run, probe: Probe, stand_ins: Mapping[str, str]) -> Iterator[str]:
    """What keeps a run from being compared with a probe's published numbers: other settings, data that stand in, missing cells.

    `stand_ins` are places of settings ('drift.images') with what the study had there: where the run has what the recipe has, it has
    the stand-in, and anything else is taken for the study's own.
    """
    kind = probe.name
    asked = next((settings(one) for one in run.probes if one.name == kind), None)
    if asked is None:
        yield f"the run has no probe {kind}"
        return
    wanted = settings(probe)
    for place, what in stand_ins.items():
        at, *path = place.split(".")
        if at == kind:
            if _shares(_at(asked, path), _at(wanted, path)):
                yield f"{place} stands in for {what}"
            asked, wanted = _without(asked, path), _without(wanted, path)
    other = [name for name, value in wanted.items() if name not in _LOOKS and asked.get(name) != value]
    for name in other[:_TOLD]:
        yield f"its {name} is {_short(asked.get(name))}, and the recipe's {_short(wanted[name])}"
    if len(other) > _TOLD:
        yield f"{len(other) - _TOLD} more of its settings differ: {', '.join(other[_TOLD:])}"
    keys = run.plan.get(kind, [])
    if missing := len(set(keys) - run.store.done(kind)):
        yield f"{missing} of its {len(keys)} cells are not measured"


def _sources(spec: str) -> dict[str, str]:
    """Where the parts of a spec come from, by the names that a model's identity has for them."""
    if spec.startswith("edm2:"):
        file, *others = spec.removeprefix("edm2:").split(",")
        named = dict(other.split("=", 1) for other in others)
        return {"source": file} | ({"unconditional": named["uncond"]} if "uncond" in named else {})
    base, plus, lora = spec.rpartition("+")
    if not plus or Path(spec).exists():
        return {"source": spec}
    scale, star, place = lora.rpartition("*")
    return {"source": base, "lora_source": place} | ({"lora_scale": scale} if star else {})


def _named_alike(source: str, place: str) -> bool:
    return Path(source).name == Path(place).name


def _local(about: Mapping[str, str], key: str) -> bool:
    """Whether a source is the place of a saved pipeline here: no hub's commit is with it, and it is no name of a model that ships."""
    if key == "lora_scale":
        return False
    commit = "lora_commit" if key == "lora_source" else "commit"
    return commit not in about and about[key] not in MEMBERS and "family" in about


def _at(value: Any, path: list[str]) -> list[Any]:
    """What lies at a path: one value, or where there is a list on the way, that of each item."""
    if not path:
        return [value]
    items = value if isinstance(value, list) else [value]
    return [found for item in items if isinstance(item, dict) and path[0] in item for found in _at(item[path[0]], path[1:])]


def _shares(asked: list[Any], wanted: list[Any]) -> bool:
    """Whether any of the values in their order is still the recipe's."""
    return any(one == other for one, other in zip(asked, wanted, strict=False))


def _without(value: Any, path: list[str]) -> Any:
    """The same without what lies at a path."""
    if isinstance(value, list):
        return [_without(item, path) for item in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    rest = {name: part for name, part in value.items() if name != path[0]}
    return rest if len(path) == 1 else {**rest, path[0]: _without(value[path[0]], path[1:])}


def _short(value: object) -> str:
    told = json.dumps(value, ensure_ascii=False)
    return told if len(told) <= _LONG else f"{told[:_LONG]}…"
