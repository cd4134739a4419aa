"""Small files that are made to crash, hang or fill the memory of who reads them: each is one line, and soon."""

import io
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from diffprobe.adapters.edm2 import read_published
from diffprobe.errors import UserError
from tests.edm2_files import Tiny, random_arrays, save_published

START = b"\x80\x04"
TWINS = b"N\x85\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(40))  # 2^40 values in 41 tuples


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def row(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def entries(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def called(name: str, args: bytes) -> bytes:
    module, _, kind = name.rpartition(".")
    return f"c{module}\n{kind}\n".encode() + args + b"R"


def persistent(state: bytes, kind: bytes = text("Precond")) -> bytes:
    return called("torch_utils.persistence._reconstruct_persistent_obj", b"(" + entries(class_name=kind, state=state) + b"t")


SMALL = entries(img_resolution=whole(8), img_channels=whole(4), model_channels=whole(64), channel_mult=row(1), attn_resolutions=row())


def network(**state: bytes) -> bytes:
    return START + persistent(entries(_init_kwargs=SMALL, **state)) + b"."


def configured(**arguments: bytes) -> bytes:
    return START + persistent(entries(_init_kwargs=entries(**({"img_resolution": whole(8), "img_channels": whole(4)} | arguments)))) + b"."


def stored(values: torch.Tensor, *, zipped: bool = False) -> bytes:
    file = io.BytesIO()
    storage = torch.TypedStorage(wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True)
    torch.save(storage, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def storage(content: bytes) -> bytes:
    return called("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(content)) + content + b"\x85")


def tensor(numbers: bytes, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return called("torch._utils._rebuild_tensor_v2", b"(" + numbers + whole(0) + row(*size) + row(*stride) + b"\x89}t")


def held(numbers: bytes, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return network(_parameters=entries(a=tensor(numbers, size, stride)))


def layer(**state: bytes) -> bytes:
    return b"ctorch.nn.modules.container\nModuleDict\n)\x81" + entries(**state) + b"b"


def compressed() -> bytes:
    given, made = zipfile.ZipFile(io.BytesIO(stored(torch.zeros(10_000_000), zipped=True))), io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as into:
        for name in given.namelist():
            into.writestr(name, given.read(name))
    return made.getvalue()


def repeated(names: int) -> bytes:
    """One tensor of 8 MB under many names."""
    first = text("a") + tensor(storage(stored(torch.ones(2_000_000))), (2_000_000,), (1,)) + b"\x94"
    return network(_parameters=b"}(" + first + b"".join(text(f"a{k}") + b"h\x00" for k in range(names)) + b"u")


def doubled(levels: int) -> bytes:
    """A network that holds each next one twice."""
    inner = layer(_parameters=b"}") + b"\x940"
    for k in range(levels):
        inner += layer(_modules=entries(a=b"h" + bytes([k]), b=b"h" + bytes([k]))) + b"\x940"
    return START + inner + persistent(entries(_init_kwargs=SMALL, _modules=entries(unet=b"h" + bytes([levels])))) + b"."


def shared_names() -> bytes:
    """A dictionary of many absent tensors that many layers share."""
    many = b"}(" + b"".join(text(f"a{k}") + b"N" for k in range(5000)) + b"u\x940"
    layers = b"".join(text(f"m{k}") + layer(_parameters=b"h\x00") for k in range(2000))
    return START + many + persistent(entries(_init_kwargs=SMALL, _modules=b"}(" + layers + b"u")) + b"."


def sets_of_a_list() -> bytes:
    """Sets made again and again of one long list."""
    return START + b"](" + b"K\x01" * 100_000 + b"e\x940" + b"cbuiltins\nset\nh\x00\x85R0" * 20_000 + b"N."


DEEP = b"N" + b"\x85" * 1_000_000
ONE = storage(stored(torch.ones(1)))
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deep tuples as a key": (lambda: START + b"}" + DEEP + b"Ns.", "values nested more than 200 deep"),
    "deep lists": (lambda: START + b"]" * 100_000 + b"a" * 99_999 + b".", "values nested more than 200 deep"),
    "deep dictionaries": (lambda: START + b"}K\x00" * 100_000 + b"N" + b"s" * 100_000 + b".", "values nested more than 200 deep"),
    "shared tuples as a key": (lambda: START + TWINS + b"}h\x28Ns.", "a key that is no short text or whole number but a tuple"),
    "shared tuples as a persistent id": (lambda: START + TWINS + b"Q.", "an object outside the file"),
    "shared tuples in place of a network": (lambda: START + entries(ema=TWINS[:3] + b"0" + b"h\x00") + b".", "holds tuple in place"),
    "shared tuples in a set": (lambda: START + b"\x8f(N\x85\x90.", "a key that is no short text"),
    "a frozenset as a key": (lambda: START + b"}(\x91Ns.", "whole number but a frozenset"),
    "a bool as a key": (lambda: START + b"}\x88Ns.", "whole number but a bool"),
    "a memo with a far place": (lambda: START + b"Nr" + struct.pack("<I", 0x10000000) + b".", "a memo with gaps"),
    "a number of 16 Mbit as a key": (lambda: START + b"}\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000 + b"Ns.", "LONG4"),
    "a number of 3 million digits": (lambda: b"L" + b"9" * 3_000_000 + b"L\n.", "damaged or no pickle"),
    "a long key": (lambda: START + b"}" + text("x" * 5000) + b"Ns.", "a key that is no short text"),
    "a text longer than the file": (lambda: START + b"X" + struct.pack("<I", 0xFFFFFFF0) + b"x.", "damaged or no pickle"),
    "bytes longer than the file": (lambda: START + b"\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "damaged or no pickle"),
    "too many instructions": (lambda: START + b"N0" * 400_000 + b"N.", "more than 500000 instructions"),
    "sets of one list": (sets_of_a_list, "more than 500000 instructions"),
    "an extension": (lambda: START + b"\x82\x01.", "the instruction EXT1"),
    "an instance": (lambda: b"\x80\x02(iposix\nsystem\n.", "the instruction INST"),
    "an object": (lambda: b"\x80\x02(cposix\nsystem\no.", "posix.system"),
    "arguments by name": (lambda: START + b"ccollections\nOrderedDict\n)}\x92.", "the instruction NEWOBJ_EX"),
    "a layer of another kind": (lambda: START + b"ctorch.nn.modules.linear\nLinear\n.", "torch.nn.modules.linear.Linear"),
    "a deep name of a class": (lambda: START + persistent(b"}", b"N" + b"\x85" * 150) + b".", "a tuple for the name of a network's class"),
    "a name of a class with lines": (lambda: START + persistent(b"}", text("a\nb" + "c" * 5000)) + b".", "holds 'a', not EDM2's"),
    "a repeated number": (lambda: held(ONE, (10**9,), (0,)), "a tensor beyond its storage"),
    "a number repeated twice": (lambda: held(storage(stored(torch.ones(4))), (2,), (0,)), "a tensor that repeats its storage"),
    "windows that overlap": (lambda: held(storage(stored(torch.ones(4000))), (2000, 2000), (1, 1)), "a tensor beyond its storage"),
    "a huge empty tensor": (lambda: held(ONE, (0, 10**15), (1, 1)), "a tensor beyond its storage"),
    "a negative size": (lambda: held(ONE, (-1,), (1,)), "a tensor beyond its storage"),
    "a huge stride": (lambda: held(ONE, (1, 2), (1, 10**20)), "a tensor beyond its storage"),
    "a storage that is zipped": (lambda: held(storage(stored(torch.ones(4), zipped=True)), (4,), (1,)), "cannot read 'a'"),
    "a storage that is zipped small": (lambda: held(storage(compressed()), (10_000_000,), (1,)), "cannot read 'a'"),
    "deep tuples in a storage": (lambda: held(storage(START + b"}" + DEEP + b"Ns."), (1,), (1,)), "cannot read 'a'"),
    "one tensor under many names": (lambda: repeated(300), "more than 2 times the size of the file"),
    "layers that double": (lambda: doubled(30), "more than 20000 layers and tensors"),
    "names that layers share": (shared_names, "more than 20000 layers and tensors"),
    "a name of a tensor with lines": (lambda: network(_parameters=b"}" + text("a\nb") + b"Ns"), "names a layer or a tensor"),
    "a number for what is left out": (lambda: network(_non_persistent_buffers_set=b"K\x01"), "a int for a layer's _non_persistent"),
    "a million blocks": (lambda: configured(num_blocks=whole(3_000_000)), "num_blocks is no whole number from 1 to 64"),
    "a text for a share": (lambda: configured(label_balance=text("x")), "label_balance is no number"),
    "a text for a bound": (lambda: configured(clip_act=text("x")), "clip_act is no number"),
    "a fraction for a width": (lambda: configured(channel_mult=b"](K\x01G" + struct.pack(">d", 2.0) + b"e"), "channel_mult is no row"),
    "deep tuples for a width": (lambda: configured(channel_mult=b"N" + b"\x85" * 150), "channel_mult is no row"),
    "an argument of many lines": (lambda: configured(**{"a\nb": b"N"}), "made with 'a'"),
}


@contextmanager
def cheap(size: int) -> Iterator[None]:
    """Ends in seconds, and takes no more memory than some tens of MB and a few times the size of the file."""
    tracemalloc.start()
    begun = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - begun < 10
        assert tracemalloc.get_traced_memory()[1] < 100e6 + 4 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_one_line_and_soon(name: str, tmp_path: Path) -> None:
    make, what = ATTACKS[name]
    path = tmp_path / "a.pkl"
    path.write_bytes(make())
    with cheap(path.stat().st_size), pytest.raises(UserError) as told:
        read_published(path)
    assert what in str(told.value)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400 + len(str(path))
    assert told.value.exit_code == 4


def test_networks_made_here_are_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    """So that the attacks fail by what is wrong with them: the same bytes without it."""
    path = tmp_path / "a.pkl"
    path.write_bytes(held(storage(stored(torch.arange(6.0))), (2, 2), (3, 1)))
    assert read_published(path)[1]["a"].tolist() == [[0, 1], [3, 4]]
    path.write_bytes(repeated(0))
    assert read_published(path)[1]["a"].shape == (2_000_000,)
    path.write_bytes(doubled(3))
    assert read_published(path)[1] == {}
    path.write_bytes(network(_modules=entries(m=layer(_parameters=entries(b=tensor(ONE, (), ()))))))
    assert read_published(path)[1] == {"m.b": torch.ones(())}


def test_networks_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    inner = b"ctorch.nn.modules.container\nModuleDict\n)\x81\x94" + entries(_modules=entries(again=b"h\x00")) + b"b"
    path.write_bytes(network(_modules=entries(again=inner)))
    with pytest.raises(UserError, match="nests networks more than 32 deep"):
        read_published(path)


def test_states_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for about, told in (
        (b"}", "NoneType for a network's state"),
        (b"N", "NoneType for what describes"),
        (entries(state=b"]"), "a list for a network's state"),
    ):
        path.write_bytes(START + called("torch_utils.persistence._reconstruct_persistent_obj", b"(" + about + b"t") + b".")
        with pytest.raises(UserError, match=told):
            read_published(path)


def test_a_spoilt_file_is_read_or_told(tmp_path: Path) -> None:
    """Bytes of a published file changed one at a time, all over it: a network or one line, never a traceback."""
    good = save_published(tmp_path / "a.pkl", Tiny(), random_arrays(Tiny())).read_bytes()
    path, lines = tmp_path / "b.pkl", []
    for k in range(100):
        spoilt = bytearray(good)
        place = (k * 7919) % 6000 if k % 2 else (k * 104_729) % len(good)
        spoilt[place] ^= 1 + k % 255
        path.write_bytes(spoilt)
        try:
            read_published(path)
        except UserError as error:
            lines.append(str(error))
    assert 10 < len(lines) < 100
    assert all(line.isprintable() for line in lines)
