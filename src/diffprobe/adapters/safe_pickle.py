"""Pickles read without running what is in them: plain values as they are, and an inert record wherever a name would be called.

Neither `pickle` nor the file decides what happens here. The instructions are those that a saved network is written with, one after
another, in a loop of our own that imports nothing and calls nothing of what a file names: a name on a short list becomes a `Record` of
what it would have been called with, any other is refused, and so is any other instruction. What a file costs is bounded by its size.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from diffprobe.errors import UserError

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"  # how NVIDIA's classes are saved: by a dictionary about them
PARAMETER, TENSOR, STORAGE = "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"
LAYERS = frozenset(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential"))
ELSEWHERE = "what lies outside the pickle"  # the name of the record of a persistent id
_NUMPY = [f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")]
_TYPES = ["numpy.ndarray", "numpy.dtype", "torch.float16", "torch.bfloat16", "torch.float32", "torch.float64", "torch.device"]
#: The names that become records.
RECORDS = frozenset({PERSISTENT, PARAMETER, TENSOR, STORAGE, *LAYERS, *_NUMPY, *_TYPES})
_DICTIONARIES = frozenset({"collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict"})
_SETS = {f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)}
_MOST, _DEEPEST, _LONGEST = 500_000, 200, 1000  # instructions of a file, containers in each other, letters of a key


class Name(NamedTuple):
    """A class or a function that a pickle names, which is neither looked for nor imported."""

    name: str


class Record:
    """Something that a pickle names and that was not made: its `name`, what it would be called with, the state it would be given."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None


class Refused(Exception):
    """What a file asks for that no saved network needs, in words that are safe to show."""


class _Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...
    def readline(self, size: int = -1, /) -> bytes: ...


class _Bounded(io.BufferedReader):
    """A file that sets aside no more memory for a read than it has bytes, whatever length it is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 65_536:
            here = self.tell()
            size = min(size, self.seek(0, io.SEEK_END) - here)
            self.seek(here)
        return super().read(size)


class Machine:
    """The stack, the marks and the memo of one pickle. `elsewhere`: whether it may speak of what lies outside (torch's storages do)."""

    def __init__(self, names: frozenset[str] = RECORDS, *, elsewhere: bool = False, most: int = _MOST) -> None:
        self.names, self.elsewhere, self.most = names, elsewhere, most
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.depths: dict[int, tuple[int, object]] = {}  # by id; the objects are held, so that no id comes twice
        self.left = most

    def load(self, stream: _Stream) -> Any:
        """The value of the pickle at the stream's place, which is left behind it. Raises Refused, or anything where it is damaged."""
        for instruction, value, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            self.spend(1)
            name = instruction.name
            if name in _VALUES:
                self.stack.append(value)
            elif name in _STEPS:
                _STEPS[name](self, value)
            else:
                raise Refused(f"the instruction {name}")
        found = self.pop()
        if self.stack or self.marks:
            raise ValueError("it ends in the middle")
        return found

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refused(f"more than {self.most} instructions")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        self.stack.append(self.pop())
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def nest(self, outer: Any, inner: list[Any] | tuple[Any, ...]) -> Any:
        """Note that `outer` holds these now; raises Refused where that is too deep. (Nothing here follows values down, so that none can
        hang or overflow; but who reads them may.)"""
        depth = 1 + max((self.depths[id(one)][0] for one in inner if id(one) in self.depths), default=0)
        if depth > _DEEPEST:
            raise Refused(f"values nested more than {_DEEPEST} deep")
        if depth > self.depths.get(id(outer), (0, None))[0]:
            self.depths[id(outer)] = depth, outer
        return outer

    def push(self, made: Any, inner: list[Any] | tuple[Any, ...] = ()) -> None:
        self.stack.append(self.nest(made, inner))


def read_records(file: Path) -> Any:
    """What a pickle holds: dictionaries, lists, texts and numbers, and a Record or a Name wherever it names anything else.

    Keys and members of sets are short texts or whole numbers. Raises UserError (exit code 4) where it asks for what no saved network
    needs, or cannot be read.
    """
    try:
        with _Bounded(io.FileIO(file)) as stream:
            return Machine().load(stream)
    except OSError as error:
        raise UserError(f"cannot open {file} ({type(error).__name__}): give the path of a file that can be read", 4) from error
    except Refused as refused:
        raise UserError(
            f"{file} asks for {told(str(refused))}, which no saved network needs: refused, and nothing in it was run", 4
        ) from None
    except Exception as error:  # what is damaged or made to do harm may raise anything
        what = f"{type(error).__name__}: {told(str(error))}"
        raise UserError(f"cannot read {file} ({what}): it is damaged or no pickle, fetch it again", 4) from error


def told(text: str) -> str:
    """A file's own words in a message: one line, printable, short."""
    line = (text[:1000].strip().splitlines() or [""])[0]
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:160]


def _key(value: Any) -> Any:
    """A key, or a member of a set, whose hash asks nothing of what it holds."""
    if type(value) is not int and not (type(value) is str and len(value) <= _LONGEST):
        raise Refused(f"a key that is no short text or whole number but a {type(value).__name__}")
    return value


def _protocol(_: Machine, value: Any) -> None:
    if not 2 <= value <= 5:
        raise ValueError(f"protocol {value}")


def _put(machine: Machine, value: Any) -> None:
    """Keep the top under a number: picklers count from 0 (`value` None: the next one)."""
    place = len(machine.memo) if value is None else value
    if place > len(machine.memo):
        raise Refused("a memo with gaps")
    machine.memo[place : place + 1] = [machine.top()]


def _drop(machine: Machine, _: Any) -> None:
    machine.pop()


def _drop_to_mark(machine: Machine, _: Any) -> None:
    machine.since_mark()


def _append(machine: Machine, items: list[Any]) -> None:
    into = machine.top()
    if type(into) is not list:
        raise TypeError(f"a {type(into).__name__} in place of a list")
    into.extend(items)
    machine.nest(into, items)


def _set_items(machine: Machine, items: list[Any]) -> None:
    into = machine.top()
    if type(into) is not dict or len(items) % 2:
        raise TypeError(f"{len(items)} items for a {type(into).__name__} in place of a dictionary")
    into.update(zip(map(_key, items[::2]), items[1::2], strict=True))
    machine.nest(into, items)


def _add_items(machine: Machine, items: list[Any]) -> None:
    into = machine.top()
    if type(into) is not set:
        raise TypeError(f"a {type(into).__name__} in place of a set")
    into.update(map(_key, items))


def _tuple(count: int | None) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, _: Any) -> None:
        items = machine.since_mark() if count is None else [machine.pop() for _ in range(count)][::-1]
        machine.push(tuple(items), items)

    return step


def _name(machine: Machine, full: str) -> None:
    if full not in machine.names and full not in _DICTIONARIES and full not in _SETS:
        raise Refused(full)
    machine.stack.append(Name(full))


def _stack_name(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise TypeError("a name that is no text")
    _name(machine, f"{module[:_LONGEST]}.{name[:_LONGEST]}")


def _call(machine: Machine, _: Any) -> None:
    """What a name is called with is written down; of the containers' names, the container is made."""
    args, called = machine.pop(), machine.pop()
    if type(called) is not Name or type(args) is not tuple:
        raise TypeError(f"a {type(called).__name__} called with a {type(args).__name__}")
    if called.name in _DICTIONARIES and not args:
        machine.push({})
    elif called.name in _SETS and len(args) <= 1 and all(type(arg) is list for arg in args):
        machine.spend(sum(map(len, args)))
        machine.push(_SETS[called.name](_key(one) for arg in args for one in arg))
    elif called.name in machine.names:
        machine.push(Record(called.name, args), [args])
    else:
        raise TypeError(f"arguments for {called.name}")


def _build(machine: Machine, _: Any) -> None:
    """A record keeps its state. Attributes that a dictionary may have had are dropped; nothing else has any."""
    state, target = machine.pop(), machine.top()
    if type(target) is Record:
        target.state = state
        machine.nest(target, [state])
    elif type(target) is not dict:
        raise TypeError(f"a state for a {type(target).__name__}")


def _outside(machine: Machine, _: Any) -> None:
    if not machine.elsewhere:
        raise Refused("an object outside the file")
    machine.push(Record(ELSEWHERE, (machine.pop(),)))


_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES".split()  # noqa: SIM905 (a table of names)
)
_STEPS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": lambda _, __: None,
    "STOP": lambda _, __: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _drop,
    "POP_MARK": _drop_to_mark,
    "MEMOIZE": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.since_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, [machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    "ADDITEMS": lambda machine, _: _add_items(machine, machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(_key, machine.since_mark()))),
    "TUPLE": _tuple(None),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "GLOBAL": lambda machine, value: _name(machine, value.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "BINPERSID": _outside,
}
