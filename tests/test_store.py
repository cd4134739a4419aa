"""The directory of a run: whole files or none, one writer, and one line for whatever the disk or another hand did to it."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffprobe.errors import UserError
from diffprobe.files import explained
from diffprobe.probes.base import canonical, key
from diffprobe.runs.store import Store
from tests.small import Division, Number, Sum, gaussian

CELL = Number(3.0)
DRAWN = Number(2.0, picture="a picture")


def kept(store: Store, cell: Number = CELL) -> Path:
    """Measure a cell into the store; returns its file."""
    store.put("p", cell, cell.measure(gaussian()))
    return store.path / "cells" / "p" / f"{key(cell)}.parquet"


def refusal(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written = store.put("p", CELL, CELL.measure(gaussian()))
    assert store.get("p", CELL).equals(written, check_metadata=True)
    assert written["value"].to_pylist() == [3.0, 9.0]
    assert store.done("p") == {key(CELL)}
    assert store.has("p", key(CELL))
    assert not store.has("p", key(DRAWN))
    assert store.done("another") == set()


def test_a_record_says_which_cell_it_is_of(tmp_path: Path) -> None:
    metadata = pq.read_schema(kept(Store(tmp_path))).metadata
    assert metadata[b"class"] == b"Number"
    assert metadata[b"cell"].decode() == canonical(CELL)


def test_the_key_is_of_the_class_the_version_and_the_fields() -> None:
    assert key(Number(3.0)) == key(CELL)
    assert len({key(cell) for cell in (CELL, Number(4.0), DRAWN, Sum((CELL,)), Sum((CELL, DRAWN)), Division(3.0, "", ""))}) == 6
    assert json.loads(canonical(Sum((CELL,))))["of"] == [{"key": key(CELL)}]


def test_pictures_are_kept_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = store.put("p", DRAWN, DRAWN.measure(gaussian()))
    name = f"{key(DRAWN)}/0000.webp"
    assert table["picture"].to_pylist() == [name, None]
    assert (tmp_path / "media" / name).read_bytes() == b"a picture"
    assert [path.name for path in (tmp_path / "media" / key(DRAWN)).iterdir()] == ["0000.webp"]


def test_records_are_by_class_in_the_order_asked_with_their_cells_and_rows(tmp_path: Path) -> None:
    store, total = Store(tmp_path), Sum((CELL, DRAWN))
    kept(store), kept(store, DRAWN)
    store.put("p", total, total.measure(gaussian(), store.get("p", CELL), store.get("p", DRAWN)))
    records = store.records("p", [key(DRAWN), key(CELL), key(total), key(Number(99.0))])
    assert records["Number"]["value"].to_pylist() == [2.0, 4.0, 3.0, 9.0]
    assert records["Number"]["cell"].to_pylist() == [key(DRAWN)] * 2 + [key(CELL)] * 2
    assert records["Number"]["row"].to_pylist() == [0, 1, 0, 1]
    assert records["Sum"]["sum"].to_pylist() == [5.0]
    assert store.records("p", [key(CELL)]).keys() == {"Number"}


def test_a_folder_named_like_a_setting_adds_no_column(tmp_path: Path) -> None:
    store = Store(tmp_path / "strength=0.3")
    kept(store)
    assert store.get("p", CELL).column_names == ["value", "picture"]


def test_nothing_half_written_counts_and_it_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    target = kept(store)
    for name in (target.with_name("0123.parquet.partial"), tmp_path / "media" / "a" / "0000.webp.partial", tmp_path / "run.json.partial"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(target.read_bytes()[:100])
    assert store.done("p") == {key(CELL)}
    assert store.identity() is None
    (tmp_path / "run.json").write_text(run_json())
    with store.writing():
        assert not list(tmp_path.rglob("*.partial"))
    assert store.done("p") == {key(CELL)}


def test_a_file_that_cannot_be_finished_leaves_no_trace_and_the_old_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json("summary.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("summary.json", {"a": float("nan")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "bare"])
def test_a_damaged_record_is_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    target = kept(store)
    if damage == "bare":
        pq.write_table(pa.table({"value": [1.0]}), target)
    else:
        target.write_bytes({"cut": target.read_bytes()[:-20], "empty": b"", "text": b"no parquet"}[damage])
    with pytest.raises(UserError, match="is damaged: delete it and run the same command again") as caught:
        store.records("p", [key(CELL)])
    assert str(target) in refusal(caught)


def run_json(**changes: object) -> str:
    whole = {"schema": 1, "model": {}, "embedders": {}, "probes": [], "versions": {}, "machine": "", "created": ""}
    return json.dumps({**whole, **changes})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (run_json()[:-9], "is damaged"),
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("\udcff", "is damaged"),
        ('{"schema": 1}', r"is damaged \(no created, embedders"),
        (run_json(schema=2), "another version of diffprobe"),
        ("{}", "another version of diffprobe"),
    ],
)
def test_a_damaged_run_json_is_one_line(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "run.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=told) as caught:
        Store(tmp_path).identity()
    assert str(tmp_path / "run.json") in refusal(caught)


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_missing_or_damaged_plan_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json.*run the same command again") as caught:
        Store(tmp_path).plan()
    refusal(caught)


def test_a_damaged_failure_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "abc.json").write_text("{")
    with pytest.raises(UserError, match=r"abc\.json is damaged .*: delete it") as caught:
        Store(tmp_path).failures()
    refusal(caught)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The lock of a process that is killed goes with it."""
    holder = (
        "import fcntl, sys\nlock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    )
    store = Store(tmp_path)
    with store.writing():
        pass
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running in") as caught, store.writing():
            pass
        refusal(caught)
        process.kill()
    with store.writing():
        pass


@pytest.mark.parametrize("stranger", ["notes", "holiday.jpg", "cells/p/0.parquet", "deep/download.partial"])
def test_a_directory_that_is_no_runs_is_refused_and_left_as_it_is(tmp_path: Path, stranger: str) -> None:
    file = tmp_path / stranger
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run: choose another --out") as caught, Store(tmp_path).writing():
        pass
    refusal(caught)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


def test_what_a_run_left_that_was_stopped_at_once_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("lock", "plan.json", "run.json.partial"):
        (tmp_path / name).touch()
    with Store(tmp_path).writing():
        assert not (tmp_path / "run.json.partial").exists()


def test_a_path_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="a file of that name is in the way: choose another --out") as caught, Store(path).writing():
            pass
        refusal(caught)
        assert caught.value.exit_code == 4


def test_a_full_disk_is_one_line_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    """`/dev/full` refuses as a full disk does; it stands where the file would be written."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    store = Store(tmp_path)
    before = kept(store).read_bytes()
    (tmp_path / "cells" / "p" / f"{key(DRAWN)}.parquet.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full: free some space, then run the same command again") as caught:
        kept(store, DRAWN)
    refusal(caught)
    assert caught.value.exit_code == 4
    assert not store.has("p", key(DRAWN))
    assert not list(tmp_path.rglob("*.partial"))
    assert kept(store).read_bytes() == before
    kept(store, DRAWN)
    assert store.done("p") == {key(CELL), key(DRAWN)}


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_files_is_one_line(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Number(1.0, picture="x" * 5000)
    with pytest.raises(UserError, match="larger than allowed here: raise the limit") as caught, file_limit(2000):
        kept(store, cell)
    refusal(caught)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.rglob("*.*"))


@pytest.fixture
def readonly(tmp_path: Path) -> Iterator[Path]:
    """A directory that even root cannot write to, where one can be had."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o500)
    if not os.access(folder, os.W_OK):
        yield folder
        return
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("root may write anywhere, and cannot mount a read-only file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_directory_is_one_line(readonly: Path) -> None:
    for path in (readonly, readonly / "run"):
        with pytest.raises(UserError, match=r"read-only|no permission") as caught, Store(path).writing():
            pass
        assert "choose another --out" in refusal(caught)
        assert caught.value.exit_code == 4


def test_a_refusal_that_nobody_foresaw_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write to .*: Stale file handle: choose another --out"), explained(tmp_path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_a_failure_is_kept_with_its_cell_until_the_cell_is_measured(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fail("p", CELL, "it broke")
    assert store.failures() == {key(CELL): {"probe": "p", "class": "Number", "cell": json.loads(canonical(CELL)), "error": "it broke"}}
    kept(store)
    assert store.failures() == {}
