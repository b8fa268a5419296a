import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwm.data.episode import Episode
from tokenwm.data.quality.statistics import (
    ContinuousStatistics,
    DiscreteStatistics,
    EpisodeFigures,
    MeanFrame,
)


def test_statistics_stay_exact_when_rows_are_thinned_out() -> None:
    values = np.random.default_rng(0).normal(1000.0, 0.5, (5000, 2)).astype(np.float32)
    figures = ContinuousStatistics(max_rows=1000)
    for start in range(0, 5000, 37):
        figures.add(values[start : start + 37])
    figures.add(values[:0])
    assert len(figures.to_arrays()["rows"]) == 1000
    result = figures.result()
    assert result["count"] == 5000
    np.testing.assert_allclose(result["mean"], values.mean(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(result["std"], values.std(axis=0, dtype=np.float64), rtol=1e-6)
    quantiles = np.array(result["quantiles"])
    np.testing.assert_array_equal(quantiles[:, 0].astype(np.float32), values.min(axis=0))
    np.testing.assert_array_equal(quantiles[:, -1].astype(np.float32), values.max(axis=0))
    np.testing.assert_allclose(quantiles[:, 500], np.median(values, axis=0), atol=0.05)
    assert (np.diff(quantiles, axis=1) >= 0).all()


def test_the_sample_has_every_row_with_the_same_probability() -> None:
    """Rows in order of time: a sample that prefers early or late ones shifts the median."""
    kept = [
        np.median(sample.to_arrays()["rows"])
        for part in range(40)
        for sample in [ContinuousStatistics(f"part {part}", max_rows=50)]
        if sample.add(np.arange(1000)[:, None]) is None
    ]
    # The median of 50 uniform draws from [0, 1000) has a deviation of 70, the mean of 40 one of 11.
    assert abs(np.mean(kept) - 500) < 45


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    max_rows=st.sampled_from([5, 20, 1000]),
)
@settings(max_examples=40)
def test_parts_merge_into_the_whole(sizes: list[int], max_rows: int) -> None:
    generator = np.random.default_rng(sum(sizes))
    parts = []
    for index, size in enumerate(sizes):
        part = ContinuousStatistics(f"part {index}", max_rows)
        part.add(generator.normal(size=(size, 2)).astype(np.float32))
        parts.append(part.to_arrays())
    whole, pairs = ContinuousStatistics(max_rows=max_rows), ContinuousStatistics(max_rows=max_rows)
    for arrays in parts:
        whole.merge(arrays)
    for first in range(0, len(parts), 2):
        pair = ContinuousStatistics(max_rows=max_rows)
        for arrays in parts[first : first + 2]:
            pair.merge(arrays)
        pairs.merge(pair.to_arrays())
    left, right = whole.result(), pairs.result()
    assert left["count"] == sum(sizes)
    assert left.get("quantiles") == right.get("quantiles")  # the same rows, to the bit
    if sum(sizes):
        np.testing.assert_allclose(left["mean"], right["mean"], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(left["std"], right["std"], rtol=1e-9, atol=1e-12)


def test_small_statistics() -> None:
    assert ContinuousStatistics().result() == {"count": 0}
    counts = DiscreteStatistics()
    counts.add(np.array([[0], [2]]))
    counts.add(np.array([[0]]))
    assert counts.result() == {"count": 3, "counts": [2, 0, 1]}
    several = DiscreteStatistics()
    several.add(np.array([[0, 2], [1, 2]]))
    several.add(np.array([[3, 0]]))
    assert several.result() == {"count": 3, "counts": [[1, 1, 0, 1], [1, 0, 2, 0]]}
    more = DiscreteStatistics()
    more.add(np.array([[4]]))
    counts.merge(more.to_arrays())
    assert counts.result() == {"count": 4, "counts": [2, 0, 1, 0, 1]}
    mean = MeanFrame()
    mean.add(np.zeros((1, 2, 2, 3), np.uint8))
    mean.add(np.full((3, 2, 2, 3), 200, np.uint8))
    np.testing.assert_array_equal(mean.result(), 150)


@pytest.mark.parametrize("discrete", [False, True])
def test_figures_of_episodes_travel_as_arrays(discrete: bool) -> None:
    def episode(seed: int) -> Episode:
        generator = np.random.default_rng(seed)
        action = generator.integers(0, 5, (6, 1))
        return Episode(
            key=f"e{seed}",
            frames={"a": generator.integers(0, 256, (6, 4, 4, 3), np.uint8)},
            state=generator.normal(size=(6, 3)).astype(np.float32),
            action=action if discrete else action.astype(np.float32),
            reward=generator.normal(size=6).astype(np.float32),
            terminated=np.zeros(6, np.bool_),
            truncated=np.zeros(6, np.bool_),
            control_rate=10.0,
        )

    merged, direct = EpisodeFigures(), EpisodeFigures()
    for seed in range(3):
        part = EpisodeFigures(f"part {seed}")
        part.add(episode(seed))
        merged.merge(part.to_arrays())
        direct.add(episode(seed))
    assert list(merged.numbers) == ["action", "state", "reward"]
    for name, figures in direct.numbers.items():
        left, right = merged.numbers[name].result(), figures.result()
        assert left["count"] == right["count"] == (18 if name == "state" else 15)
        for key in left:
            np.testing.assert_allclose(left[key], right[key], rtol=1e-12)
    np.testing.assert_array_equal(
        merged.mean_frames["a"].result(), direct.mean_frames["a"].result()
    )
