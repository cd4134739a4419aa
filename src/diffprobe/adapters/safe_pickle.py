"""Pickled networks read without running what is in them: every name becomes an inert record, tensors are rebuilt from checked numbers.

NVIDIA publishes its networks as pickles of live objects, with their source text inside. The unpickler here imports nothing and calls
nothing that a file names: a name on a short list becomes a `Record` of what it would have been called with, any other is refused. What
is needed is then read from the records. The source text is left where it lies.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffprobe.errors import UserError

T = TypeVar("T")
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"  # how NVIDIA's classes are saved: by a dictionary about them
PARAMETER, TENSOR, STORAGE = "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"
LAYERS = "torch.nn.modules."
_NUMPY = [f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")]
_TYPES = ["numpy.ndarray", "numpy.dtype", "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", "torch.device"]
#: The names that become records, besides torch's layers.
RECORDS = frozenset({PERSISTENT, PARAMETER, TENSOR, STORAGE, *_NUMPY, *_TYPES})
_DEEPEST = 32


class Record:
    """Something that a pickle names and that was not made: its `name`, what it would be called with, the state it would be given.

    `__setstate__` also keeps a pickle from setting attributes of the class itself: without an object to set it on, it raises.
    """

    __slots__ = ("args", "state")
    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Plain(dict[Any, Any]):
    """What stands for every kind of dictionary. Attributes that one may have had are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


_CONTAINERS: dict[str, type] = {
    "collections.OrderedDict": _Plain,
    "dnnlib.util.EasyDict": _Plain,
    "dnnlib.EasyDict": _Plain,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
}


class _Refused(pickle.UnpicklingError):
    """What a file asks for that no saved network needs."""


class _Reader(pickle.Unpickler):
    """Plain values as they are, listed names as kinds of Record, and nothing else."""

    def __init__(self, stream: io.BufferedReader) -> None:
        super().__init__(stream)
        self._kinds: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> type:
        full = f"{module}.{name}"
        if full in _CONTAINERS:
            return _CONTAINERS[full]
        if full not in RECORDS and not full.startswith(LAYERS):
            raise _Refused(full)
        if full not in self._kinds:
            self._kinds[full] = type(full, (Record,), {"__slots__": (), "name": full})
        return self._kinds[full]

    def persistent_load(self, pid: object) -> object:
        raise _Refused(f"an object outside the file: {pid}")


class Saved(NamedTuple):
    """A persistent object of a pickle: the name of its class, the arguments that it was made with, and its attributes."""

    kind: str
    args: tuple[Any, ...]
    arguments: dict[str, Any]
    state: dict[str, Any]


def read_records(file: Path) -> Any:
    """What a pickle holds: dictionaries, lists, texts and numbers, and a Record wherever it names anything else.

    Raises UserError (exit code 4) where it names what no saved network needs, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return _Reader(stream).load()
    except OSError as error:
        raise UserError(f"cannot open {file} ({type(error).__name__}): give the path of a file that can be read", 4) from error
    except _Refused as refused:
        raise UserError(f"{file} asks for {_told(refused)}, which no saved network needs: refused, and nothing in it was run", 4) from None
    except Exception as error:  # what is damaged or made to do harm may raise anything
        raise UserError(
            f"cannot read {file} ({type(error).__name__}: {_told(error)}): it is damaged or no pickle, fetch it again", 4
        ) from error


def saved(found: object, file: Path) -> Saved:
    """A record of one of NVIDIA's persistent objects; raises UserError for anything else."""
    if not isinstance(found, Record) or found.name != PERSISTENT:
        what = found.name if isinstance(found, Record) else type(found).__name__
        raise UserError(f"{file} holds {_told(what)} in place of a network that NVIDIA saved: give a file published for EDM2", 4)
    about = _is(found.args[0] if found.args else None, dict, "what describes a network", file)
    state = _is(about.get("state"), dict, "a network's state", file)
    args = _is(state.get("_init_args", ()), tuple, "a network's arguments", file)
    arguments = _is(state.get("_init_kwargs", {}), dict, "a network's arguments", file)
    return Saved(str(about.get("class_name")), args, dict(arguments), state)


def tensors(found: object, file: Path, prefix: str = "") -> dict[str, Tensor]:
    """The parameters and buffers of a record of a network and of all within it, by their paths: what `state_dict` would give.

    Raises UserError where a tensor does not fit in its storage, or where that storage holds anything but numbers.
    """
    if prefix.count(".") > _DEEPEST:
        raise UserError(f"{file} nests networks more than {_DEEPEST} deep, as no published one does: it is damaged, fetch it again", 4)
    if isinstance(found, Record) and found.name.startswith(LAYERS):
        state = _is(found.state, dict, "a layer's state", file)
    else:
        state = saved(found, file).state
    parts = {key: _is(state.get(key, {}), dict, f"a layer's {key}", file) for key in ("_parameters", "_buffers", "_modules")}
    gathered = {}
    for name, value in {**parts["_parameters"], **parts["_buffers"]}.items():
        if value is not None and name not in state.get("_non_persistent_buffers_set", ()):
            gathered[f"{prefix}{name}"] = _tensor(value, f"{prefix}{name}", file)
    for name, part in parts["_modules"].items():
        if part is not None:
            gathered |= tensors(part, file, f"{prefix}{name}.")
    return gathered


def _tensor(found: object, name: str, file: Path) -> Tensor:
    """A tensor of its own memory, from the record of a parameter or of a tensor."""
    kind = f"what {name} should be"
    record = _is(found, Record, kind, file)
    if record.name == PARAMETER:
        record = _is(record.args[0] if record.args else None, Record, kind, file)
    if record.name != TENSOR or len(record.args) < 4:
        raise UserError(f"'{name}' of {file} is no tensor but {_told(record.name)}: it is damaged, fetch it again", 4)
    storage, offset, size, stride = record.args[:4]
    stored = _is(storage, Record, f"the storage of {name}", file)
    content = _is(stored.args[0] if stored.name == STORAGE and stored.args else None, bytes, f"the storage of {name}", file)
    try:
        numbers: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(numbers, torch.TypedStorage):
            raise TypeError(f"a {type(numbers).__name__} in place of numbers")
        flat = torch.empty(0, dtype=numbers.dtype).set_(numbers._untyped_storage)
        return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)  # within the storage, or it raises
    except Exception as error:  # as above: it is the file's own content
        raise UserError(f"cannot read '{name}' of {file} ({_told(error)}): refused, and nothing in it was run", 4) from error


def _is(value: object, kind: type[T], what: str, file: Path) -> T:
    if not isinstance(value, kind):
        raise UserError(f"{file} has a {type(value).__name__} for {_told(what)}, not a {kind.__name__}: it is damaged, fetch it again", 4)
    return value


def _told(found: object) -> str:
    """A file's own words in a message: one line, printable, short."""
    line = (str(found).strip().splitlines() or [""])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:160]
