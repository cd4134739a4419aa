"""Lists of images: what names one, and manifests that say where each came from and prove that it is still the same file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from diffprobe.errors import UserError

#: What an entry must say; `sha256` or `md5` too, and `caption` where there is one. Other columns are ignored.
REQUIRED = ("path", "domain", "license")
_SHOWN = 10  # violations in one message


@dataclass(frozen=True)
class Source:
    """An image file: where it lies, the digest of its bytes ("sha256:..." or "md5:..."), its domain, and its caption if known."""

    path: str
    digest: str
    domain: str = "all"
    caption: str | None = None


def digest(path: Path | str, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes with its algorithm in front: "sha256:..." or "md5:...". Raises UserError where it cannot be read."""
    return digest_of(read(path), algorithm)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The same for bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def read(path: Path | str) -> bytes:
    """The bytes of a file; raises UserError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({getattr(error, 'strerror', None) or error}): restore it or take it off the list") from error


def read_manifest(path: Path | str) -> list[Source]:
    """The images of a manifest (.json: a list of entries, or an object with that list alone; .jsonl; .csv), every entry verified.

    An entry has `path` (relative to the manifest, inside its folder), `domain`, `license`, `sha256` or `md5`, and may have
    `caption`. Raises UserError with a line for each entry that is at fault, the first ten of them.
    """
    path = Path(path)
    root, seen, sources, faults = path.parent.resolve(), set[Path](), list[Source](), list[str]()
    for where, entry in _entries(path):
        try:
            source = _verified(entry, path.parent, root)
            file = Path(source.path).resolve()
            if file in seen:
                raise UserError(f"'{source.path}' is listed twice: remove one")
            seen.add(file)
            sources.append(source)
        except UserError as error:
            faults.append(f"{path.name}, {where}: {error}")
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise UserError("\n".join(faults[:_SHOWN] + more))
    if not sources:
        raise UserError(f"{path} lists no image: add entries with {', '.join(REQUIRED)} and sha256 or md5")
    return sources


def licences(path: Path) -> dict[Path, str]:
    """The licence of each file of a verified manifest, by its resolved path."""
    entries = [entry for _, entry in _entries(path) if isinstance(entry, Mapping)]
    return {(path.parent / entry["path"]).resolve(): str(entry["license"]).strip() for entry in entries}


def _verified(entry: object, folder: Path, root: Path) -> Source:
    """An entry as a source, or UserError with its first fault."""
    if not isinstance(entry, Mapping):
        raise UserError(f"is no object with the keys {', '.join(REQUIRED)}: write one")
    for key in REQUIRED:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"'{entry.get('path') or '?'}' has no {key}: fill it in")
    name = entry["path"]
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(f"'{name}' must be relative and without '..': move the file beside the manifest or below")
    file = folder / name
    try:
        resolved, exists = file.resolve(), file.is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise UserError(f"'{name}' is no file: restore it or remove the entry")
    if not resolved.is_relative_to(root):
        raise UserError(f"'{name}' leads outside the manifest's folder: replace the link by the file")
    return Source(str(file), _matched(entry, file), entry["domain"].strip(), _text(entry, "caption"))


def _matched(entry: Mapping[str, Any], file: Path) -> str:
    """The digest that the entry states, once the file has it."""
    for algorithm in ("sha256", "md5"):
        if (stated := _text(entry, algorithm)) is not None:
            found, expected = digest(file, algorithm), f"{algorithm}:{stated.lower().removeprefix(f'{algorithm}:')}"
            if found != expected:
                raise UserError(
                    f"'{entry['path']}' has another {algorithm}, {found.partition(':')[2]}: restore the file or correct the entry"
                )
            return found
    raise UserError(f"'{entry['path']}' has no sha256 and no md5: add one")


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise UserError(f"'{entry['path']}' has a {key} that is no text: put it in quotes")
    return value.strip()


def _entries(path: Path) -> Iterable[tuple[str, object]]:
    """The entries with the words that find them again."""
    try:
        text = read(path).decode("utf-8-sig")
        if path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            return [(f"line {rows.line_num}", row) for row in rows]
        if path.suffix == ".jsonl":
            return [(f"line {number}", json.loads(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if path.suffix == ".json":
            return [(f"entry {number}", entry) for number, entry in enumerate(_listed(json.loads(text), path), 1)]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path} does not parse ({error}): write it again as UTF-8 {path.suffix.removeprefix('.')}") from error
    raise UserError(f"{path} is no manifest: it must end in .json, .jsonl or .csv")


def _listed(content: object, path: Path) -> list[object]:
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, list):
        raise UserError(f"{path} must hold a list of entries, or an object with that list alone")
    return content
