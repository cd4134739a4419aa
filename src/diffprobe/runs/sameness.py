"""Whether a finished run is one of a study: of its model, with its settings and its data, and complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffprobe.adapters.embedded import MEMBERS
from diffprobe.errors import UserError
from diffprobe.probes.base import Probe
from diffprobe.runs import places
from diffprobe.runs.result import Run
from diffprobe.runs.study import settings

_TOLD = 3  # differences of settings that are named
#: Settings that shape neither a measurement nor an estimate that is compared: pictures, and thresholds of verdicts.
_LOOKS = frozenset({"keep_images", "snapshots", "snapshot_sigmas", "tolerance", "half_width", "margin"})
#: A folder of images that a recipe names and everybody fetches; the built-in reference is no such folder.
_FOLDER, _SCENES = ("sweep", "reference"), "scenes"


class Sameness(NamedTuple):
    """What shows that a part of a run is another one than the study's, and what cannot be shown either way."""

    differences: tuple[str, ...]
    unproved: tuple[str, ...]


def same_model(about: Mapping[str, str], spec: str) -> Sameness:
    """A model's identity, as run.json has it, against a study's spec: by hub id, or by name where it ships or is one of EDM2's files.

    A local folder may hold the weights of any hub id, so that it is neither the same nor another; nor is any place of LoRA weights for
    which the recipe has a bare name, as nothing is fetched by that.
    """
    wanted, other, unproved = _sources(spec), [], []
    for key, place in wanted.items():
        source = about.get(key)
        if source == place:
            continue
        alike = _named_alike(source, place) if spec.startswith("edm2:") and source else _local(about, key) or _to_be_given(key, place)
        if source is not None and alike:
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


def same_dtype(about: Mapping[str, Any], torch_dtype: str | None) -> Sameness:
    """Whether a model, by its identity in run.json, ran in the precision of a study; None asks for none."""
    found = about.get("dtype")
    if torch_dtype in {None, found}:
        return Sameness((), ())
    if found is None:
        return Sameness((), (f"that its model ran in {torch_dtype} is not recorded",))
    return Sameness((f"its model ran in {found}, and the recipe's in {torch_dtype}",), ())


def same_measurement(run: Run, probe: Probe, stand_ins: Mapping[str, str]) -> Sameness:
    """Whether a run measured what a study's probe asks: its settings and its data, all of it.

    `stand_ins` are places of settings ('drift.images') with what the study had there: where the run has what the recipe has, it has
    the stand-in, and anything else is taken for the study's own. So is another folder of images where the recipe names one.
    """
    kind = probe.name
    asked = next((settings(one) for one in run.probes if one.name == kind), None)
    if asked is None:
        return Sameness((f"the run has no probe {kind}",), ())
    wanted, differences, unproved = settings(probe), list[str](), list[str]()
    for place, what in stand_ins.items():
        at, *path = place.split(".")
        if at == kind:
            if places.shared(places.at(asked, path), places.at(wanted, path)):
                differences.append(f"{place} stands in for {what} (where it does not, delete that line of 'stand_ins' in your copy)")
            else:
                unproved.append(f"that {place} is {what} is taken on trust")
            asked, wanted = places.blanked(asked, path), places.blanked(wanted, path)
    here, there = places.at(asked, _FOLDER), places.at(wanted, _FOLDER)
    if here != there and here and there and _SCENES not in {*here, *there}:
        unproved.append(f"that {here[0]} holds {there[0]} cannot be proved")
        asked, wanted = places.blanked(asked, _FOLDER), places.blanked(wanted, _FOLDER)
    return Sameness((*differences, *_others(asked, wanted), *_missing(run, kind)), tuple(unproved))


def require_sound(path: Path, about: Mapping[str, Any] | None) -> None:
    """Raise UserError where what run.json says of a run's model, pipeline or probes cannot be read; None is a run that is not there."""
    if about is None:
        return
    model = about.get("model")
    sound = {
        "model": isinstance(model, dict) and all(isinstance(value, str) for value in model.values()),
        "facts": isinstance(about.get("facts", {}), dict),
        "probes": isinstance(about.get("probes"), list),
    }
    for name in (name for name, right in sound.items() if not right):
        raise UserError(f"{path / 'run.json'} is damaged ('{name}' is not what a run writes): run the study again in another directory")


def _others(asked: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """The settings that differ, the first few by their first leaf."""
    other = [name for name, value in wanted.items() if name not in _LOOKS and asked.get(name) != value]
    yield from (places.difference(asked.get(name), wanted[name], name) for name in other[:_TOLD])
    if len(other) > _TOLD:
        yield f"{len(other) - _TOLD} more of its settings differ: {', '.join(other[_TOLD:])}"


def _missing(run: Run, kind: str) -> Iterator[str]:
    keys = run.plan.get(kind)
    if not isinstance(keys, list) or not keys:
        yield f"its plan has no cell of {kind}"
    elif missing := len({str(key) for key in keys} - run.store.done(kind)):
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


def _to_be_given(key: str, place: str) -> bool:
    return key == "lora_source" and "/" not in place and place not in MEMBERS


def _local(about: Mapping[str, str], key: str) -> bool:
    """Whether a source is the place of a saved pipeline here: no hub's commit is with it, and it is no name of a model that ships."""
    if key == "lora_scale":
        return False
    commit = "lora_commit" if key == "lora_source" else "commit"
    return key in about and commit not in about and about[key] not in MEMBERS and "family" in about
