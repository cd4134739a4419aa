"""What every probe is made of: cells that measure themselves, and findings that are computed from their records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import pyarrow as pa

from diffprobe.measures.stats import Estimate, Interval
from diffprobe.model import Model, Rig

#: The name of a cell class to all its records, with `cell` (key) and `row` (index in the cell) as extra columns.
Records = Mapping[str, pa.Table]
Row = Mapping[str, Any]


class Cell(Protocol):
    """The unit of work and of resuming: a frozen dataclass of plain values, which prints, hashes and pickles.

    `measure` reads only the cell's own fields and the records of its inputs, and gives one row a sample. A binary column
    `picture` holds lossless WebP files for the gallery; the store keeps them apart as media.
    """

    version: ClassVar[int]

    def inputs(self) -> tuple[Cell, ...]: ...

    def measure(self, rig: Rig, *records: pa.Table) -> pa.Table: ...

    def cost(self) -> Cost: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Cost:
    """What a cell will take, for `--dry-run`: network evaluations of the denoiser, decodings, and bytes on disk."""

    samples: int = 0
    evaluations: int = 0
    decodings: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class Load(NamedTuple):
    """The heaviest calls of a probe: how many rows are in one of each kind; 0 where it makes none. What each takes is the model's to say.

    `network`: of a denoiser's forward. `guided`: images in one guided call of a deployed pipeline, which shows its network two rows or
    more for each. `encode` and `decode`: of a forward. `graph`: at most of a decoding whose graph is kept for backward passes, fewer
    where memory is short; it is projected on so many `directions`, and before it in the same graph come `chain` network evaluations.
    `tuned`: of a network evaluation that is differentiated. `side`: of the largest images in pixels, 0 for the model's native ones.
    `models`: how many of the model's size are held at once.
    """

    network: int = 0
    guided: int = 0
    encode: int = 0
    decode: int = 0
    graph: int = 0
    directions: int = 0
    chain: int = 0
    tuned: int = 0
    side: int = 0
    models: int = 1

    def with_largest(self, other: Load) -> Load:
        """Everything at the larger of the two."""
        return Load(*map(max, self, other))


@lru_cache(maxsize=4096)
def key(cell: Cell) -> str:
    """The identity of a cell: a hash of its class, version and fields; computed alike from the plan and from a file's metadata."""
    return hashlib.blake2b(canonical(cell).encode(), digest_size=16).hexdigest()


def canonical(cell: Cell) -> str:
    """The cell as JSON: what its key is the hash of, and what the record's file carries as metadata. An inner cell stands by its key."""
    return json.dumps({"version": cell.version, **_fields(cell)}, sort_keys=True, separators=(",", ":"))


def _fields(value: Any) -> dict[str, Any]:
    fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return {"class": type(value).__name__, **fields}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"key": key(cast(Cell, value))} if hasattr(value, "measure") else _fields(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a cell holds plain values only, not {type(value).__name__}")


Facets = Mapping[str, str | float | int | bool]


def estimated(probe: str, quantity: str, interval: Interval, n: int, facets: Facets | None = None, unit: str = "") -> Estimate:
    """An interval as an estimate; one that is not finite is null, with the reason."""
    value, lo, hi = (float(part) if math.isfinite(part) else None for part in interval)
    reason = None if value is not None else "not defined on these samples" if n else "no sample counts"
    return Estimate(probe, quantity, value, lo, hi, n, unit, facets or {}, reason)


@dataclass(frozen=True)
class Axis:
    """A column of a chart's rows and the title that a reader sees."""

    column: str
    title: str
    log: bool = False


@dataclass(frozen=True)
class Chart:
    """What a chart shows; the report decides how it looks. `rows` are flat, JSON-ready, and aggregated.

    kind "line": y over x, one line a series, with a band where `lo` and `hi` name columns. "interval": points with error
    bars. "bar": one bar a category of x with error bars. "scatter": points alone. "stack": bars stacked by series. "map": a tile
    at every x and y of a grid, coloured by `value`.
    `curves` are fitted lines drawn over it (same columns, without intervals). `guide` is a thin line to read by: where the value
    is zero, or where it equals x.
    """

    name: str
    title: str
    caption: str
    kind: Literal["line", "interval", "bar", "scatter", "stack", "map"]
    rows: tuple[Row, ...]
    x: Axis
    y: Axis
    lo: str | None = None
    hi: str | None = None
    series: Axis | None = None
    facet: Axis | None = None
    curves: tuple[Row, ...] = ()
    guide: Literal["zero", "diagonal"] | None = None
    value: Axis | None = None


@dataclass(frozen=True)
class Card:
    """A headline number: what it is in a few words, the estimate, and one line that says how to read it."""

    title: str
    estimate: Estimate
    note: str


@dataclass(frozen=True)
class Exhibit:
    """A row of the gallery: pictures by what they are called there (their path under `media/`), and the numbers beside them.

    `contrast` adds to two pictures of one size what differs between them.
    """

    label: str
    caption: str
    pictures: Mapping[str, str]
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    contrast: bool = False


@dataclass(frozen=True)
class Findings:
    """What a probe concludes from its records; no model is needed to compute it."""

    estimates: tuple[Estimate, ...]
    verdicts: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    charts: tuple[Chart, ...] = ()
    gallery: tuple[Exhibit, ...] = ()


@dataclass(frozen=True)
class Comparable:
    """One quantity, a value a unit, for comparison with the same quantity of another run; pairs are made by the unit's name.

    `more` and `less` say in a sentence what a higher and a lower mean is ("is more consistent than"); `better` says which of the
    two a release wants, None where neither. `pictures` are those of a unit, as in an Exhibit. A probe's headline
    quantities are tested in a family of their own.
    """

    quantity: str
    title: str
    per: str  # what a unit is: image, prompt
    values: Mapping[str, float]
    more: str
    less: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    headline: bool = False
    facets: Facets = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class Probe(Protocol):
    """The question and its settings: a frozen dataclass. `plan`, `summarise` and `comparables` are pure: no model, no GPU.

    A row of `rows` is known in another run by its columns `aligned`. Runs whose settings differ are compared only where the
    difference is among `free`: settings that choose which rows there are, or how they are summed up.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    rows: ClassVar[str]  # the class of cells whose records users mean by "the rows"
    aligned: ClassVar[tuple[str, ...]]
    free: ClassVar[frozenset[str]]
    cites: ClassVar[tuple[str, ...]]
    method: ClassVar[str]

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities of a rig without which it cannot be asked."""
        ...

    def plan(self) -> Iterable[Cell]: ...

    def load(self, batch_size: int) -> Load:
        """The heaviest calls that its cells make in a rig of this batch size, on any model."""
        ...

    def suited(self, model: Model) -> Probe:
        """This probe without what the model cannot be asked at all; the same where it can be asked everything."""
        ...

    def check(self, model: Model) -> None:
        """Raise UserError where this model cannot be asked this question with these settings."""
        ...

    def summarise(self, records: Records) -> Findings: ...

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """What can be set against another run of this probe, from the rows that the two share."""
        ...
