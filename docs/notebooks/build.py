"""Execute the notebooks and store them with what they show: `python -m docs.notebooks.build [NAME...]`, all where none is named."""

from __future__ import annotations

import hashlib
import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

from diffprobe.errors import UserError, unknown
from diffprobe.files import whole

FOLDER = Path(__file__).parent
SOURCES = "sources"  # in a stored notebook's metadata: the digest of the cells that its outputs came from
_LIMIT = 300  # seconds a cell


def names() -> list[str]:
    """The notebooks, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> Any:
    """The notebook as it is stored, with outputs where it was built."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str, folder: Path) -> Any:
    """The notebook run top to bottom, without network, where `folder` holds whatever it writes; stripped of what differs between runs.

    Raises nbclient's CellExecutionError for a cell that fails, and UserError for one that warns.
    """
    notebook = read(name)
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}  # of tqdm, where Jupyter's widgets are not installed
    environment = {**os.environ, **quiet, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    settings = {"timeout": _LIMIT, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **settings).execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise UserError(f"{name}: the cell {cell.id} warns: {output.text.strip()}")
            if "data" in output:
                output.data = _kept(output.data)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        SOURCES: digest(notebook),
    }
    return notebook


def digest(notebook: Any) -> str:
    """A digest of all cells without their outputs."""
    parts = "\0".join(f"{cell.cell_type} {cell.source}" for cell in notebook.cells)
    return hashlib.sha256(parts.encode()).hexdigest()


def _kept(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an object shows itself as: a picture, else a table, else text. The text beside those may hold an address in memory."""
    if "image/png" in data:
        return {"image/png": _packed(data["image/png"])}
    rich = [kind for kind in ("text/html", "text/markdown") if kind in data]
    return {kind: data[kind] for kind in rich or data}


def _packed(picture: str) -> str:
    """The same pixels in fewer bytes."""
    packed = BytesIO()
    with Image.open(BytesIO(b64decode(picture))) as image:
        image.save(packed, "PNG", optimize=True)
    return b64encode(packed.getvalue()).decode()


def main(wanted: list[str]) -> None:
    """Build the notebooks named; each file is replaced whole, after all of its cells ran."""
    for name in wanted:
        if name not in names():
            raise unknown("notebook", name, names())
    for name in wanted or names():
        with TemporaryDirectory() as folder, whole(FOLDER / f"{name}.ipynb") as partial:
            nbformat.write(executed(name, Path(folder)), partial)
        print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
