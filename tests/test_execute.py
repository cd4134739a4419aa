"""Measuring a plan: inputs first, each cell once, failures kept apart, and the same records in any order, batch and process."""

import multiprocessing
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from diffprobe.errors import UserError
from diffprobe.model import Rig
from diffprobe.probes.base import Cell, Findings, Records, key
from diffprobe.probes.drift import Drift
from diffprobe.runs.execute import Progress, Step, execute, plan, remaining
from diffprobe.runs.store import Store
from tests.small import After, Division, Number, Sum, gaussian, silent, small_drift

ONE, TWO, THREE = Number(1.0), Number(2.0), Number(3.0)


@dataclass(frozen=True)
class Listed(Drift):
    """A probe that plans the cells it is given."""

    name: ClassVar[str] = "listed"
    cells: tuple[Cell, ...] = ()

    def plan(self) -> Iterable[Cell]:  # type: ignore[override]
        return self.cells

    def summarise(self, records: Records) -> Findings:
        return Findings(())


def steps(*cells: Cell) -> list[Step]:
    return plan([Listed(cells=cells)])


def measured(path: Path, rig: Rig, todo: list[Step]) -> Store:
    store = Store(path)
    execute(todo, store, rig, silent)
    return store


def test_inputs_come_before_their_users_and_each_cell_once() -> None:
    found = [step.cell for step in steps(Sum((ONE, TWO)), TWO, Sum((TWO, THREE)), ONE, Sum((ONE, TWO)))]
    assert found == [ONE, TWO, Sum((ONE, TWO)), THREE, Sum((TWO, THREE))]


def test_each_probe_has_its_own_cells() -> None:
    @dataclass(frozen=True)
    class Other(Listed):
        name: ClassVar[str] = "other"

    found = plan([Listed(cells=(ONE,)), Other(cells=(ONE, TWO))])
    assert [(step.probe, step.cell) for step in found] == [("listed", ONE), ("other", ONE), ("other", TWO)]


def test_a_cell_that_two_probes_want_is_measured_once(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Other(Listed):
        name: ClassVar[str] = "other"

    (tmp_path / "divisor").write_text("2")
    half = Division(1.0, str(tmp_path / "divisor"), str(tmp_path / "marks"))
    both = plan([Listed(cells=(half,)), Other(cells=(half, After(half)))])
    store = measured(tmp_path / "run", gaussian(), both)
    assert (tmp_path / "marks").read_text() == "1.0\n"
    assert store.get("listed", half).equals(store.get("other", half))
    assert store.get("other", After(half))["value"].to_pylist() == [0.5]
    assert not remaining(both, store)


def test_what_is_measured_once_is_not_measured_again(tmp_path: Path) -> None:
    """Resuming is planned minus present; the store alone knows."""
    (tmp_path / "one").write_text("1")
    cells = [Division(float(value), str(tmp_path / "one"), str(tmp_path / "marks")) for value in range(4)]
    store = measured(tmp_path / "run", gaussian(), steps(*cells[:2]))
    assert [step.cell for step in remaining(steps(*cells), store)] == cells[2:]
    execute(steps(*reversed(cells)), Store(tmp_path / "run"), gaussian(), silent)
    assert (tmp_path / "marks").read_text().split() == ["0.0", "1.0", "3.0", "2.0"]
    assert not remaining(steps(*cells), store)


def test_a_failure_is_kept_apart_the_run_goes_on_and_the_next_one_mends_it(tmp_path: Path) -> None:
    file, marks = tmp_path / "divisor", str(tmp_path / "marks")
    file.write_text("0")
    broken = Division(1.0, str(file), marks)
    todo = steps(After(broken), Sum((ONE, TWO)))
    store = measured(tmp_path / "run", gaussian(), todo)
    assert store.done("listed") == {key(cell) for cell in (ONE, TWO, Sum((ONE, TWO)))}
    failures = store.failures()
    assert failures.keys() == {key(broken), key(After(broken))}
    assert failures[key(broken)]["error"].startswith("Traceback")
    assert failures[key(broken)]["error"].endswith("ZeroDivisionError: float division by zero")
    assert failures[key(broken)]["class"] == "Division"
    assert failures[key(After(broken))]["error"] == f"its input Division {key(broken)} failed"

    file.write_text("2")
    execute(todo, store, gaussian(), silent)
    assert store.failures() == {}
    assert store.get("listed", After(broken))["value"].to_pylist() == [0.5]


def test_a_users_error_is_kept_as_its_line(tmp_path: Path) -> None:
    store = measured(tmp_path / "run", gaussian(), steps(Refused()))
    assert [failure["error"] for failure in store.failures().values()] == ["no caption: add one"]


def test_a_damaged_input_fails_its_users_alone(tmp_path: Path) -> None:
    store = measured(tmp_path, gaussian(), steps(ONE, TWO))
    damaged = tmp_path / "cells" / "listed" / f"{key(ONE)}.parquet"
    damaged.write_bytes(b"")
    execute(steps(Sum((ONE,)), Sum((TWO,))), store, gaussian(), silent)
    assert store.has("listed", key(Sum((TWO,))))
    assert f"{damaged} is damaged: delete it" in store.failures()[key(Sum((ONE,)))]["error"]
    damaged.unlink()
    execute(steps(Sum((ONE,)), Sum((TWO,))), store, gaussian(), silent)
    assert not store.failures()


def test_ctrl_c_ends_the_run_and_keeps_what_was_measured(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, gaussian(), steps(ONE, Interrupted(), TWO))
    assert Store(tmp_path).done("listed") == {key(ONE)}
    assert not Store(tmp_path).failures()


def test_progress_is_told_before_each_cell_and_at_the_end(tmp_path: Path) -> None:
    told: list[Progress] = []
    execute(steps(ONE, Refused(), TWO), Store(tmp_path), gaussian(), told.append)
    assert [(state.done, state.planned, state.failed) for state in told] == [(0, 3, 0), (1, 3, 0), (2, 3, 1), (3, 3, 1)]
    execute(steps(ONE, TWO), Store(tmp_path), gaussian(), told.append)
    assert told[-1].planned == 0


@dataclass(frozen=True)
class Refused(Number):
    """Cannot be measured, for a reason that the user can mend."""

    value: float = 0.0

    def measure(self, rig: Rig) -> pa.Table:
        raise UserError("no caption: add one")


@dataclass(frozen=True)
class Interrupted(Number):
    """Ctrl-C, as Python raises it."""

    value: float = 0.0

    def measure(self, rig: Rig) -> pa.Table:
        raise KeyboardInterrupt


DRIFT = small_drift(count=20, guidance_scale=(1.0, 5.0))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The records of a drift study, by the cell's key, at batches of 16."""
    return drift_records(tmp_path_factory.mktemp("reference"), gaussian(), plan([DRIFT]))


def drift_records(path: Path, rig: Rig, todo: list[Step]) -> dict[str, pa.Table]:
    store = measured(path, rig, todo)
    assert not store.failures()
    return {step.key: store.get("drift", step.cell) for step in todo}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_changes_no_number(tmp_path: Path, reference: dict[str, pa.Table], batch_size: int) -> None:
    found = drift_records(tmp_path, gaussian(batch_size), plan([DRIFT]))
    assert found.keys() == reference.keys()
    for identity, table in reference.items():
        close(found[identity], table)


def close(found: pa.Table, expected: pa.Table) -> None:
    """Equal columns; numbers to 1e-5 of their size."""
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        if not pa.types.is_fixed_size_list(expected.schema.field(name).type) and not pa.types.is_floating(expected.schema.field(name).type):
            assert found[name].equals(expected[name]), name
            continue
        pairs = zip(*(table[name].combine_chunks() for table in (found, expected)), strict=True)
        for one, other in pairs:
            assert one.as_py() == pytest.approx(other.as_py(), rel=1e-5, abs=1e-5), name


def test_the_order_of_the_cells_changes_no_bit(tmp_path: Path, reference: dict[str, pa.Table]) -> None:
    """Backwards, as far as inputs allow, and with nothing left over from a neighbour."""
    todo = plan([DRIFT])
    first = [step for step in todo if not step.cell.inputs()]
    backwards = first[::-1] + [step for step in todo[::-1] if step.cell.inputs()]
    found = drift_records(tmp_path, gaussian(), backwards)
    assert all(found[identity].equals(table) for identity, table in reference.items())


def test_a_cell_travels_to_another_process_and_measures_the_same_there(reference: dict[str, pa.Table]) -> None:
    step = next(step for step in plan([DRIFT]) if not step.cell.inputs())
    copy = pickle.loads(pickle.dumps(step.cell))
    assert copy == step.cell
    assert hash(copy) == hash(step.cell)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        identity, table = pool.apply(elsewhere, (step.cell,))
    assert identity == step.key
    kept = [name for name in table.column_names if name != "picture"]  # in the store a path, here the picture itself
    assert table.select(kept).equals(reference[identity].select(kept).replace_schema_metadata())


def elsewhere(cell: Cell) -> tuple[str, pa.Table]:
    return key(cell), cell.measure(gaussian())
