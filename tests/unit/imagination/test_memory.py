import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.imagination.memory import TOLERANCE, RowLimits, is_out_of_memory
from tokenwm.imagination.pausing import Pausing, finish, without_pause


class Machine:
    """Memory for so many rows; counts attempts."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.done: list[int] = []
        self.failed: list[int] = []
        self.limits = RowLimits()

    def compute(self, rows: slice) -> list[int]:
        if rows.stop - rows.start > self.room:
            self.failed.append(rows.stop - rows.start)
            raise torch.OutOfMemoryError("out of memory")
        self.done.append(rows.stop - rows.start)
        return list(range(rows.start, rows.stop))

    def pausing(self, rows: slice) -> Pausing[list[int]]:
        return without_pause(lambda: self.compute(rows))

    def free(self) -> bool:
        return False

    def run(self, num_rows: int, kind: str = "kind", at_most: int = 10**9) -> None:
        """Every row is computed once, in order."""
        parts = finish(
            self.limits.in_parts(kind, "rows", num_rows, self.pausing, self.free, at_most)
        )
        assert [row for part in parts for row in part] == list(range(num_rows))


@given(room=st.integers(1, 600), num_rows=st.integers(1, 600), at_most=st.integers(1, 600))
def test_every_row_is_computed_once_whatever_fits(room: int, num_rows: int, at_most: int) -> None:
    machine = Machine(room)
    machine.run(num_rows, at_most=at_most)
    assert max(machine.done) <= min(room, at_most)
    assert len(machine.failed) <= 10


@given(
    room=st.integers(1, 60),
    num_groups=st.integers(1, 30),
    group=st.integers(1, 20),
    at_most=st.integers(1, 60),
)
def test_groups_stay_whole_as_long_as_one_fits(
    room: int, num_groups: int, group: int, at_most: int
) -> None:
    machine = Machine(room)
    num_rows = num_groups * group
    parts = machine.limits.in_parts(
        "kind", "rows", num_rows, machine.pausing, machine.free, at_most, group
    )
    assert [row for part in finish(parts) for row in part] == list(range(num_rows))
    assert max(machine.done) <= min(room, at_most)
    first = 0
    for count in machine.done:
        is_whole = first % group == 0 and count % group == 0
        assert is_whole or first // group == (first + count - 1) // group
        first += count
    if not machine.failed and group <= at_most:
        assert all(count % group == 0 for count in machine.done)


def test_the_largest_part_that_fits_is_found_and_used() -> None:
    machine = Machine(room=300)
    machine.run(4096)
    found = machine.limits.most_rows("kind")
    assert found is not None and 300 * (1 - 1 / TOLERANCE) - 1 <= found <= 300
    attempts = len(machine.failed)
    machine.done.clear()
    machine.run(4096)  # it remembers, and parts are equal
    assert len(machine.failed) == attempts
    assert max(machine.done) <= found and max(machine.done) - min(machine.done) <= 16
    assert len(machine.done) == -(-4096 // found)


def test_a_limit_holds_for_its_kind_and_until_it_is_forgotten() -> None:
    machine = Machine(room=10)
    machine.run(40, "long")
    assert machine.limits.most_rows("long") is not None
    assert machine.limits.most_rows("short") is None
    machine.room = 100
    machine.done.clear()
    machine.run(40, "short")
    assert machine.done == [40]
    machine.limits.forget()
    machine.run(40, "long")
    assert machine.done == [40, 40]


def test_with_less_memory_than_before_parts_become_smaller() -> None:
    machine = Machine(room=100)
    machine.run(400)
    machine.room = 10
    machine.run(400)
    found = machine.limits.most_rows("kind")
    assert found is not None and 8 <= found <= 10


def test_a_limit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(room=10)
    machine.run(40)
    machine.run(40)
    (record,) = caplog.records
    found = machine.limits.most_rows("kind")
    assert record.getMessage() == (
        f"40 rows do not fit into memory at once; they are done in parts of at most {found}"
    )


def test_what_is_only_held_is_freed_before_anything_is_split() -> None:
    class Holder(Machine):
        def free(self) -> bool:
            had_some, self.room = self.room == 0, 50
            return had_some

    machine = Holder(room=0)
    machine.run(50)
    assert (machine.failed, machine.done) == ([50], [50])
    assert machine.limits.most_rows("kind") is None


def test_a_row_that_does_not_fit_and_other_errors_are_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Machine(room=0).run(5)

    def fail(_: slice) -> Pausing[None]:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        finish(RowLimits().in_parts("kind", "rows", 5, fail, lambda: False, 5))


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_out_of_memory_is_recognised(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) == is_it
