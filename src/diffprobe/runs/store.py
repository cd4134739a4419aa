"""A run's directory: one Parquet file a cell, written beside and renamed, so that nothing half-written is read as whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffprobe.errors import UserError
from diffprobe.probes.base import Cell, canonical, key

SCHEMA = 1


class Store:
    """The files of one run. Its state is the directory alone; opening it twice shows the same."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the directory for one writing process; raises UserError where another holds it or it cannot be written."""
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is running in {self.path}: wait for it, stop it, or choose another --out") from None
            for partial in self.path.glob("**/*.partial"):
                partial.unlink(missing_ok=True)
            yield

    def identity(self) -> dict[str, Any] | None:
        """What run.json says, or None where there is none yet; raises UserError where the directory is no run's."""
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            found = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is damaged ({error}): move the directory away and run again") from error
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UserError(f"{file} was written by another version of diffprobe (schema {SCHEMA} expected): choose another --out")
        return found

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
        with _explained(self.path):
            if "picture" in table.column_names:
                table = self._keep_pictures(identity, table)
            about = {b"cell": canonical(cell).encode(), b"class": type(cell).__name__.encode()}
            table = table.replace_schema_metadata(about)
            target = self.path / "cells" / probe / f"{identity}.parquet"
            with whole(target) as partial:
                pq.write_table(table, partial, compression="zstd")
            (self.path / "failed" / f"{identity}.json").unlink(missing_ok=True)
        return table

    def get(self, probe: str, cell: Cell) -> pa.Table:
        """A cell's record."""
        return _read(self.path / "cells" / probe / f"{key(cell)}.parquet")

    def records(self, probe: str, cells: Iterable[Cell]) -> dict[str, pa.Table]:
        """The records of the given cells that are measured, by class, each row with its cell's key and its index there."""
        present = self.done(probe)
        parts: dict[str, list[pa.Table]] = {}
        for cell in cells:
            identity = key(cell)
            if identity in present:
                table = self.get(probe, cell)
                table = table.append_column("cell", pa.array([identity] * len(table)))
                parts.setdefault(type(cell).__name__, []).append(table.append_column("row", pa.array(range(len(table)), pa.int64())))
        return {
            name: pa.concat_tables([t.replace_schema_metadata() for t in tables], promote_options="permissive")
            for name, tables in parts.items()
        }

    def fail(self, probe: str, cell: Cell, error: str) -> None:
        """Keep what failed apart, with the cell and the error."""
        self.write_json(
            f"failed/{key(cell)}.json", {"probe": probe, "class": type(cell).__name__, "cell": json.loads(canonical(cell)), "error": error}
        )

    def failures(self) -> dict[str, dict[str, Any]]:
        """What failed and was not measured since, by key."""
        return {file.stem: json.loads(file.read_text()) for file in sorted((self.path / "failed").glob("*.json"))}

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file of the run, whole or not at all."""
        with _explained(self.path), whole(self.path / name) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _keep_pictures(self, identity: str, table: pa.Table) -> pa.Table:
        pictures = table["picture"].to_pylist()
        for row, content in enumerate(pictures):
            if content is not None:
                with whole(self.path / "media" / identity / f"{row:04d}.webp") as partial:
                    partial.write_bytes(content)
        names = [None if content is None else f"{identity}/{row:04d}.webp" for row, content in enumerate(pictures)]
        return table.set_column(table.column_names.index("picture"), "picture", pa.array(names, pa.string()))


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` only once it is complete and on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the disk's refusals into one line that names the fix."""
    try:
        yield
    except OSError as error:
        remedies = {
            errno.ENOSPC: "the disk is full: free some space, then run the same command again; what was measured is kept",
            errno.EDQUOT: "the disk quota is used up: free some space, then run the same command again; what was measured is kept",
            errno.EROFS: "the disk is read-only: choose another --out",
            errno.EACCES: "no permission to write there: choose another --out",
            errno.EEXIST: "a file of that name is in the way: choose another --out",
            errno.ENOTDIR: "a file of that name is in the way: choose another --out",
        }
        if error.errno not in remedies:
            raise
        raise UserError(f"cannot write to {path}: {remedies[error.errno]}", exit_code=4) from error


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"the record {path} is damaged: delete it and run the same command again to measure it anew") from error
