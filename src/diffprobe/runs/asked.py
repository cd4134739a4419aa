"""What each probe can be asked of a model, before anything is measured: yes, or what is lacking and how to give it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from diffprobe.errors import UserError, unknown
from diffprobe.model import Model
from diffprobe.probes import PROBES
from diffprobe.probes.base import Probe
from diffprobe.runs.study import settings

_NETWORK = "a network with `predicts`, `path` and `shape`"
#: How a capability is given.
_GIVEN = {
    "denoiser": _NETWORK,
    "path": _NETWORK,
    "codec": "a `codec` between images and its x",
    "condition": "a `condition` from prompts to what the network takes",
    "editor": "an `editor` with its `size`",
    "generator": "a `generator` with its `size`",
}
#: Where a quick preset cannot be asked, what else of the probe can, and what that needs.
_INSTEAD = {
    "drift": ({"denoiser", "path", "condition", "codec"}, "dp.Drift(editors=('ddim',)), which inverts"),
    "geometry": ({"denoiser", "path"}, "dp.Geometry(sets=(), fields=(dp.Field(sigmas=(1.0,)),)), which describes the denoiser"),
}


@dataclass(frozen=True)
class Answer:
    """Whether a probe's quick preset can be asked. `why` says what of it is left out, or what is lacking and how to give it; else empty."""

    probe: str
    can: bool
    why: str


def asked(model: Model, probes: Iterable[str] = tuple(PROBES)) -> tuple[Answer, ...]:
    """What of the quick presets of `probes`, by name, this model can be asked; an instrument that looks at images is taken for granted.

    Nothing is measured: a model's own condition is asked whether it knows the presets' prompts. Raises UserError for an unknown name.
    """
    names = tuple(probes)
    for name in names:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    return tuple(_answer(model, PROBES[name].preset("quick")) for name in names)


def _answer(model: Model, preset: Probe) -> Answer:
    try:
        probe = preset.suited(model)
        lacking = probe.needs - model.capabilities - {"embedder"}
        if lacking:
            return Answer(preset.name, False, _remedy(preset.name, model, lacking))
        probe.check(model)
    except UserError as error:
        return Answer(preset.name, False, str(error))
    except Exception as error:  # a condition is somebody's code, which may raise anything
        why = str(error).strip().partition("\n")[0][:200]
        return Answer(preset.name, False, f"its prompts are not known ({type(error).__name__}: {why}): give the probe prompts that are")
    return Answer(preset.name, True, _left_out(preset, probe))


def _remedy(name: str, model: Model, lacking: frozenset[str]) -> str:
    if "editor" in lacking and model.denoiser is not None:
        return _to_invert(model)
    parts = dict.fromkeys(told for capability, told in _GIVEN.items() if capability in lacking)
    needed, otherwise = _INSTEAD.get(name, ({""}, ""))
    instead = f"; or ask {otherwise}" if needed <= model.capabilities else ""
    return f"it has no {' and no '.join(sorted(lacking))}: give dp.wrap {', and '.join(parts)}{instead}"


def _to_invert(model: Model) -> str:
    """What a network can be given to be asked for its drift: no editor, which is a model of its own."""
    needed, otherwise = _INSTEAD["drift"]
    parts = [told for capability, told in _GIVEN.items() if capability in needed - model.capabilities]
    first = f"give the network {' and '.join(parts)} and " if parts else ""
    return f"it has no editor: wrap the editor by itself, or {first}ask {otherwise}"


def _left_out(preset: Probe, probe: Probe) -> str:
    """The settings that the model changes, as they are then."""
    before = settings(preset)
    return ", ".join(f"with {name}={value}" for name, value in settings(probe).items() if value != before[name])
