"""The environment, looked at: what is installed, where it computes, where it caches, and what is known to break it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.errors import UserError

if TYPE_CHECKING:  # a broken torch must not break the doctor on import
    import torch

    from diffprobe.adapters.outline import Component
    from diffprobe.adapters.weights import LoadOptions
    from diffprobe.model import Model
    from diffprobe.probes.base import Probe
    from diffprobe.runs.memory import Primitives

_ROWS = 512  # a batch that is tried: what probes put into one call at most
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


def examine_model(
    spec: str, options: LoadOptions, *, size: int | None = None, batch_size: int = 16, memory: int | None = None
) -> Iterator[Finding]:
    """What a model is, what it can be asked, what that takes of this device, and what is missing, before any of its weights is read.

    `size` is the side of its images in pixels (None: its native one). Memory is that of each probe's standard budget in batches of
    `batch_size` images, without instruments, set against `memory` bytes (None: what the device has).
    Raises UserError where the model is not found, not known, or not of that size.
    """
    from diffprobe.adapters.outline import outline
    from diffprobe.runs.asked import asked
    from diffprobe.runs.memory import foreseen, gibibytes, weights

    if batch_size < 1 or (size is not None and (size < 8 or size % 8)):
        raise UserError("--batch-size is at least 1, and --size a multiple of 8 pixels; left out, it is the model's native one")
    device, _ = options.place()
    told = outline(spec, options)
    yield Finding("model", f"{told.title} ({told.kind})" + (f", native at {told.side} pixels" if told.side else ""))
    yield from (_part(one) for one in told.components if one.parameters or one.files or one.lacks)
    yield from (Finding(name, text) for name, text in told.model.facts.items())
    answers = asked(told.model)
    probes = _standard(told.model, [answer.probe for answer in answers if answer.can])
    plans, held_by = foreseen(told.model, probes.values(), batch_size, size), weights(told.model)
    held = ", ".join(f"{part} {gibibytes(number)}" for part, number in held_by.items() if number)
    dtype = told.model.identity.get("dtype", "float32")
    formats = f"{dtype}, the autoencoder in float32" if dtype != "float32" and held_by["codec"] else dtype
    yield Finding("weights", f"{held} in {formats}" if held else "none to speak of")
    if "distilled" in told.model.identity:
        yield Finding("distilled", f"for {told.model.identity['distilled']}: it leaps to data and tells no E[x_0 | x_t]; no step is undone")
    at = f"at {size or told.side} pixels " if size or told.side else ""
    for answer in answers:
        if not answer.can:
            yield Finding(answer.probe, f"no: {answer.why}")
            continue
        room, well = _room(plans[answer.probe].takes, probes[answer.probe], batch_size, (device, memory))
        yield Finding(answer.probe, f"yes{f', {answer.why}' if answer.why else ''}: {at}{room}", well)


def _part(one: Component) -> Finding:
    """A part of a model: its class, how many parameters it has, and what lies on the disk of it."""
    count = f", {one.parameters / 1e6:,.1f} million parameters" if one.parameters else ""
    files = one.files
    stored = f", {_size(files.bytes)} on disk in {' and '.join(files.formats)}" if files and files.formats else ""
    return Finding(one.name, f"{one.kind}{count}{stored}" + (f"; {one.lacks}" if one.lacks else ""), well=one.lacks is None)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _standard(model: Model, names: Iterable[str]) -> dict[str, Probe]:
    """The probes of the standard budget, by name, as the model can be asked them."""
    from diffprobe.probes import PROBES

    return {name: PROBES[name].preset("standard").suited(model) for name in names}


def _room(takes: Primitives, probe: Probe, batch_size: int, place: tuple[torch.device, int | None]) -> tuple[str, bool]:
    """What a probe takes of a device and its memory, whether that is there, and where not the largest batch that fits."""
    from diffprobe.runs.memory import Foreseen, gibibytes, memory_of, planned

    device, memory = place[0], memory_of(place[0]) if place[1] is None else place[1]

    def needed(rows: int) -> int:
        return planned(Foreseen(takes, probe.load(rows)), device, memory)

    whole = needed(batch_size)
    if memory is None:
        return f"{gibibytes(whole)} in batches of {batch_size}", True
    told = f"{gibibytes(whole)} of {gibibytes(memory)} in batches of {batch_size}"
    if whole <= memory:
        return told, True
    fits = next((rows for rows in range(min(batch_size, _ROWS) - 1, 0, -1) if needed(rows) <= memory), None)
    remedy = f"a batch_size of {fits} does" if fits else "no batch fits, so take a smaller size, half precision or a larger device"
    return f"{told}, which do not fit: {remedy}", False


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
