"""A small subset of many images for the costly ablations: as many from each domain, far from one another in features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from diffprobe import images
from diffprobe.adapters.load import load_embedder
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.images import Source
from diffprobe.manifest import licences
from diffprobe.probes.drift import Drift

_BATCH, _SIZE = 64, 256


def write_subset(where: str, per_domain: int, embedder: str, seed: int, out: Path) -> int:
    """Choose `per_domain` images of each domain by farthest points among their features; write them as a manifest.

    The manifest's paths are relative to its own folder, which must hold the images. Returns how many were chosen.
    """
    found = [source for source in Drift(images=where).sources() if isinstance(source, Source)]
    if not found:
        raise UserError("rendered scenes need no subset: set `count` in the study")
    root = out.resolve().parent
    outside = next((source.path for source in found if not Path(source.path).resolve().is_relative_to(root)), None)
    if outside is not None:
        raise UserError(f"{outside} is not below {root}: write the manifest (--out) into a folder that holds the images")
    look = load_embedder(embedder, LoadOptions())
    parts = [look(images.load(found[i : i + _BATCH], _SIZE)).numpy() for i in range(0, len(found), _BATCH)]
    chosen = images.stratified(found, per_domain, np.concatenate(parts), seed)
    known = {} if Path(where).is_dir() else licences(Path(where))
    entries = [_entry(source, root, known.get(Path(source.path).resolve(), "not stated")) for source in chosen]
    out.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    return len(entries)


def _entry(source: Source, root: Path, licence: str) -> dict[str, str]:
    kind, _, value = source.digest.partition(":")
    path = Path(source.path).resolve().relative_to(root).as_posix()
    caption = {"caption": source.caption} if source.caption else {}
    return {"path": path, "domain": source.domain, "license": licence, kind: value, **caption}
