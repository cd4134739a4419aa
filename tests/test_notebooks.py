"""The notebooks run top to bottom on what ships, and are stored as they run."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from diffprobe.errors import UserError
from diffprobe.probes import PROBES
from docs.notebooks import build

NAMES = build.names()
LARGEST = 400_000  # bytes
#: Where files lie on some machine, in no sentence or table; an object's address; the time that something took.
FOREIGN = re.compile(r"(?<![\w.])/(home|root|tmp|work|usr|var|Users|opt)/|[A-Z]:\\|0x[0-9a-f]{6,}|\b\d+(\.\d+)? ?seconds\b")


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> list[str]:
    """What a cell shows: the kind of each of its outputs."""
    return [kind for output in cell.outputs for kind in output.get("data", {output.get("name"): ""})]


def texts(notebook: Any) -> list[str]:
    """Everything that a reader reads: sources, text and tables, without pictures."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    data = [part for output in outputs for kind, part in output.get("data", {}).items() if not kind.startswith("image/")]
    return [cell.source for cell in notebook.cells] + [output.text for output in outputs if "text" in output] + data


def note(folder: Path, *cells: str) -> None:
    """A notebook of these cells, called `note`."""
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), folder / "note.ipynb")


def test_every_probe_has_one() -> None:
    assert set(NAMES) == set(PROBES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_as_it_ran(name: str) -> None:
    notebook = build.read(name)
    nbformat.validate(notebook)
    assert (build.FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    assert notebook.metadata.get(build.SOURCES) == build.digest(notebook), "its cells changed: run `python -m docs.notebooks.build`"
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert not any(cell.metadata for cell in notebook.cells)
    assert not [text for text in texts(notebook) if FOREIGN.search(text)]


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_charts_tables_and_whom_to_cite(name: str) -> None:
    cells = code(build.read(name))
    charts = [cell for cell in cells if ".chart(" in cell.source and shown(cell) == ["image/png"]]
    tables = [cell for cell in cells if shown(cell) == ["text/html"] and "<table" in cell.outputs[0].data["text/html"]]
    pictures = [cell for cell in cells if "Image.open" in cell.source and "image/png" in shown(cell)]
    assert len(charts) >= 2
    assert len(tables) >= 2
    assert pictures
    assert cells[-1].outputs[0].text.splitlines() == list(PROBES[name].cites)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_top_to_bottom(name: str, tmp_path: Path) -> None:
    stored, fresh = build.read(name), build.executed(name, tmp_path)
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in stored.cells]
    assert [shown(cell) for cell in code(fresh)] == [shown(cell) for cell in code(stored)]
    assert {path.suffix for path in tmp_path.rglob("*.parquet")}, "it writes its runs where it was told to"


def test_what_is_stored_holds_no_address_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    note(tmp_path, "import pandas as pd\npd.DataFrame({'a': [1]})", "print(1)\nprint(2)", "object()")
    build.main(["note"])
    table, printed, thing = code(build.read("note"))
    assert shown(table) == ["text/html"]
    assert [output.text for output in printed.outputs] == ["1\n2\n"]
    assert FOREIGN.search(thing.outputs[0].data["text/plain"])
    assert not any(cell.metadata for cell in (table, printed, thing))


def test_a_cell_that_warns_or_fails_stops_the_build_and_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    for cell, error in (("import warnings\nwarnings.warn('out of date')", UserError), ("1 / 0", CellExecutionError)):
        note(tmp_path, cell)
        before = (tmp_path / "note.ipynb").read_bytes()
        with pytest.raises(error, match=r"warns: [^\n]*out of date|ZeroDivisionError"):
            build.main(["note"])
        assert (tmp_path / "note.ipynb").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["note.ipynb"]


def test_an_unknown_notebook_stops_before_any_is_run() -> None:
    with pytest.raises(UserError, match="unknown notebook 'geomety': did you mean 'geometry'"):
        build.main(["drift", "geomety"])
