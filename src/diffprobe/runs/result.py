"""A run: start or resume it, open it, and read what came of it."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import pyarrow as pa
import torch
from markupsafe import Markup

from diffprobe.errors import UserError, unknown
from diffprobe.files import explained
from diffprobe.measures.stats import Estimate
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Findings, Probe
from diffprobe.report import charts
from diffprobe.report.document import Document, Failure, Section, named_charts, unique
from diffprobe.report.figures import drawing, write_figures
from diffprobe.report.numbers import flat, number, shown
from diffprobe.report.page import write_report
from diffprobe.runs.execute import Progress, execute, plan
from diffprobe.runs.store import SCHEMA, Store
from diffprobe.runs.study import once, parse_probe, settings

_PACKAGES = ("diffprobe", "torch", "diffusers", "transformers", "numpy")


class Run:
    """A run on disk. Everything here is computed from its records: neither the model nor the images are needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path)
        about = self.store.identity()
        if about is None:
            raise UserError(f"{path} holds no run (no run.json): give the directory that `diffprobe run` wrote to")
        self.about: Mapping[str, Any] = about
        self.probes: tuple[Probe, ...] = tuple(parse_probe(item) for item in about["probes"])
        self.plan: Mapping[str, list[str]] = self.store.plan()

    @property
    def planned(self) -> int:
        return sum(len(keys) for keys in self.plan.values())

    @property
    def done(self) -> int:
        return sum(len(self.store.done(probe).intersection(keys)) for probe, keys in self.plan.items())

    @property
    def failures(self) -> dict[str, dict[str, Any]]:
        """What failed and was not measured since, by the cell's key."""
        planned = {key for keys in self.plan.values() for key in keys}
        return {key: failure for key, failure in self.store.failures().items() if key in planned}

    @cached_property
    def findings(self) -> dict[str, Findings]:
        """What each probe concludes, by its name."""
        return {probe.name: probe.summarise(self.tables(probe.name)) for probe in self.probes}

    @property
    def table(self) -> pd.DataFrame:
        """One row an estimate, with lo, hi and n; facets are columns (`facet_n` for one of the name of another column)."""
        return pd.DataFrame([flat(estimate) for estimate in self.estimates])

    @property
    def estimates(self) -> list[Estimate]:
        return [estimate for findings in self.findings.values() for estimate in findings.estimates]

    def records(self, probe: str, cells: str | None = None) -> pd.DataFrame:
        """The raw rows of a probe: of its main cells, or of the class of cells named."""
        chosen, tables = self._probe(probe), self.tables(probe)
        name = cells or chosen.rows
        if name not in tables:
            raise UserError(f"nothing of '{name}' is measured yet; there is {', '.join(tables) or 'nothing'}")
        frame: pd.DataFrame = tables[name].to_pandas()
        return frame

    def tables(self, probe: str) -> dict[str, pa.Table]:
        """The records of a probe by class of cells, as `Probe.summarise` reads them."""
        return self.store.records(probe, self.plan.get(probe, ()))

    def summarise(self) -> None:
        """Write summary.json: every estimate and every verdict."""
        verdicts = [verdict for findings in self.findings.values() for verdict in findings.verdicts]
        self.store.write_json("summary.json", {"schema": SCHEMA, "estimates": [flat(e) for e in self.estimates], "verdicts": verdicts})

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report, one offline HTML file (`report.html` in the run by default); returns its path."""
        target = Path(out) if out else self.path / "report.html"
        with explained(target):
            return write_report(self._document(), target)

    def figures(self, out: str | Path | None = None) -> list[Path]:
        """Write every chart as SVG and PNG into a folder, `figures/` of the run by default; returns their paths."""
        folder = Path(out) if out else self.path / "figures"
        with explained(folder):
            return write_figures(self._document(), folder)

    def chart(self, probe: str, name: str) -> alt.LayerChart | alt.FacetChart:
        """A chart of the report as an altair object, which a notebook shows: to change its settings, or to `save` it.

        `name` is the chart's own, or that of its file in `figures/` after the probe's. Raises UserError for what there is not.
        """
        prefix = f"{self._probe(probe).name}-"
        named = named_charts(self._document())
        chosen = named.get(key := unique([prefix + name])[0])
        if chosen is None:
            raise unknown("chart", name, [key.removeprefix(prefix) for key in named if key.startswith(prefix)])
        if not (chosen.rows or chosen.curves):
            raise UserError(f"nothing to draw in {key}: no row of it is measured; see `diffprobe status {self.path}`")
        return drawing(chosen, charts.domains(named.values()))

    def _repr_html_(self) -> str:
        """The main numbers and the verdicts, for notebooks."""
        row = Markup("<tr><td>{}</td><td>{}</td><td>{} {}</td><td>{}</td><td>{}</td></tr>")
        rows, verdicts = Markup(), Markup()
        for name, findings in self.findings.items():
            for card in findings.cards:
                value, interval, unit, reason = shown(card.estimate)
                rows += row.format(name, card.title, value, unit, interval or reason, number(card.estimate.n))
            verdicts += Markup().join(Markup("<li>{}</li>").format(verdict) for verdict in findings.verdicts)
        head = Markup("<p><b>{}</b>: {} of {} cells measured, {} failed</p>")
        told = head.format(self.about["model"]["name"], self.done, self.planned, len(self.failures))
        columns = Markup("<tr><th>probe</th><th></th><th>value</th><th>interval</th><th>n</th></tr>")
        return str(told + Markup("<table>{}{}</table><ul>{}</ul>").format(columns, rows, verdicts))

    def _probe(self, name: str) -> Probe:
        chosen = next((probe for probe in self.probes if probe.name == name), None)
        if chosen is None:
            raise UserError(f"this run has no probe '{name}': it has {', '.join(probe.name for probe in self.probes)}")
        return chosen

    def _document(self) -> Document:
        sections = tuple(Section(p.name, p.question, self.findings[p.name], p.method, p.cites) for p in self.probes)
        failed = tuple(Failure(key, f"{item['probe']}: {item['class']}", item["error"]) for key, item in self.failures.items())
        identity = {
            **{f"model {name}": str(value) for name, value in self.about["model"].items()},
            **{f"about its {name}": str(value) for name, value in self.about.get("facts", {}).items()},
            **{f"instrument {name}": str(value) for name, value in self.about["embedders"].items()},
            **{f"version of {name}": str(value) for name, value in self.about["versions"].items()},
            "machine": str(self.about["machine"]),
        }
        name = self.about["model"]["name"]
        return Document(
            f"How {name} behaves", identity, self.planned, self.done, failed, sections, self.path / "media", self.about["created"]
        )


def open_run(path: str | Path) -> Run:
    """The run in a directory that `run` wrote; raises UserError where there is none."""
    return Run(Path(path))


def start(
    rig: Rig, probes: Iterable[Probe], out: str | Path, *, extend: bool = False, report: Callable[[Progress], None] = lambda progress: None
) -> Run:
    """Measure what `probes` plan with `rig`, in the directory `out`; the same call resumes. Returns the run, summarised.

    A directory that belongs to another model or study is refused with the difference named; `extend` lets the study grow
    or change in the same directory, where every cell that is planned again is kept. Raises UserError.
    """
    chosen = tuple(probes)
    check(chosen, rig)
    steps, store = plan(chosen), Store(Path(out))
    with store.writing():
        about = _agreed(store, describe(rig, chosen), extend)
        store.write_json("plan.json", {probe.name: [step.key for step in steps if step.probe == probe.name] for probe in chosen})
        store.write_json("run.json", about)
        run = Run(store.path)
        execute(steps, store, rig, report)
        run.summarise()
    return run


def suited(probes: Iterable[Probe], rig: Rig) -> tuple[Probe, ...]:
    """Of several probes those that this rig can be asked, without what its model has no axis for; all where it can be asked none."""
    chosen = tuple(probes)
    fitted = tuple(probe.suited(rig.model) for probe in chosen)
    return tuple(probe for probe in fitted if probe.needs <= rig.capabilities and _can(probe, rig.model)) or chosen


def _can(probe: Probe, model: Model) -> bool:
    try:
        probe.check(model)
    except UserError:
        return False
    return True


def check(probes: Iterable[Probe], rig: Rig) -> None:
    """Raise UserError where a probe asks for what the rig lacks, or comes twice, before anything is measured."""
    chosen = tuple(probes)
    once([probe.name for probe in chosen])
    for probe in chosen:
        lacking = sorted(probe.needs - rig.capabilities)
        if lacking == ["embedder"]:
            raise UserError(f"{probe.name} needs an instrument that looks at the images: name one under `embedders`, such as 'embedded'")
        if lacking:
            raise UserError(
                f"{probe.name} needs {' and '.join(lacking)}; '{rig.model.name}' has none: drop the probe, or wrap the model with one"
            )
        probe.check(rig.model)


def describe(rig: Rig, probes: Sequence[Probe]) -> dict[str, Any]:
    """What run.json says: the study as resolved, the identity of model and instruments, code and machine."""
    return {
        "schema": SCHEMA,
        "model": {"name": rig.model.name, **rig.model.identity, **_checkpoints(rig, probes)},
        "embedders": rig.fingerprints,
        "probes": [settings(probe) for probe in probes],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "facts": dict(rig.model.facts),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, device {rig.model.device}",
        "batch_size": rig.batch_size,
        "created": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _checkpoints(rig: Rig, probes: Iterable[Probe]) -> dict[str, str]:
    """What identifies the checkpoints that the probes ask for; each is loaded for it, before anything is measured."""
    names = dict.fromkeys(name for probe in probes for name in getattr(probe, "checkpoints", ()))
    told = {name: json.dumps(dict(rig.model.checkpoints[name]().identity), sort_keys=True) for name in names}
    return {f"checkpoint {name}": hashlib.sha256(identity.encode()).hexdigest()[:16] for name, identity in told.items()}


def _agreed(store: Store, about: dict[str, Any], extend: bool) -> dict[str, Any]:
    """What run.json shall say; UserError where what it says already is of another model, other instruments or another study."""
    before = store.identity()
    if before is None:
        return about
    for part in ("model", "embedders"):
        for name in sorted(set(before[part]) | set(about[part])):
            old, new = before[part].get(name), about[part].get(name)
            if old != new and name != "source" and (old is not None or name != "scheduler"):  # older runs do not tell it
                raise UserError(
                    f"{store.path} belongs to another {part.rstrip('s')}: {name} is {old} there and {new} here: choose another --out"
                )
    if before["probes"] == about["probes"]:
        return before
    if not extend:
        told = _difference(before["probes"], about["probes"])
        raise UserError(f"{store.path} holds another study ({told}): choose another --out, or add --extend")
    return {**about, "created": before["created"]}


def _difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    kinds = [[item["kind"] for item in items] for items in (before, now)]
    if kinds[0] != kinds[1]:
        return f"probes {', '.join(kinds[0])} there, {', '.join(kinds[1])} here"
    for old, new in zip(before, now, strict=True):
        for name, value in new.items():
            if json.dumps(value) != json.dumps(old.get(name)):
                return f"{new['kind']}'s {name} is {old.get(name)} there and {value} here"
    return "its settings differ"
