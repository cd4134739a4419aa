"""A study: which model, which instruments, which probes. A short YAML file with the same keys as the Python dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from diffprobe.errors import UserError, unknown
from diffprobe.probes import PROBES
from diffprobe.probes.base import Probe
from diffprobe.runs import places

_DIGITS = 300  # of a reported value, at most: beyond them no double holds it


class Variant(BaseModel):
    """One of a study's models: its spec, and what it changes of the study's probes (kind to settings), such as a style's own word."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Report(BaseModel):
    """One thing that a published study reports, and what of a run can be set against it.

    `quantity` is a probe and an estimate of its summary, 'drift.mse'; `facets` are those that the estimate must have, and `model`
    one of the study's. `value` keeps its digits: one that ends in 0 is written in quotes. `plus_minus` is, as `spread` says, the
    standard deviation of `n` values or the standard error of their mean. `lo` and `hi` in place of a value are a range that is reported,
    open where one of them is left out. Without a quantity, `note` says why nothing of a run can be set against it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    quantity: str | None = None
    facets: dict[str, bool | int | FiniteFloat | str] = Field(default_factory=dict)
    model: str | None = None
    value: Decimal | None = None
    plus_minus: FiniteFloat | None = Field(default=None, gt=0)
    spread: Literal["sd", "se"] | None = None
    lo: FiniteFloat | None = None
    hi: FiniteFloat | None = None
    n: int | None = Field(default=None, ge=1)
    note: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        ranged = self.lo is not None or self.hi is not None
        if self.quantity is None:
            if not self.note or self.value is not None or ranged:
                raise UserError(f"the report '{self.what}' needs a 'quantity' and a 'value', or else a 'note' alone that says why not")
        elif "." not in self.quantity or (self.value is None) is not ranged:
            raise UserError(f"the report '{self.what}' needs a quantity such as 'drift.mse', with a 'value' or with 'lo' and 'hi'")
        if (self.plus_minus is None) is not (self.spread is None) or (self.spread == "sd" and self.n is None):
            raise UserError(f"the report '{self.what}' needs 'plus_minus' and 'spread: sd' or 'spread: se' together, and with sd also 'n'")
        if self.plus_minus is not None and self.value is None:
            raise UserError(f"the report '{self.what}' has a plus_minus without a value: a range has none")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise UserError(f"the report '{self.what}' has a range from {self.lo:g} down to {self.hi:g}: exchange 'lo' and 'hi'")
        if self.value is not None and not (math.isfinite(self.value) and abs(int(self.value.as_tuple().exponent)) <= _DIGITS):
            raise UserError(f"the report '{self.what}' has the value {self.value}, which is too large or too small for a number here")
        return self


class Study(BaseModel):
    """A study as its file has it, checked. `models` (name to variant) makes one run directory each; `model` makes one run.

    What a published study reports is no part of a run: `source` names it, `reports` lists it, `scheduler` is the class of diffusers
    that it sampled with where that is not each pipeline's own, and `stand_ins` names settings ('drift.images',
    'geometry.generated.captions.prompts', 'geometry.sets.reference') that stand for data which cannot be shipped, each with what the
    study had there. In a copy with data of one's own, deleting a line of them says that the study's data are there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    source: str = ""
    model: str = "embedded"
    models: dict[str, Variant] = Field(default_factory=dict)
    embedders: tuple[str, ...] = ("embedded",)
    scorers: tuple[str, ...] = ()
    device: str = "auto"
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    revision: str | None = None
    variant: str | None = None
    batch_size: int = Field(default=16, ge=1)
    probes: tuple[Any, ...]
    scheduler: str | None = None
    stand_ins: dict[str, str] = Field(default_factory=dict)
    reports: tuple[Report, ...] = ()

    def variants(self) -> dict[str, tuple[str, tuple[Probe, ...]]]:
        """Each run of the study by name ("" where there is one model): the model's spec and its probes."""
        if not self.models:
            return {"": (self.model, self.probes)}
        return {name: (variant.model, tuple(_changed(probe, variant) for probe in self.probes)) for name, variant in self.models.items()}


def load_study(source: str) -> Study:
    """A study from a YAML file, or from one of the shipped recipes by name; raises UserError with one line for whatever is wrong."""
    path = find_study(source)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys such as 'model:' and 'probes:'")
    return parse_study(content)


def find_study(source: str) -> Path:
    """The file of a study: the one at this path, or that of the shipped recipe of this name. Raises UserError where there is neither."""
    path, names = Path(source), recipes()
    if path.is_file():
        return path
    if source not in names:
        raise unknown("study", source, names) if not path.suffix else UserError(f"no study file at '{source}'")
    return names[source]


def parse_study(content: Mapping[str, Any]) -> Study:
    """A study from its keys; an unknown key is refused with the nearest valid name."""
    for name in content:
        if name not in Study.model_fields:
            raise unknown("key in the study", str(name), Study.model_fields)
    listed = content.get("probes")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"a study needs 'probes:', a list with at least one of: {', '.join(PROBES)}")
    if "model" in content and "models" in content:
        raise UserError("a study has either 'model:' or 'models:', not both")
    try:
        models = {"models": _models(content["models"])} if "models" in content else {}
        study = Study(**{**content, **models, "probes": tuple(parse_probe(item) for item in listed)})
    except ValidationError as error:
        raise _told(error, "the study") from error
    once([probe.name for probe in study.probes])
    for variant in study.models.values():
        for kind in variant.changes:
            if kind not in (names := [probe.name for probe in study.probes]):
                raise unknown("probe of this study", kind, names)
    study.variants()  # raises for a setting that its probe does not know
    _check_published(study)
    return study


def _check_published(study: Study) -> None:
    """Raise UserError where what is reported, or stood in for, is of a probe, a setting or a model that the study does not have."""
    asked = {probe.name: settings(probe) for probe in study.probes}
    for place in study.stand_ins:
        kind, *path = place.split(".")
        if kind not in asked:
            raise unknown("probe of this study", kind, asked)
        places.require({name: value for name, value in asked[kind].items() if name != "kind"}, path or [""], kind)
    for report in study.reports:
        kind = (report.quantity or "").partition(".")[0]
        if kind and kind not in asked:
            raise unknown("probe of this study", kind, asked)
        if report.model is not None and report.model not in study.models:
            raise unknown("model of this study", report.model, study.models)
        if kind and study.models and report.model is None:
            raise UserError(f"the report '{report.what}' needs 'model:', one of {', '.join(study.models)}")


def _models(listed: object) -> dict[str, Any]:
    """`models:` as it is read: a name to a spec, or to `model:` and beside it the settings of a probe that this model changes."""
    if not isinstance(listed, dict) or not listed:
        raise UserError("'models:' needs a name for each model, such as 'base: embedded'")
    found = {}
    for name, item in listed.items():
        if isinstance(item, dict) and "model" not in item:
            raise UserError(f"the model '{name}' of the study needs 'model:', a spec such as 'embedded'")
        parts = dict(item) if isinstance(item, dict) else {"model": item}
        found[str(name)] = {"model": parts.pop("model"), "changes": parts}
    return found


def _changed(probe: Probe, variant: Variant) -> Probe:
    changes = variant.changes.get(probe.name)
    return parse_probe({**settings(probe), **changes}) if changes else probe


def once(names: Sequence[str]) -> None:
    """Raise UserError where a probe is named twice: a run has one answer to each question."""
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise UserError(f"the probe '{twice}' comes twice: give lists of values to one, or make two studies")


def parse_probe(item: object) -> Probe:
    """A probe from `kind: name` and its settings; a single value stands for a list of one."""
    if isinstance(item, str):
        item = {"kind": item}
    if not isinstance(item, dict) or "kind" not in item:
        raise UserError("each probe in a study needs 'kind:', one of " + ", ".join(PROBES))
    kind, settings = str(item["kind"]), {name: value for name, value in item.items() if name != "kind"}
    if kind not in PROBES:
        raise unknown("probe", kind, PROBES)
    fields = {field.name: field for field in dataclasses.fields(PROBES[kind])}
    for name, value in settings.items():
        if name not in fields:
            raise unknown(f"setting of {kind}", str(name), fields)
        if str(fields[name].type).startswith("tuple"):
            values = value if isinstance(value, list | tuple) else [value]
            # YAML reads the prompt set null as nothing.
            settings[name] = ["null" if item is None else _nested(item, kind, name) for item in values]
    try:
        return cast(Probe, TypeAdapter(PROBES[kind]).validate_python(settings))
    except ValidationError as error:
        raise _told(error, kind) from error


def _nested(item: object, kind: str, name: str) -> object:
    """An item of a list of settings; in one that has settings of its own, too, a single value stands for a list of one."""
    inner = next((part for part in get_args(get_type_hints(PROBES[kind])[name]) if dataclasses.is_dataclass(part)), None)
    if inner is None or not isinstance(item, dict):
        return item
    lists = {field.name for field in dataclasses.fields(inner) if str(field.type).startswith("tuple")}
    return {key: [value] if key in lists and not isinstance(value, list | tuple) else value for key, value in item.items()}


def settings(probe: Probe) -> dict[str, Any]:
    """A probe as its study file would have it, with every setting."""
    return {"kind": probe.name, **{field.name: _listed(getattr(probe, field.name)) for field in dataclasses.fields(cast(Any, probe))}}


def _listed(value: Any) -> Any:
    """A setting's value as YAML has it: tuples as lists, and what has fields of its own as a mapping."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _listed(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def recipes() -> dict[str, Path]:
    """The shipped studies by name."""
    folder = Path(str(resources.files("diffprobe") / "assets" / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def slug(name: str) -> str:
    """The directory of a run of the model of this name: what is no letter, digit, dash or dot becomes a dash."""
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name).strip("-.")


def preset(names: Sequence[str], budget: Literal["quick", "standard", "paper"]) -> tuple[Probe, ...]:
    """The named probes (all where none is named) at the size of a budget."""
    for name in names:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    return tuple(PROBES[name].preset(budget) for name in (names or PROBES))


def _told(error: ValidationError, where: str) -> UserError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return UserError(f"{where}: '{place}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}")
