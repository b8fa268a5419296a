"""LeRobot v3.0: every row gets its own picture, or the episode is left out with the reason."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.data.readers.numbered_videos import (
    FPS,
    LATE,
    SIZE,
    Film,
    Take,
    numbers_of,
    write_takes,
)
from tokenwm.data.recipes.recipe import Recipe, parse_recipe
from tokenwm.errors import EpisodeError

LENGTHS = (20, 15, 18)
STARTS = (0, 20, 35)
FRAMES = range(53)


def takes(shift: Sequence[float] = (0, 0, 0), stop: float = 0) -> list[Take]:
    """Three takes one after the other; their times are shifted, and their ends too."""
    return [
        Take(rows=rows, start=start + off, stop=start + off + rows + stop)
        for rows, start, off in zip(LENGTHS, STARTS, shift, strict=True)
    ]


def take(rows: int, start: float | None, stop: float | None = None, file: int | None = 0) -> Take:
    return Take(rows=rows, start=start, stop=stop, file=file)


@dataclass(kw_only=True)
class Case:
    """Episodes and films; ``shown`` is episode → number of its first picture, ``out`` why not."""

    name: str
    takes: list[Take]
    films: list[Film]
    shown: Mapping[int, int]
    out: Mapping[int, str] = field(default_factory=dict)


ALL = dict(enumerate(STARTS))
PLAIN = [Film(numbers=FRAMES)]
AT_TAKES = Film(numbers=FRAMES, keys=STARTS)


def lost(number: int, keys: Sequence[int] = ()) -> Film:
    """The film without one picture, at times without a hole, with key frames at pictures."""
    numbers = [n for n in FRAMES if n != number]
    return Film(numbers=numbers, keys=[numbers.index(key) for key in keys])


CASES = [
    Case(name="as written", takes=takes(), films=PLAIN, shown=ALL),
    Case(name="ends inclusive", takes=takes(stop=-1), films=PLAIN, shown=ALL),
    Case(
        name="late, reordered", takes=takes(), films=[Film(numbers=FRAMES, **LATE)], shown=ALL
    ),  # fmt: skip
    Case(
        name="late by an empty edit",
        takes=takes(),
        films=[Film(numbers=FRAMES, ticks=[n + 3 for n in FRAMES])],
        shown=ALL,
    ),
    Case(
        name="late, and times say so",
        takes=takes((3, 3, 3)),
        films=[Film(numbers=FRAMES, ticks=[n + 3 for n in FRAMES])],
        shown=ALL,
    ),
    Case(name="drift up", takes=takes((0, 0.75, 1.5)), films=PLAIN, shown=ALL),
    Case(name="drift down", takes=takes((0, -0.6, -1.3)), films=PLAIN, shown=ALL),
    Case(name="drift of a whole frame", takes=takes((0, 0.5, 1.0)), films=PLAIN, shown=ALL),
    Case(
        name="drift, inclusive and late",
        takes=takes((0, 0.7, 1.4), stop=-1),
        films=[Film(numbers=FRAMES, **LATE)],
        shown=ALL,
    ),
    Case(
        name="two files",
        takes=[*takes(), take(10, 0, file=1), take(12, 10, file=1)],
        films=[*PLAIN, Film(numbers=range(100, 122))],
        shown={**ALL, 3: 100, 4: 110},
    ),
    Case(
        name="times that run on over files",
        takes=[*takes(), take(10, 53, file=1), take(12, 63, file=1)],
        films=[*PLAIN, Film(numbers=range(100, 122))],
        shown={**ALL, 3: 100, 4: 110},
    ),
    Case(
        name="files that reach over the episodes' order",
        takes=[take(10, 12), take(12, 0)],
        films=[Film(numbers=range(22))],
        shown={0: 12, 1: 0},
    ),
    # A take that was thrown away: the clip times decide.
    Case(
        name="discarded first",
        takes=takes((25, 25, 25)),
        films=[Film(numbers=[*range(1000, 1025), *FRAMES])],
        shown=ALL,
    ),
    Case(
        name="discarded between",
        takes=takes((0, 25, 25)),
        films=[Film(numbers=[*range(20), *range(1000, 1025), *range(20, 53)])],
        shown=ALL,
    ),
    Case(
        name="discarded last",
        takes=takes(),
        films=[Film(numbers=[*FRAMES, *range(1000, 1025)])],
        shown=ALL,
    ),
    Case(
        name="one discarded between, ends inclusive",
        takes=takes((0, 1, 1), stop=-1),
        films=[Film(numbers=[*range(20), 1000, *range(20, 53)])],
        shown=ALL,
    ),
    Case(
        name="discarded last, late and reordered",
        takes=takes(),
        films=[Film(numbers=[*FRAMES, *range(1000, 1025)], **LATE)],
        shown=ALL,
    ),
    Case(
        name="discarded last, late by an empty edit",
        takes=takes(),
        films=[Film(numbers=[*FRAMES, *range(1000, 1025)], ticks=[n + 3 for n in range(78)])],
        shown={},
        out=dict.fromkeys(range(3), "its first picture is shown at 0.1 s: which belong"),
    ),
    Case(
        name="discarded between, with drift",
        takes=takes((0, 25.4, 26.0)),
        films=[Film(numbers=[*range(20), *range(1000, 1025), *range(20, 53)])],
        shown={},
        out=dict.fromkeys(range(3), "clip of episode 1 does not begin and end with a picture"),
    ),
    # As many frames as rows, yet times point at other frames: something was lost and something is
    # too much.
    Case(
        name="lost and discarded, the same number",
        takes=takes((0, 5, 5)),
        films=[Film(numbers=[*range(20), *range(1000, 1005), *range(20, 48)])],
        shown={0: 0},
        out={1: "begins with frame 25, but", 2: "begins with frame 40, but"},
    ),
    Case(
        name="lost and discarded, one each",
        takes=takes((0, 1, 1)),
        films=[Film(numbers=[*range(20), 1000, *range(20, 52)])],
        shown={0: 0},
        out={1: "begins with frame 21, but", 2: "begins with frame 36, but"},
    ),
    # One frame missing, and nothing says where.
    *(
        Case(
            name=f"picture {number} lost",
            takes=takes(),
            films=[lost(number)],
            shown={},
            out=dict.fromkeys(range(3), "holds 52 frames for 53 rows of 3 episode"),
        )
        for number in (0, 7, 30, 51)
    ),
    Case(
        name="picture 7 lost, key frames say in which episode",
        takes=takes(),
        films=[lost(7, keys=(0, 20, 35))],
        shown={},
        out=dict.fromkeys(range(3), "holds 52 frames for 53 rows"),
    ),
    Case(
        name="picture 30 lost, key frames",
        takes=takes(),
        films=[lost(30, keys=(0, 20, 35))],
        shown={0: 0},
        out=dict.fromkeys((1, 2), "too few"),
    ),
    Case(
        name="last picture lost, key frames",
        takes=takes(),
        films=[lost(52, keys=(0, 20, 35))],
        shown={0: 0, 1: 20},
        out={2: "is truncated or incomplete, it holds 17 frames and the table 18"},
    ),
    Case(
        name="picture 25 lost, and its time is a hole",
        takes=takes(),
        films=[
            Film(
                numbers=[n for n in FRAMES if n != 25],
                ticks=[n for n in FRAMES if n != 25],
            )
        ],
        shown={0: 0, 2: 35},
        out={1: "it holds 14 frames and the table 15 rows"},
    ),
    Case(
        name="a picture twice",
        takes=takes(),
        films=[Film(numbers=[*range(8), *range(7, 53)])],
        shown={},
        out=dict.fromkeys(range(3), "too many"),
    ),
    Case(
        name="one file for one take, one frame short",
        takes=[take(20, 0), take(15, 0, file=1)],
        films=[Film(numbers=range(19)), Film(numbers=range(20, 35))],
        shown={1: 20},
        out={0: "it holds 19 frames and the table 20 rows"},
    ),
    Case(
        name="rows deleted",
        takes=[take(20, 0), take(11, 20, 35), take(18, 35)],
        films=PLAIN,
        shown={0: 0, 2: 35},
        out={1: "15 frames, and the table has 11 rows"},
    ),
    Case(
        name="behind the end",
        takes=[take(20, 0), take(15, 20), take(18, 80)],
        films=PLAIN,
        shown={0: 0, 1: 20},
        out={2: "no picture is shown at 2.66667 s"},
    ),
    Case(
        name="overlapping",
        takes=[take(20, 0), take(15, 15), take(18, 35)],
        films=PLAIN,
        shown={2: 35},
        out={0: "overlaps that of episode 1", 1: "overlaps that of episode 0"},
    ),
    # Times that are not there.
    Case(
        name="null",
        takes=[take(20, 0), take(15, None), take(18, 35)],
        films=PLAIN,
        shown={0: 0, 2: 35},
        out={1: "no clip times are given"},
    ),
    Case(
        name="NaN and late",
        takes=[take(20, 0), take(15, math.nan), take(18, 35)],
        films=[Film(numbers=FRAMES, **LATE)],
        shown={0: 0, 2: 35},
        out={1: "no clip times are given"},
    ),
    Case(
        name="null, no file",
        takes=[take(20, 0), take(15, None, file=None), take(18, 20)],
        films=[Film(numbers=[*range(20), *range(35, 53)])],
        shown={0: 0, 2: 35},
        out={1: "names no video"},
    ),
    Case(
        name="one beyond all",
        takes=[take(20, 0), take(15, 1e300, 2e300), take(18, 35)],
        films=PLAIN,
        shown={0: 0, 2: 35},
        out={1: "its clip is from"},
    ),
    Case(
        name="empty",
        takes=[take(20, 0), take(15, 20, 20), take(18, 35)],
        films=PLAIN,
        shown={0: 0, 2: 35},
        out={1: "which is empty"},
    ),
    Case(
        name="empty, and its frames are not there",
        takes=[take(20, 0), take(15, 20, 20), take(18, 20)],
        films=[Film(numbers=[*range(20), *range(35, 53)])],
        shown={0: 0, 2: 35},
        out={1: "which is empty"},
    ),
    Case(
        name="negative and infinite",
        takes=[take(20, -5, 15), take(15, 20), take(18, 35, math.inf)],
        films=PLAIN,
        shown={1: 20},
        out=dict.fromkeys((0, 2), "which no clip can be"),
    ),
    Case(
        name="another rate than info.json says",
        takes=takes(),
        films=[Film(numbers=FRAMES, fps=15)],
        shown={},
        out=dict.fromkeys(range(3), "it shows 15 pictures a second"),
    ),
]


def recipe(folder: Path, **quality: int) -> Recipe:
    values = {
        "name": "a",
        "source": {"type": "lerobot", "path": str(folder)},
        "control_rate": FPS,
        "image_size": [SIZE, SIZE],
        "quality": quality,
    }
    return parse_recipe(values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_shows_its_own_picture(tmp_path: Path, case: Case) -> None:
    write_takes(tmp_path / "a", case.takes, case.films)
    source = recipe(tmp_path / "a").open_source()
    shown, out = {}, {}
    for ref in source.episodes():
        try:
            shown[ref.index] = numbers_of(source.load(ref).frames["top"])
        except EpisodeError as error:
            out[ref.index] = str(error)
    assert shown == {
        index: list(range(first, first + case.takes[index].rows))
        for index, first in case.shown.items()
    }
    assert out.keys() == case.out.keys()
    for index, reason in case.out.items():
        assert reason in out[index]
        assert f"episode_{index:06d}" in out[index]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_rows_without_a_picture_are_dropped_only_if_the_recipe_says_so(
    tmp_path: Path, allowed: int
) -> None:
    films = [Film(numbers=range(18)), Film(numbers=range(100, 114)), Film(numbers=range(200, 218))]
    write_takes(tmp_path / "a", [take(20, 0), take(15, 0, file=1), take(18, 0, file=2)], films)
    source = recipe(tmp_path / "a", allow_short_video=allowed).open_source()
    episodes = {}
    for ref in source.episodes():
        try:
            episodes[ref.index] = source.load(ref)
        except EpisodeError as error:
            missing = {0: 2, 1: 1}[ref.index]
            assert f"or drop the last rows: quality.allow_short_video: {missing}" in str(error)
            assert "file-00" in str(error)
    assert sorted(episodes) == [[2], [1, 2], [0, 1, 2]][allowed]
    for index, episode in episodes.items():
        rows = (18, 14, 18)[index]
        assert episode.num_steps == rows
        assert numbers_of(episode.frames["top"]) == list(range(100 * index, 100 * index + rows))
        steps = np.arange(rows)
        np.testing.assert_allclose(episode.state[:, 0], steps + 0.5 * index)
        np.testing.assert_allclose(episode.action[:-1, 0], np.sin(steps + index)[:-1], rtol=1e-6)
        assert episode.metadata.get("rows_without_picture", 0) == (2, 1, 0)[index]


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        (pyarrow.string(), lambda seconds: f"{seconds:.6f}"),
        (pyarrow.decimal128(12, 6), lambda seconds: Decimal(f"{seconds:.6f}")),
        (pyarrow.float32(), float),
        (pyarrow.list_(pyarrow.float64()), lambda seconds: [seconds]),
        (pyarrow.duration("us"), lambda seconds: round(seconds * 1e6)),
    ],
    ids=["text", "decimal", "float32", "list", "duration"],
)
def test_times_of_any_type(
    tmp_path: Path, kind: pyarrow.DataType, convert: Callable[[float], Any]
) -> None:
    write_takes(tmp_path, takes(), PLAIN)
    (path,) = (tmp_path / "meta").rglob("*.parquet")
    table = pyarrow.parquet.read_table(path)
    for place, name in enumerate(table.column_names):
        if name.endswith("_timestamp"):
            times = [convert(seconds) for seconds in table.column(name).to_pylist()]
            table = table.set_column(place, name, pyarrow.array(times, kind))
    pyarrow.parquet.write_table(table, path)
    source = recipe(tmp_path).open_source()
    for ref, start, rows in zip(source.episodes(), STARTS, LENGTHS, strict=True):
        shown = numbers_of(source.load(ref).frames["top"])
        assert shown == list(range(start, start + rows))
