"""A run's directory: one Parquet file a cell, written beside and renamed, so that nothing half-written is read as whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffprobe.errors import UserError
from diffprobe.files import explained, whole
from diffprobe.probes.base import Cell, canonical, key

SCHEMA = 1
_PARTS = frozenset({"model", "embedders", "probes", "versions", "machine", "created"})
#: What a first run may leave behind when it is stopped before run.json is whole.
_BEGUN = frozenset({"lock", "plan.json", "plan.json.partial", "run.json.partial"})


class Store:
    """The files of one run. Its state is the directory alone; opening it twice shows the same."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the directory for one writing process; raises UserError where it is not a run's, held by another, or not to be written."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.identity() is None and any(entry.name not in _BEGUN for entry in self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and holds no run: choose another --out")
            lock = (self.path / "lock").open("w")
        with lock:
            with explained(self.path):
                self._hold(lock)
                for partial in self.path.glob("**/*.partial"):
                    partial.unlink(missing_ok=True)
            yield

    def _hold(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is running in {self.path}: wait for it, stop it, or choose another --out") from None

    def identity(self) -> dict[str, Any] | None:
        """What run.json says, or None where there is none yet; raises UserError where the directory is no run's."""
        file = self.path / "run.json"
        if not file.exists():
            return None
        found = _json(file, "move the directory away and run again")
        if found.get("schema") != SCHEMA:
            raise UserError(f"{file} was written by another version of diffprobe (schema {SCHEMA} expected): choose another --out")
        if lacking := _PARTS - found.keys():
            raise UserError(f"{file} is damaged (no {', '.join(sorted(lacking))}): move the directory away and run again")
        return found

    def plan(self) -> dict[str, list[str]]:
        """The keys of all cells of the study, by probe; raises UserError where the run has no whole plan."""
        file = self.path / "plan.json"
        remedy = "run the same command again"
        if not file.exists():
            raise UserError(f"{self.path} has no plan.json: {remedy}")
        return _json(file, remedy)

    def done(self, probe: str) -> set[str]:
        """The keys of the cells that are measured."""
        folder = self.path / "cells" / probe
        return (
            {entry.name.removesuffix(".parquet") for entry in os.scandir(folder) if entry.name.endswith(".parquet")}
            if folder.is_dir()
            else set()
        )

    def has(self, probe: str, identity: str) -> bool:
        """Whether the cell of this key is measured."""
        return (self.path / "cells" / probe / f"{identity}.parquet").is_file()

    def put(self, probe: str, cell: Cell, table: pa.Table) -> pa.Table:
        """Write a cell's record and its pictures; returns the record as it will be read back."""
        identity = key(cell)
        with explained(self.path):
            if "picture" in table.column_names:
                table = self._keep_pictures(identity, table)
            about = {b"cell": canonical(cell).encode(), b"class": type(cell).__name__.encode()}
            table = table.replace_schema_metadata(about)
            target = self.path / "cells" / probe / f"{identity}.parquet"
            with whole(target) as partial:
                pq.write_table(table, partial, compression="zstd")
            (self.path / "failed" / f"{identity}.json").unlink(missing_ok=True)
        return table

    def adopt(self, probe: str, cell: Cell) -> bool:
        """Take the cell's record over from another probe of this run that measured the same cell; pictures lie under the key anyway."""
        name = f"{key(cell)}.parquet"
        found = next((file for file in sorted((self.path / "cells").glob(f"*/{name}")) if file.parent.name != probe), None)
        if found is None:
            return False
        with explained(self.path), whole(self.path / "cells" / probe / name) as partial:
            shutil.copyfile(found, partial)
            (self.path / "failed" / f"{key(cell)}.json").unlink(missing_ok=True)
        return True

    def get(self, probe: str, cell: Cell) -> pa.Table:
        """A cell's record."""
        return self._read(probe, key(cell))

    def records(self, probe: str, keys: Iterable[str]) -> dict[str, pa.Table]:
        """The records of the cells with these keys that are measured, by class, each row with its cell's key and its index there."""
        present = self.done(probe)
        parts: dict[str, list[pa.Table]] = {}
        for identity in keys:
            if identity in present:
                table = self._read(probe, identity)
                name = table.schema.metadata[b"class"].decode()
                table = table.replace_schema_metadata().append_column("cell", pa.array([identity] * len(table), pa.string()))
                parts.setdefault(name, []).append(table.append_column("row", pa.array(range(len(table)), pa.int64())))
        return {name: pa.concat_tables(tables, promote_options="permissive") for name, tables in parts.items()}

    def fail(self, probe: str, cell: Cell, error: str) -> None:
        """Keep what failed apart, with the cell and the error."""
        self.write_json(
            f"failed/{key(cell)}.json", {"probe": probe, "class": type(cell).__name__, "cell": json.loads(canonical(cell)), "error": error}
        )

    def failures(self) -> dict[str, dict[str, Any]]:
        """What failed and was not measured since, by key."""
        return {file.stem: _json(file, "delete it") for file in sorted((self.path / "failed").glob("*.json"))}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file of the run, whole or not at all."""
        with explained(self.path), whole(self.path / name) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _read(self, probe: str, identity: str) -> pa.Table:
        path = self.path / "cells" / probe / f"{identity}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
            if b"class" in (table.schema.metadata or {}):
                return table
            raise pa.ArrowInvalid("no class of cells in its metadata")
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"the record {path} is damaged: delete it and run the same command again to measure it anew") from error

    def _keep_pictures(self, identity: str, table: pa.Table) -> pa.Table:
        pictures = table["picture"].to_pylist()
        for row, content in enumerate(pictures):
            if content is not None:
                with whole(self.path / "media" / identity / f"{row:04d}.webp") as partial:
                    partial.write_bytes(content)
        names = [None if content is None else f"{identity}/{row:04d}.webp" for row, content in enumerate(pictures)]
        return table.set_column(table.column_names.index("picture"), "picture", pa.array(names, pa.string()))


def _json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError("it holds no object")
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): {remedy}") from error
