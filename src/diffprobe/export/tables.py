"""Tidy tables: an estimate a row, and the raw records, as CSV for any program and as Parquet for those that read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from diffprobe.export.base import Exported, Target
from diffprobe.files import explained, whole
from diffprobe.measures.stats import Estimate
from diffprobe.report.numbers import COLUMNS, flat, label
from diffprobe.runs.result import Run

_TYPES = {"value": pa.float64(), "lo": pa.float64(), "hi": pa.float64(), "n": pa.int64()}


def to_csv(run: Run, target: Target) -> Exported:
    """`estimates.csv` and `records-<probe>-<Class>.csv`. Null is an empty field, empty text is "", a list is JSON.

    Vectors (latents, embeddings) and bytes are left out, and the notes say where.
    """
    files, notes = [], []
    for name, table in _tables(run).items():
        without = [field.name for field in table.schema if _heavy(field.type)]
        if without:
            notes.append(f"{name}.csv is without {', '.join(without)}: --to parquet has them")
        files.append(write_csv(_plain(table.drop_columns(without)), target.folder / f"{name}.csv"))
    return Exported(f"{len(files)} files in {target.folder}", tuple(files), tuple(notes))


def to_parquet(run: Run, target: Target) -> Exported:
    """`estimates.parquet` and `records-<probe>-<Class>.parquet`: every column of the records, lists as lists."""
    files = []
    for name, table in _tables(run).items():
        path = target.folder / f"{name}.parquet"
        with explained(path), whole(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        files.append(path)
    return Exported(f"{len(files)} files in {target.folder}", tuple(files))


def write_csv(table: pa.Table, path: Path) -> Path:
    """Write a table without lists as CSV with a header; returns the path."""
    with explained(path), whole(path) as partial:
        pc.write_csv(table, str(partial))
    return path


def estimates(found: Sequence[Estimate]) -> pa.Table:
    """An estimate a row: probe, quantity, value, lo, hi, n, unit, reason, then facets; null where one has no such facet.

    A facet named as one of the former is `facet_<name>`. A facet that is a number here and text there is text.
    """
    rows = [flat(one) for one in found]
    facets = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in COLUMNS]
    fixed = {name: pa.array([row[name] for row in rows], _TYPES.get(name, pa.string())) for name in COLUMNS}
    return pa.table({**fixed, **{name: _facet([row.get(name) for row in rows]) for name in facets}})


def _tables(run: Run) -> dict[str, pa.Table]:
    """All tables of a run by the stem of their file; a column of nulls is one of text."""
    found = {"estimates": estimates(run.estimates)}
    for probe in run.probes:
        for cells, table in run.tables(probe.name).items():
            fields = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
            found[f"records-{probe.name}-{cells}"] = table.cast(pa.schema(fields))
    return found


def _facet(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    mixed = len(kinds) > 1 and kinds != {int, float}
    return pa.array([None if value is None else label(value) for value in values] if mixed else values)


def _heavy(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _plain(table: pa.Table) -> pa.Table:
    """The table with its lists as JSON text."""
    for index, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [None if value is None else json.dumps(value) for value in table[field.name].to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table
