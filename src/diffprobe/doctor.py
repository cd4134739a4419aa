"""The environment, looked at: what is installed, where it computes, where it caches, and what is known to break it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from diffprobe.errors import UserError

PACKAGES = ("diffprobe", "torch", "diffusers", "transformers", "numpy", "pyarrow", "altair", "vl-convert-python")


@dataclass(frozen=True)
class Finding:
    """One thing looked at, what was found, and whether that is well."""

    what: str
    told: str
    well: bool = True


def examine() -> Iterator[Finding]:
    """Everything that a user of this environment may want to know before a long run."""
    yield Finding("python", sys.version.split()[0], sys.version_info >= (3, 11))
    yield from map(_version, PACKAGES)
    yield _torchvision()
    yield _device()
    yield _cache()
    yield _disk()
    yield _embedded()


def _version(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, f"missing: pip install {name}", well=False)


def _torchvision() -> Finding:
    """A torchvision that does not match torch breaks diffusers and transformers on import; none at all is fine."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "absent, which is fine: nothing here needs it")
    try:
        import torchvision  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return Finding("torchvision", f"{torchvision.__version__}, matches torch")
    except Exception as error:  # a broken build raises whatever it likes
        told = f"does not match torch {metadata.version('torch')} and breaks diffusers and transformers: pip uninstall torchvision"
        return Finding("torchvision", f"{told} ({type(error).__name__}: {str(error).splitlines()[0]})", well=False)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", f"{torch.cuda.get_device_name(0)}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB")
    return Finding("device", f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")


def _cache() -> Finding:
    from huggingface_hub import constants

    offline = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online"
    return Finding("hub cache", f"{constants.HF_HUB_CACHE}, {offline}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    writable = os.access(Path.cwd(), os.W_OK)
    told = f"{free:.1f} GiB free in {Path.cwd()}" + ("" if writable else ", which is read-only: name a directory with --out")
    return Finding("disk", told, well=writable and free > 0.5)


def _embedded() -> Finding:
    from diffprobe.adapters.embedded import MEMBERS, folder
    from diffprobe.adapters.weights import check_digests

    absent = []
    for name in MEMBERS:
        try:
            place = folder(name)
        except UserError as error:
            if name == "embedded":
                return Finding("embedded models", str(error), well=False)
            absent.append(name)
            continue
        try:
            check_digests(place)
        except UserError as error:
            return Finding("embedded models", str(error), well=False)
    there = f"{len(MEMBERS) - len(absent)} of {len(MEMBERS)} here, their files as shipped"
    return Finding("embedded models", there + (f"; absent: {', '.join(absent)} (pip install ./models in a clone)" if absent else ""))
