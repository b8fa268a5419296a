"""Figures over the train split, gathered part by part in bounded memory, then merged.

Each part (one shard) gathers its own figures; parts are merged in the order of the plan, so the
result does not depend on which process made which part. Between processes a part travels as plain
arrays: ``to_arrays`` there, ``merge`` here.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode

NUM_QUANTILES = 1001
"""Evenly spaced quantiles kept per dimension, from 0 (minimum) to 1 (maximum)."""
MAX_ROWS = 100_000
"""Rows kept to compute quantiles from; exact up to here, beyond it a uniform sample."""

Arrays = dict[str, NDArray[Any]]


class ContinuousStatistics:
    """Minimum, maximum, mean, standard deviation and quantiles of each dimension.

    Every row gets a random priority, a function of the part's name and the row's place in it; the
    ``max_rows`` rows with the lowest ones are kept. That is a uniform sample without replacement,
    and the lowest of the union are the lowest of the lowest: parts can be merged in any grouping.

    Args:
        part: Name of the part, unique among those that are merged.
        max_rows: Most rows to hold in memory.
    """

    def __init__(self, part: str = "", max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self.count = 0
        self._mean = self._squares = np.zeros(0)  # squares: sum of squared deviations
        self._low = self._high = np.zeros(0)
        self._kept: list[NDArray[np.float32]] = []
        self._priorities: list[NDArray[np.uint64]] = []
        self._num_kept = 0
        self._stream = np.random.PCG64(int.from_bytes(hashlib.sha256(part.encode()).digest()))

    def add(self, values: NDArray[Any]) -> None:
        """Add rows ``(N, dimensions)``."""
        if not len(values):
            return
        rows = values.astype(np.float64)
        mean = rows.mean(axis=0)
        squares = ((rows - mean) ** 2).sum(axis=0)
        self._merge_moments(len(rows), mean, squares, rows.min(axis=0), rows.max(axis=0))
        self._keep(values.astype(np.float32), self._stream.random_raw(len(values)))

    def merge(self, arrays: Arrays) -> None:
        """Add what another part has gathered."""
        if int(arrays["count"]):
            self._merge_moments(int(arrays["count"]), *arrays["moments"])
            self._keep(arrays["rows"], arrays["priorities"])

    def result(self) -> dict[str, Any]:
        """JSON values: one number per dimension, quantiles ``(dimensions, NUM_QUANTILES)``."""
        if not self.count:
            return {"count": 0}
        self._thin()
        levels = np.linspace(0.0, 1.0, NUM_QUANTILES)
        quantiles = np.quantile(self._kept[0], levels, axis=0).T
        # A sample may have lost the extremes; bins between quantiles must not.
        quantiles[:, 0], quantiles[:, -1] = self._low, self._high
        return {
            "count": self.count,
            "min": self._low.tolist(),
            "max": self._high.tolist(),
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._squares / self.count).tolist(),
            # Nine digits hold a float32 exactly; more would only make the manifest longer.
            "quantiles": [[float(f"{value:.9g}") for value in row] for row in quantiles.tolist()],
        }

    def to_arrays(self) -> Arrays:
        """Everything gathered so far."""
        self._thin()
        moments = np.stack([self._mean, self._squares, self._low, self._high])
        arrays: Arrays = {"count": np.array(self.count), "moments": moments}
        if self.count:
            arrays |= {"rows": self._kept[0], "priorities": self._priorities[0]}
        return arrays

    def _merge_moments(
        self,
        count: int,
        mean: NDArray[np.float64],
        squares: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> None:
        if not self.count:
            self._mean, self._squares, self._low, self._high = mean, squares, low, high
        else:
            # Chan, Golub and LeVeque (1983): merging two groups without losing digits.
            total = self.count + count
            shift = mean - self._mean
            self._squares = self._squares + squares + shift**2 * self.count * count / total
            self._mean = self._mean + shift * count / total
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.count += count

    def _keep(self, rows: NDArray[np.float32], priorities: NDArray[np.uint64]) -> None:
        self._kept.append(rows)
        self._priorities.append(priorities)
        self._num_kept += len(rows)
        if self._num_kept > 1.5 * self.max_rows:
            self._thin()

    def _thin(self) -> None:
        """Keep the rows with the lowest priorities, in one array and sorted by them."""
        if not self._kept:
            return
        rows, priorities = np.concatenate(self._kept), np.concatenate(self._priorities)
        order = np.argsort(priorities, kind="stable")[: self.max_rows]
        self._kept, self._priorities = [rows[order]], [priorities[order]]
        self._num_kept = len(order)


class DiscreteStatistics:
    """Counts of each id in each dimension."""

    def __init__(self) -> None:
        self.counts = np.zeros((0, 0), dtype=np.int64)  # (dimensions, ids)

    def add(self, ids: NDArray[Any]) -> None:
        """Add rows ``(N, dimensions)`` of ids, each ``>= 0``."""
        if len(ids):
            size = int(ids.max()) + 1
            self._add_counts(np.stack([np.bincount(column, minlength=size) for column in ids.T]))

    def merge(self, arrays: Arrays) -> None:
        """Add what another part has gathered."""
        self._add_counts(arrays["counts"])

    def result(self) -> dict[str, Any]:
        """JSON values; ``counts`` has an entry per id, for several dimensions a list of them."""
        counts = self.counts.tolist()
        num_rows = int(self.counts[:1].sum())
        return {"count": num_rows, "counts": counts[0] if len(counts) == 1 else counts}

    def to_arrays(self) -> Arrays:
        """Everything gathered so far."""
        return {"counts": self.counts}

    def _add_counts(self, counts: NDArray[np.int64]) -> None:
        rows, columns = np.maximum(self.counts.shape, counts.shape)
        total = np.zeros((rows, columns), dtype=np.int64)
        for part in (self.counts, counts):
            total[: part.shape[0], : part.shape[1]] += part
        self.counts = total


class MeanFrame:
    """The mean picture of one camera; sums are whole numbers, so no order can change them."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.int64] | None = None

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Add frames ``(N, H, W, 3)``."""
        self._add_sum(len(frames), frames.sum(axis=0, dtype=np.int64))

    def merge(self, arrays: Arrays) -> None:
        """Add what another part has gathered."""
        self._add_sum(int(arrays["count"]), arrays["sum"])

    def result(self) -> NDArray[np.float32]:
        """``(H, W, 3)`` float32 in [0, 255]."""
        assert self._sum is not None
        return (self._sum / self.count).astype(np.float32)

    def to_arrays(self) -> Arrays:
        """Everything gathered so far."""
        assert self._sum is not None
        return {"count": np.array(self.count), "sum": self._sum}

    def _add_sum(self, count: int, total: NDArray[np.int64]) -> None:
        self._sum = total if self._sum is None else self._sum + total
        self.count += count


class EpisodeFigures:
    """Figures of the train episodes: of their actions, states, rewards and pictures.

    Args:
        part: Name of the part, unique among those that are merged.
    """

    def __init__(self, part: str = "") -> None:
        self.numbers: dict[str, ContinuousStatistics | DiscreteStatistics] = {}
        self.mean_frames: dict[str, MeanFrame] = {}
        self._part = part

    def add(self, episode: Episode) -> None:
        """Add an episode; actions that are not valid do not count."""
        values: dict[str, NDArray[Any]] = {"action": episode.action[:-1]}
        if episode.state is not None:
            values["state"] = episode.state
        if episode.task_state is not None:
            values["task_state"] = episode.task_state
        if episode.reward is not None:
            values["reward"] = episode.reward[:-1, None]
        for name, rows in values.items():
            self._numbers(name, discrete=np.issubdtype(rows.dtype, np.integer)).add(rows)
        for camera, frames in episode.frames.items():
            self.mean_frames.setdefault(camera, MeanFrame()).add(frames)

    def to_arrays(self) -> Arrays:
        """Everything gathered so far, each name behind that of its field and a colon."""
        figures = {**self.numbers, **{f"frames.{k}": v for k, v in self.mean_frames.items()}}
        return {
            f"{field}:{name}": array
            for field, of_field in figures.items()
            for name, array in of_field.to_arrays().items()
        }

    def merge(self, arrays: Arrays) -> None:
        """Add what another part has gathered."""
        fields: dict[str, Arrays] = {}
        for name, array in arrays.items():
            field, _, rest = name.partition(":")
            fields.setdefault(field, {})[rest] = array
        for field, of_field in fields.items():
            if field.startswith("frames."):
                camera = field.removeprefix("frames.")
                self.mean_frames.setdefault(camera, MeanFrame()).merge(of_field)
            else:
                self._numbers(field, discrete="counts" in of_field).merge(of_field)

    def _numbers(self, name: str, discrete: bool) -> ContinuousStatistics | DiscreteStatistics:
        if name not in self.numbers:
            part = f"{self._part}/{name}"
            self.numbers[name] = DiscreteStatistics() if discrete else ContinuousStatistics(part)
        return self.numbers[name]
