"""Pickles are read as data: what they name is never imported, made or called, and what no network needs is refused by name."""

import builtins
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffprobe.adapters.edm2 import read_published
from diffprobe.adapters.safe_pickle import PARAMETER, STORAGE, TENSOR, Name, Record, read_records
from diffprobe.adapters.saved_networks import saved, tensors
from diffprobe.errors import UserError
from tests.edm2_files import EasyDict, Persistent, Tiny, network, random_arrays, save, save_published


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that comes to be where something was run."""
    return tmp_path / "ran"


def touching(mark: Path) -> dict[str, tuple[str, object]]:
    """What would leave the mark or fetch what could, and the name that is refused. Bytes are a whole stream."""
    touch = f"touch {mark}"
    return {
        "system": (f"{os.system.__module__}.system", Calls(os.system, touch)),
        "eval": ("builtins.eval", Calls(eval, f"open({str(mark)!r}, 'w')")),
        "exec": ("builtins.exec", Calls(exec, f"open({str(mark)!r}, 'w')")),
        "load": ("torch.serialization.load", Calls(torch.load, str(mark))),
        "getattr": ("builtins.getattr", raw(b"cbuiltins\ngetattr\n", "a", "b")),
        "open": ("io.open", raw(b"cio\nopen\n", str(mark), "w")),
        "lambda": ("__main__.<lambda>", raw(b"c__main__\n<lambda>\n")),
        "dotted": ("os.path.os.system", raw(b"\x8c\x07os.path\x8c\x09os.system\x93", touch)),
        "through torch": ("torch._utils.os.system", raw(b"\x8c\x0ctorch._utils\x8c\x09os.system\x93", touch)),
        "import": ("importlib.import_module", raw(b"cimportlib\nimport_module\n", "this")),
        "old instruction": ("the instruction UNICODE", b"\x80\x02(V" + touch.encode() + b"\niposix\nsystem\n."),
    }


def raw(function: bytes, *args: str) -> bytes:
    """A pickle that puts a function on the stack by these instructions and calls it."""
    texts = b"".join(b"X" + len(text).to_bytes(4, "little") + text.encode() for text in args)
    return b"\x80\x04" + function + b"(" + texts + b"tR."


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    return save(path, content)


@pytest.mark.parametrize("inside", ["alone", "ema", "state"])
@pytest.mark.parametrize("name", touching(Path("x")))
def test_what_would_run_is_refused_by_name_and_does_not(name: str, inside: str, mark: Path, tmp_path: Path) -> None:
    refused, payload = touching(mark)[name]
    whole = network(Tiny().arguments, random_arrays(Tiny()))
    whole.__dict__["extra"] = payload
    content = {"alone": payload, "ema": EasyDict(ema=payload), "state": whole}[inside]
    if inside == "alone" or not isinstance(payload, bytes):
        with pytest.raises(UserError) as told:
            read_records(write(tmp_path / "a.pkl", content))
        assert f"asks for {refused}, which no saved network needs: refused, and nothing in it was run" in str(told.value)
        assert told.value.exit_code == 4
        assert "\n" not in str(told.value)
    else:  # bytes in a file are bytes, whatever they would do elsewhere
        read_records(write(tmp_path / "a.pkl", content))
    assert not mark.exists()


def test_the_same_pickles_run_where_pickle_reads_them(mark: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(pickle.dumps(touching(mark)["eval"][1])).close()
    assert mark.exists()
    mark.unlink()
    for name in ("dotted", "through torch", "old instruction"):
        stream = touching(mark)[name][1]
        assert isinstance(stream, bytes)
        pickle.loads(stream)
        assert mark.exists()
        mark.unlink()


def storage(content: bytes) -> Calls:
    return Calls(torch.storage._load_from_bytes, content)


def tensor_of(content: bytes, shape: tuple[Any, ...] = (2,), offset: int = 0, stride: tuple[int, ...] = (1,)) -> Calls:
    return Calls(torch._utils._rebuild_tensor_v2, storage(content), offset, shape, stride, False, OrderedDict())


def bytes_of(values: torch.Tensor) -> bytes:
    """What a storage pickles as."""
    made = values.untyped_storage()
    file = io.BytesIO()
    torch.save(torch.TypedStorage(wrap_storage=made, dtype=values.dtype, _internal=True), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def holding(parameter: object) -> Persistent:
    found = Persistent("Precond", "", Tiny().arguments)
    found._parameters["weight"] = parameter  # type: ignore[assignment]
    return found


def gathered(path: Path, content: object) -> dict[str, torch.Tensor]:
    return tensors(read_records(write(path, content)), path)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_hides_in_a_tensors_bytes_is_refused_and_does_not_run(zipped: bool, mark: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save(Calls(os.system, f"touch {mark}"), file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"cannot read 'weight' of .*: refused, and nothing in it was run") as told:
        gathered(tmp_path / "a.pkl", holding(tensor_of(file.getvalue())))
    assert "\n" not in str(told.value)
    plain = pickle.dumps(touching(mark)["eval"][1])
    with pytest.raises(UserError, match="cannot read 'weight'"):
        gathered(tmp_path / "a.pkl", holding(tensor_of(plain)))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("shape", "offset", "stride"), [((9,), 0, (1,)), ((2,), 3, (1,)), ((2,), -1, (1,)), ((2,), 0, (-1,)), (("a",), 0, (1,))]
)
def test_a_tensor_stays_in_its_storage(shape: tuple[Any, ...], offset: int, stride: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read 'weight'"):
        gathered(tmp_path / "a.pkl", holding(tensor_of(bytes_of(torch.ones(4)), shape, offset, stride)))


def test_a_storage_of_anything_else_is_refused(tmp_path: Path) -> None:
    others: tuple[object, ...] = ({"a": 1}, (torch.ones(2),), torch.nn.Linear(2, 2), [torch.ones(2).untyped_storage()])
    for other in others:
        file = io.BytesIO()
        torch.save(other, file, _use_new_zipfile_serialization=False)
        with pytest.raises(UserError, match="cannot read 'weight' of"):
            gathered(tmp_path / "a.pkl", holding(tensor_of(file.getvalue())))
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
        with pytest.raises(UserError, match=r"cannot read 'weight' of .* \(torch.*Storage\): refused"):
            gathered(tmp_path / "a.pkl", holding(tensor_of(bytes_of(torch.ones(2, dtype=dtype)))))
    cut = bytes_of(torch.ones(4))[:-1]
    with pytest.raises(UserError, match="a storage that is cut short"):
        gathered(tmp_path / "a.pkl", holding(tensor_of(cut)))
    for content, told in ((storage(bytes_of(torch.ones(2))), "is no tensor"), ([1.0], "a list for what weight should be")):
        with pytest.raises(UserError, match=told):
            gathered(tmp_path / "a.pkl", holding(content))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_kind_and_stride_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(24).reshape(2, 3, 4).to(dtype)
    module = Persistent("Any", "raise SystemExit")
    for name, value in {
        "whole": values,
        "turned": values.permute(2, 0, 1),
        "part": values[1, ::2],
        "empty": values[:0],
        "one": values[1, 2, 3],
    }.items():
        module.register_buffer(name, value)
    module.register_buffer("left_out", values, persistent=False)
    module.register_buffer("absent", None)
    inner = Persistent("Any", "raise SystemExit")
    inner.register_parameter("weight", nn.Parameter(torch.ones(2, 3, dtype=dtype), requires_grad=False))
    module.add_module("inner", nn.Sequential(inner, nn.ModuleDict(), nn.ModuleList([inner])))
    wanted = module.state_dict()
    found = gathered(tmp_path / "a.pkl", module)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in wanted.items())
    assert all(value.is_contiguous() and not value.requires_grad for value in found.values())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_protocol_with_bytes_is_read(protocol: int, tmp_path: Path) -> None:
    module = network(Tiny().arguments, random_arrays(Tiny()))
    content = EasyDict(ema=module, options=OrderedDict(a={1, 2}), number=3)
    _, state, _ = read_published(save(tmp_path / "a.pkl", content, protocol))
    assert state.keys() == module.state_dict().keys()


def test_nothing_of_the_file_is_imported_compiled_or_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the module that it names nor the source text within it, nor even torch's own layers."""
    path = save_published(tmp_path / "a.pkl", Tiny(), random_arrays(Tiny()), source="raise SystemExit('compiled')")
    before = set(sys.modules)

    def forbidden(*args: object, **more: object) -> None:
        raise AssertionError(f"called with {args}")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "exec", forbidden)
        patch.setattr(builtins, "compile", forbidden)
        patch.setattr(nn.ModuleDict, "__init__", forbidden)
        content = read_records(path)
        found = saved(content["ema"], path)
        state = tensors(content["ema"], path)
    assert not {"torch_utils", "dnnlib", "training"} & (set(sys.modules) - before)
    assert (found.kind, found.arguments) == ("Precond", Tiny().arguments)
    assert len(state) == len(random_arrays(Tiny()))
    enc = found.state["_modules"]["unet"].args[0]["state"]["_modules"]["enc"]
    assert isinstance(enc, Record)
    assert enc.name == "torch.nn.modules.container.ModuleDict"


def test_what_is_plain_stays_plain_and_the_rest_becomes_records(tmp_path: Path) -> None:
    content = {
        "numbers": [1, 2.5, None, True, "text", b"bytes", (3,), {4}, frozenset({5})],
        "ordered": OrderedDict(b=1, a=2),
        "array": np.arange(3.0),
        "scalar": np.float32(1),
        "tensor": torch.ones(2),
        "parameter": nn.Parameter(torch.ones(2)),
        "kind": torch.float16,
        "easy": EasyDict(x=EasyDict(y=1)),
    }
    found = read_records(save(tmp_path / "a.pkl", content))
    assert found["numbers"] == content["numbers"]
    assert list(found["ordered"].items()) == [("b", 1), ("a", 2)]
    assert found["easy"] == {"x": {"y": 1}}
    assert isinstance(found["array"], Record)
    assert isinstance(found["scalar"], Record)
    assert (found["tensor"].name, found["parameter"].name, found["kind"].name) == (TENSOR, PARAMETER, "torch.float16")
    assert isinstance(found["kind"], Name)
    assert found["tensor"].args[0].name == STORAGE
    assert isinstance(found["tensor"].args[0].args[0], bytes)


@pytest.mark.parametrize(
    "target", ["collections OrderedDict", "dnnlib.util EasyDict", "builtins set", "torch.nn.modules.container ModuleDict"]
)
@pytest.mark.parametrize("state", [{"__setstate__": 1}, (None, {"__setstate__": 1}), (None, {"keys": 1})])
def test_a_pickle_changes_no_class(target: str, state: object, tmp_path: Path) -> None:
    """BUILD on a class would set its attributes, and so change what is read after it and in other files."""
    module, name = target.split()
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + pickle.dumps(state, 2)[2:-1] + b"b.")
    with pytest.raises(UserError, match="cannot read"):
        read_records(path)
    assert OrderedDict(a=1).keys()
    assert read_records(save(path, EasyDict(a=OrderedDict(b={1})))) == {"a": {"b": {1}}}


def test_objects_outside_the_file_are_refused(tmp_path: Path) -> None:
    """Without a word of what they are called, which may be anything."""
    for content, told in ((b"\x80\x04X\x05\x00\x00\x00placeQ.", "an object outside the file"), (b"Pplace\n.", "the instruction PERSID")):
        path = write(tmp_path / "a.pkl", content)
        with pytest.raises(UserError, match=f"asks for {told}, which no saved network needs"):
            read_records(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"\x80\x63.",
        b"PK\x03\x04rest",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04h\x07.",
        b"text",
        b"\x80\x04]" * 3,
    ],
)
def test_what_is_damaged_is_one_line(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged or no pickle, fetch it again") as told:
        read_records(write(tmp_path / "a.pkl", content))
    assert told.value.exit_code == 4
    assert "\n" not in str(told.value)


def test_every_truncation_of_a_file_is_told(tmp_path: Path) -> None:
    whole = save_published(tmp_path / "a.pkl", Tiny(), random_arrays(Tiny())).read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        with pytest.raises(UserError, match="cannot read"):
            read_records(write(tmp_path / "b.pkl", whole[:length]))


def test_a_files_words_cannot_break_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", b"\x80\x04" + b"\x8c\x0aevil\n\x1b[31mx" + b"\x8c\x01f\x93.")
    with pytest.raises(UserError) as told:
        read_records(path)
    assert str(told.value).isprintable()
    long = "x" * 250
    with pytest.raises(UserError) as told:
        read_records(write(path, b"\x80\x04\x8c\xfa" + long.encode() + b"\x8c\x01f\x93."))
    assert len(str(told.value)) < 400


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot open .* \(IsADirectoryError\)"):
        read_records(tmp_path)
