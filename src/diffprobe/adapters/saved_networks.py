"""Networks as NVIDIA saves them, from the records of a pickle: what they were made with, and their tensors from checked numbers."""

from __future__ import annotations

import io
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffprobe.adapters.safe_pickle import ELSEWHERE, LAYERS, PARAMETER, PERSISTENT, STORAGE, TENSOR, Machine, Name, Record, Refused, told
from diffprobe.errors import UserError

T = TypeVar("T")
_FORMATS = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # how torch begins a storage within a pickle
_DEEPEST, _MOST = 32, 20_000  # networks in each other; parameters, buffers and networks in all
_HEADER = 1000  # instructions of a pickle within a storage, which has about 30
_SPARE = 2  # how many times a file's own size its tensors may take


class Saved(NamedTuple):
    """A persistent object of a pickle: the name of its class, the arguments that it was made with, and its attributes."""

    kind: str
    args: tuple[Any, ...]
    arguments: dict[str, Any]
    state: dict[str, Any]


class _Numbers(NamedTuple):
    """Where the numbers of a storage lie in its bytes, and in which format."""

    content: bytes
    start: int
    total: int
    dtype: torch.dtype


def saved(found: object, file: Path) -> Saved:
    """A record of one of NVIDIA's persistent objects; raises UserError for anything else."""
    if not isinstance(found, Record) or found.name != PERSISTENT:
        what = found.name if isinstance(found, Record) else type(found).__name__
        raise UserError(f"{file} holds {told(what)} in place of a network that NVIDIA saved: give a file published for EDM2", 4)
    about = _is(found.args[0] if found.args else None, dict, "what describes a network", file)
    state = _is(about.get("state"), dict, "a network's state", file)
    args = _is(state.get("_init_args", ()), tuple, "a network's arguments", file)
    arguments = _is(state.get("_init_kwargs", {}), dict, "a network's arguments", file)
    return Saved(_is(about.get("class_name"), str, "the name of a network's class", file), args, dict(arguments), state)


def tensors(found: object, file: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a record of a network and of all within it, by their paths: what `state_dict` would give.

    Each has memory of its own. Raises UserError where a tensor does not fit in its storage, where that storage holds anything but
    floating-point numbers, or where the file would take more memory than a few times its size.
    """
    gatherer = _Gatherer(file)
    gatherer.visit(found, "")
    return gatherer.found


class _Gatherer:
    """The tensors of one file as they are met, and what may still be visited and copied."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Tensor] = {}
        self.visits, self.bytes = _MOST, _SPARE * file.stat().st_size
        self.storages: dict[int, _Numbers] = {}  # by the id of their bytes, which the numbers hold

    def visit(self, found: object, prefix: str) -> None:
        file = self.file
        if prefix.count(".") > _DEEPEST:
            raise UserError(f"{file} nests networks more than {_DEEPEST} deep, as no published one does: it is damaged, fetch it again", 4)
        state = (
            _is(found.state, dict, "a layer's state", file)
            if isinstance(found, Record) and found.name in LAYERS
            else saved(found, file).state
        )
        parameters, buffers, modules = (
            _is(state.get(key, {}), dict, f"a layer's {key}", file) for key in ("_parameters", "_buffers", "_modules")
        )
        left_out = _is(state.get("_non_persistent_buffers_set", set()), set, "a layer's _non_persistent_buffers_set", file)
        self.visits -= 1 + len(parameters) + len(buffers) + len(modules)
        if self.visits < 0:
            raise UserError(
                f"{file} holds more than {_MOST} layers and tensors, as no published one does: it is damaged, fetch it again", 4
            )
        for part in (parameters, buffers):
            for name, value in part.items():
                full = self._path(prefix, name)
                if value is not None and name not in left_out:
                    self.found[full] = self._tensor(value, full)
        for name, value in modules.items():
            full = self._path(prefix, name)
            if value is not None:
                self.visit(value, f"{full}.")

    def _path(self, prefix: str, name: object) -> str:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
            raise UserError(f"{self.file} names a layer or a tensor as no published one is: it is damaged, fetch it again", 4)
        return prefix + name

    def _tensor(self, found: object, name: str) -> Tensor:
        """A tensor of its own memory, from the record of a parameter or of a tensor."""
        file, kind = self.file, f"what {name} should be"
        record = _is(found, Record, kind, file)
        if record.name == PARAMETER:
            record = _is(record.args[0] if record.args else None, Record, kind, file)
        if record.name != TENSOR or len(record.args) < 4:
            raise UserError(f"'{name}' of {file} is no tensor but {told(record.name)}: it is damaged, fetch it again", 4)
        storage, offset, size, stride = record.args[:4]
        stored = _is(storage, Record, f"the storage of {name}", file)
        content = _is(stored.args[0] if stored.name == STORAGE and stored.args else None, bytes, f"the storage of {name}", file)
        try:
            if id(content) not in self.storages:
                self.storages[id(content)] = _numbers(content)
            return self._copied(self.storages[id(content)], offset, size, stride)
        except Exception as error:  # as in reading the pickle: it is the file's own content
            what = told(str(error)) or type(error).__name__
            raise UserError(f"cannot read '{name}' of {file} ({what}): refused, and nothing in it was run", 4) from error

    def _copied(self, numbers: _Numbers, offset: Any, size: Any, stride: Any) -> Tensor:
        steps, reach = _within(numbers.total, offset, size, stride)
        width = numbers.dtype.itemsize
        self.bytes -= reach * width
        if self.bytes < 0:
            raise Refused(f"its tensors take more than {_SPARE} times the size of the file")
        if not reach:
            return torch.empty(size, dtype=numbers.dtype)
        start = numbers.start + offset * width
        own = bytearray(memoryview(numbers.content)[start : start + reach * width])
        return torch.frombuffer(own, dtype=numbers.dtype).as_strided(size, steps).contiguous()


def _within(count: int, offset: Any, size: Any, stride: Any) -> tuple[list[int], int]:
    """The strides of a tensor within `count` numbers, and how many of them it reaches over; raises ValueError where it is none."""
    if type(offset) is not int or type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > 8:
        raise ValueError("a tensor of no shape")
    if not all(type(one) is int and 0 <= one <= count for one in (offset, *size)):
        raise ValueError("a tensor beyond its storage")
    if not all(type(step) is int and (step > 0 or side < 2) for side, step in zip(size, stride, strict=True)):
        raise ValueError("a tensor that repeats its storage")
    steps = [step if side > 1 else 1 for side, step in zip(size, stride, strict=True)]
    numel = math.prod(size)
    reach = 1 + sum((side - 1) * step for side, step in zip(size, steps, strict=True)) if numel else 0
    if numel > reach or offset + reach > count:
        raise ValueError("a tensor beyond its storage")
    return steps, reach


def _numbers(content: bytes) -> _Numbers:
    """A storage's bytes as torch writes them within a pickle: five pickles, a count, and the numbers. Zip archives are refused."""
    stream = io.BytesIO(content)
    allowed = frozenset(_FORMATS)
    magic, version, machine, storage, keys = (Machine(allowed, elsewhere=True, most=_HEADER).load(stream) for _ in range(5))
    if magic != _MAGIC or version != _VERSION or type(machine) is not dict or machine.get("little_endian") is not True:
        raise ValueError("no storage of numbers as torch saves it")
    about = storage.args[0] if type(storage) is Record and storage.name == ELSEWHERE else None
    if type(about) is not tuple or len(about) not in (5, 6) or type(about[1]) is not Name:
        raise ValueError(f"a {type(storage).__name__} in place of numbers")
    key, count = about[2], about[4]
    if about[1].name not in _FORMATS or type(key) is not str or keys != [key] or type(count) is not int or about[5:] not in ((), (None,)):
        raise ValueError("a storage of no numbers")
    dtype, start = _FORMATS[about[1].name], stream.tell() + 8
    if len(content) != start + count * dtype.itemsize or struct.unpack_from("<q", content, start - 8)[0] != count:
        raise ValueError("a storage that is cut short")
    return _Numbers(content, start, count, dtype)


def _is(value: object, kind: type[T], what: str, file: Path) -> T:
    if not isinstance(value, kind):
        raise UserError(f"{file} has a {type(value).__name__} for {told(what)}, not a {kind.__name__}: it is damaged, fetch it again", 4)
    return value
