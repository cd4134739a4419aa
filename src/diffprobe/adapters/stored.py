"""What lies in a folder of weights, by the headers of its safetensors files: bytes, number formats, and what is missing or cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffprobe.adapters.weights import VARIANT

#: Names that libraries give weight files, without their ending.
_BASES = ("diffusion_pytorch_model", "model")
_FORMATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "F8_E5M2": "float8",
}
_LONGEST = 100 << 20  # bytes of a header, in any file that is one


@dataclass(frozen=True)
class Stored:
    """Weight files: their bytes, the number formats in them, and what is missing of them, or cut off."""

    bytes: int
    formats: tuple[str, ...]
    lacks: str | None = None


PICKLED = Stored(0, (), "only pickled weights are here, which are never read: save it with safe_serialization=True")


def stored(folder: Path, variant: str | None = None, pattern: str | None = None) -> Stored | None:
    """What `from_pretrained` would read of a folder: its safetensors files, those of a variant ("fp16") where that is asked for and there.

    `pattern` names files directly. None where there is no such file. No weight is read.
    """
    files = sorted(folder.glob(pattern)) if pattern else list(_named(folder, variant))
    if not files:
        others = sorted(other[1] for file in folder.glob("*.safetensors") if (other := VARIANT.search(file.name)))
        if others:
            return Stored(0, (), f"only the variant '{others[0]}' is here: give variant='{others[0]}'")
        return PICKLED if any(folder.glob("*.bin")) else None
    total, formats = 0, set[str]()
    for file in files:
        if not file.exists():
            return Stored(total, tuple(sorted(formats)), f"{file.name} is missing: fetch it")
        found = _formats(file)
        if found is None:
            return Stored(total, tuple(sorted(formats)), f"{file.name} is truncated or damaged: fetch it again")
        total, formats = total + file.stat().st_size, formats | found
    return Stored(total, tuple(sorted(formats)))


def _named(folder: Path, variant: str | None) -> Iterator[Path]:
    """The files of the first base name that is there, with the shards that its index names."""
    for ending in (f".{variant}", "") if variant else ("",):
        for base in _BASES:
            whole = folder / f"{base}{ending}.safetensors"
            index = folder / f"{base}.safetensors.index{ending}.json"
            if whole.exists():
                yield whole
                return
            if index.is_file():
                try:
                    named = set(json.loads(index.read_text())["weight_map"].values())
                except (ValueError, KeyError, TypeError, AttributeError):
                    named = {index.name}
                yield from (folder / name for name in sorted(named))
                return


def _formats(file: Path) -> set[str] | None:
    """The number formats of a safetensors file by its header; None where it is not one, or not whole."""
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(length)) if length <= _LONGEST else {}
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        return {_FORMATS.get(entry["dtype"], entry["dtype"]) for entry in tensors} if file.stat().st_size == 8 + length + end else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
