"""Binning of real values, tested as a property of any bins."""

import json
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.errors import EpisodeError, TokenwmError
from tokenwm.tokenizer.actions import (
    BinTokenizer,
    DiscreteTokenizer,
    scalar_tokenizer_from_dict,
)
from tokenwm.tokenizer.device_actions import DeviceEncoder

METHODS = st.sampled_from(["uniform", "quantile"])
MARGINS = st.sampled_from([0.0, 0.1, 2.0])
finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def training_quantiles(draw: st.DrawFn) -> NDArray[np.float64]:
    """``(A, Q)`` quantiles of some data: ascending, with ties, also constant."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 30)))
    return np.sort(draw(hnp.arrays(np.float64, shape, elements=finite)), axis=1)


tokenizers = st.builds(
    BinTokenizer.fit,
    training_quantiles(),
    num_bins=st.integers(2, 40),
    method=METHODS,
    margin=MARGINS,
)


@given(tokenizer=tokenizers)
def test_encoding_a_bin_centre_gives_its_bin(tokenizer: BinTokenizer) -> None:
    """For every bin that has a width; bins without one (ties in the data) hold nothing."""
    tokens = np.arange(tokenizer.num_values)[:, None].repeat(tokenizer.num_dimensions, axis=1)
    again = tokenizer.encode(tokenizer.centers.T)
    width = np.diff(tokenizer.edges, axis=1).T
    scale = np.abs(tokenizer.edges).max(axis=1)
    proper = width > 1e-12 * scale
    assert proper.any(axis=0).all()
    np.testing.assert_array_equal(again[proper], tokens[proper])
    float32 = tokenizer.encode(tokenizer.decode(tokens))
    wide = width > 1e-6 * scale
    np.testing.assert_array_equal(float32[wide], tokens[wide])


@given(tokenizer=tokenizers, data=st.data())
def test_inside_the_bounds_the_error_is_at_most_half_a_bin(
    tokenizer: BinTokenizer, data: st.DataObject
) -> None:
    low, high = tokenizer.edges[:, 0], tokenizer.edges[:, -1]
    share = data.draw(hnp.arrays(np.float64, (5, len(low)), elements=st.floats(0.0, 1.0)))
    values = np.clip(low + share * (high - low), low, high)
    tokens = tokenizer.encode(values)
    dimension = np.arange(tokenizer.num_dimensions)
    width = np.diff(tokenizer.edges, axis=1)[dimension, tokens]
    error = np.abs(tokenizer.centers[dimension, tokens] - values)
    assert (error <= width / 2 + 1e-9 * np.abs(tokenizer.edges).max()).all()
    np.testing.assert_allclose(
        tokenizer.decode(tokens),
        tokenizer.centers[dimension, tokens],
        rtol=1e-6,
        atol=np.finfo(np.float32).smallest_subnormal,
    )


@given(tokenizer=tokenizers, distance=st.floats(1e-3, 1e6))
def test_values_out_of_range_fall_into_the_end_bins(
    tokenizer: BinTokenizer, distance: float
) -> None:
    low, high = tokenizer.edges[:, 0], tokenizer.edges[:, -1]
    assume((low - distance < low).all() and (high + distance > high).all())
    assert (tokenizer.encode(high + distance) == tokenizer.num_values - 1).all()
    # With ties at the minimum the first bins are empty; decoding must still give the minimum.
    np.testing.assert_array_equal(tokenizer.encode(low - distance), 0)
    assert tokenizer.encode(low).dtype == np.uint16


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(60, 300), num_bins=st.integers(2, 12))
def test_quantile_bins_hold_about_equally_many_values(seed: int, size: int, num_bins: int) -> None:
    data = np.random.default_rng(seed).standard_cauchy(size)  # far from uniform
    quantiles = np.quantile(data, np.linspace(0, 1, 1001))[None]
    tokenizer = BinTokenizer.fit(quantiles, num_bins=num_bins, method="quantile")
    counts = np.bincount(tokenizer.encode(data[:, None])[:, 0], minlength=num_bins)
    assert counts.sum() == len(data)
    assert np.abs(counts - len(data) / num_bins).max() <= 2


def test_values_of_no_dimensions_are_refused() -> None:
    with pytest.raises(TokenwmError, match=r"bin edges have shape \(0, 9\); .*dimensions >= 1"):
        BinTokenizer(edges=np.zeros((0, 9)))
    for name in ("state", "action"):
        arrays = {"state": np.zeros((4, 2), np.float32), "action": np.zeros((4, 2), np.float32)}
        arrays[name] = arrays[name][:, :0]
        flags = {"terminated": np.zeros(4, np.bool_), "truncated": np.zeros(4, np.bool_)}
        with pytest.raises(EpisodeError, match=f"episode a: {name} has no dimensions"):
            Episode(key="a", frames={}, control_rate=10.0, **arrays, **flags).check()


@given(quantiles=training_quantiles(), num_bins=st.integers(2, 50))
def test_uniform_bins_are_even_and_span_the_data(
    quantiles: NDArray[np.float64], num_bins: int
) -> None:
    tokenizer = BinTokenizer.fit(quantiles, num_bins=num_bins, method="uniform")
    assert tokenizer.num_values == num_bins
    np.testing.assert_allclose(tokenizer.edges[:, 0], quantiles[:, 0])
    assert (tokenizer.edges[:, -1] >= quantiles[:, -1] - 1e-9).all()
    width = np.diff(tokenizer.edges, axis=1)
    scale = 1e-9 * np.maximum(np.abs(tokenizer.edges).max(), 1.0)
    np.testing.assert_allclose(width, width[:, :1].repeat(num_bins, 1), rtol=1e-6, atol=scale)


@given(value=st.floats(-1e6, 1e6), method=METHODS, num_bins=st.integers(2, 300), margin=MARGINS)
def test_a_constant_dimension_comes_back_as_it_was(
    value: float, method: str, num_bins: int, margin: float
) -> None:
    tokenizer = BinTokenizer.fit(
        np.full((1, 11), value),
        num_bins=num_bins,
        method=method,  # type: ignore[arg-type]
        margin=margin,
    )
    decoded = tokenizer.decode(tokenizer.encode(np.full((4, 1), value)))
    np.testing.assert_allclose(decoded, value, atol=1e-6 + 1.1e-3 * abs(value))


@given(quantiles=training_quantiles(), method=METHODS, num_bins=st.integers(2, 40))
def test_a_margin_goes_on_where_the_training_data_ends(
    quantiles: NDArray[np.float64], method: Literal["uniform", "quantile"], num_bins: int
) -> None:
    """Bins inside are what they were, the training data is in [-1, 1], and half a range further
    is half a range further, to an error that grows with the distance."""
    quantiles = quantiles.round(3)  # the sum of -1 and 1e-20 is -1
    plain = BinTokenizer.fit(quantiles, num_bins=num_bins, method=method)
    wide = BinTokenizer.fit(quantiles, num_bins=num_bins, method=method, margin=1.5)
    moving = sorted(set(range(len(quantiles))) - set(wide.still))
    count = wide.margin_bins
    assert wide.num_values == num_bins + 2 * count and count == num_bins
    np.testing.assert_array_equal(wide.edges[moving, count:-count], plain.edges[moving])
    low, high = wide.training_range
    np.testing.assert_allclose(wide.scale(high)[moving], 1.0)
    assert not wide.outside(quantiles.T.astype(np.float32)).any()
    further = high + 0.5 * (plain.edges[:, -1] - plain.edges[:, 0])
    far = np.abs(further - high) > 1e-5 * np.abs(high)  # so that float32 tells
    assert wide.outside(further)[far].all()
    width = np.diff(wide.edges, axis=1)[moving]
    growing = width[:, -count:]
    assert (
        np.diff(growing, axis=1) >= -1e-9 * np.abs(wide.edges[moving]).max(1, keepdims=True)
    ).all()
    least = 1.5 * (plain.edges[:, -1] - plain.edges[:, 0])
    assert (wide.edges[:, -1] - high >= least * 0.999)[moving].all()
    assert not wide.clipped(further).any() and wide.clipped(further + 9e3).all()
    error = np.abs(wide.decode(wide.encode(further)) - further)
    assert (error[moving] <= 0.51 * growing.max(1) + 1e-6 * np.abs(further[moving])).all()
    assert (plain.margin_bins, plain.still) == (0, ())


def test_bins_next_to_the_training_data_are_as_wide_as_those_inside() -> None:
    """Beside a dimension in pixels an angle keeps its precision where it leaves its range."""
    quantiles = np.array([[0.0, 512.0], [0.0, 400.0], [0.0, 1.0]])
    tokenizer = BinTokenizer.fit(quantiles, num_bins=256, method="uniform", margin=2.0)
    width = np.diff(tokenizer.edges, axis=1) / quantiles[:, 1:]
    assert width[:2, -256].max() < 1.02 / 256 and width[2, -256] < 8 / 256
    np.testing.assert_allclose(tokenizer.edges[:, -1] - quantiles[:, 1], [1024.0, 800.0, 800.0])
    assert tokenizer.num_values == 768


def test_what_never_moved_has_room_to_move_as_others_do() -> None:
    quantiles = np.array([[0.75, 0.75], [0.0, 0.4], [-1.0, 1.0], [0.0, 0.0]])
    tokenizer = BinTokenizer.fit(quantiles, num_bins=8, method="uniform", margin=1.0)
    assert tokenizer.still == (0, 3)
    width = np.diff(tokenizer.edges, axis=1)
    np.testing.assert_allclose(width[[0, 3]], (0.4 + 2.0) / 2 / 8)  # the median range
    still = np.array([0.75, 0.2, 0.0, 0.0])
    assert not tokenizer.outside(still).any()
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(still))[[0, 3]], still[[0, 3]])
    moved = still + np.array([0.6, 0.0, 0.0, -0.6])
    assert tokenizer.outside(moved).tolist() == [True, False, False, True]
    assert not tokenizer.clipped(moved).any()
    assert (np.abs(tokenizer.decode(tokenizer.encode(moved)) - moved) <= 0.075 + 1e-6)[[0, 3]].all()
    large = np.array([[100.0, 100.0], [0.0, 0.4]])  # a middle bin is narrower than .1 % of 100
    assert (
        not BinTokenizer.fit(large, num_bins=99, method="uniform", margin=1.0)
        .outside(np.array([100.0, 0.2]))
        .any()
    )
    alone = BinTokenizer.fit(quantiles[:1], num_bins=8, method="uniform", margin=1.0)
    assert not alone.clipped(np.array([1.75])).any()  # of nothing that moves: a range of 1


@given(tokenizer=tokenizers)
def test_bins_survive_json_exactly(tokenizer: BinTokenizer) -> None:
    values = json.loads(json.dumps(tokenizer.to_dict()))
    read = scalar_tokenizer_from_dict(values)
    assert isinstance(read, BinTokenizer)
    np.testing.assert_array_equal(read.edges, tokenizer.edges)
    assert (read.margin_bins, read.still) == (tokenizer.margin_bins, tokenizer.still)
    # Without a margin as files from before there were any: their hash stays.
    assert ("margin_bins" in values) == (tokenizer.margin_bins > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    tokenizer = BinTokenizer.fit(np.array([[0.0, 1.0]] * 2), num_bins=4, method="uniform")
    values = np.zeros((3, 2))
    values[2, 1] = bad
    with pytest.raises(TokenwmError, match=rf"index \(2, 1\) is {bad}"):
        tokenizer.encode(values)


def test_the_number_of_dimensions_must_fit() -> None:
    tokenizer = BinTokenizer.fit(np.array([[0.0, 1.0]] * 2), num_bins=4, method="uniform")
    with pytest.raises(TokenwmError, match=r"3 dimension\(s\).*for 2"):
        tokenizer.encode(np.zeros((5, 3)))


@pytest.mark.parametrize("num_bins", [-1, 0, 1, 65537])
def test_impossible_numbers_of_bins_are_refused(num_bins: int) -> None:
    with pytest.raises(TokenwmError, match=f"num_bins={num_bins}.*2 to 65536"):
        BinTokenizer.fit(np.array([[0.0, 1.0]]), num_bins=num_bins, method="uniform")


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (-0.1, "margin=-0.1; use 0"),
        (math.nan, "margin=nan"),
        (101.0, "margin=101.0; use 0 .* to 100"),
    ],
    ids=["negative", "nan", "huge"],
)
def test_impossible_margins_are_refused(margin: float, message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        quantiles = np.array([[0.0, 1.0]])
        BinTokenizer.fit(quantiles, num_bins=256, method="uniform", margin=margin)
    with pytest.raises(TokenwmError, match="margin=2.0 makes 90000 of 30000 bins.*65536"):
        BinTokenizer.fit(quantiles, num_bins=30_000, method="uniform", margin=2.0)


@pytest.mark.parametrize(
    "damage", [{"margin_bins": 4}, {"margin_bins": -1}, {"still": [1]}], ids=str
)
def test_margins_that_leave_no_bins_are_refused(damage: dict[str, object]) -> None:
    values = BinTokenizer(edges=np.linspace(0.0, 1.0, 10)[None]).to_dict()
    with pytest.raises(TokenwmError, match="margin_bins=.* of 9 bins|still="):
        scalar_tokenizer_from_dict({**values, **damage})


@pytest.mark.parametrize(
    "edges",
    [[0.0, 1.0, 2.0], [[0.0, 1.0]], [[0.0, np.nan, 1.0]], [[0.0, 2.0, 1.0]]],
    ids=["one axis", "one bin", "nan", "descending"],
)
def test_impossible_edges_are_refused(edges: list[float]) -> None:
    with pytest.raises(TokenwmError, match="bin edges"):
        BinTokenizer(edges=np.array(edges))


@given(ids=hnp.arrays(np.int64, (4, 2), elements=st.integers(0, 5)))
def test_discrete_ids_are_their_tokens(ids: NDArray[np.int64]) -> None:
    tokenizer = DiscreteTokenizer(num_values=6, num_dimensions=2)
    tokens = tokenizer.encode(ids)
    assert tokens.dtype == np.uint16
    np.testing.assert_array_equal(tokenizer.decode(tokens), ids)
    assert scalar_tokenizer_from_dict(tokenizer.to_dict()) == tokenizer


@pytest.mark.parametrize("bad", [-1, 6])
def test_a_discrete_id_out_of_range_is_refused(bad: int) -> None:
    tokenizer = DiscreteTokenizer(num_values=6)
    with pytest.raises(TokenwmError, match=rf"span .*{bad}.*\[0, 6\)"):
        tokenizer.encode(np.array([[1], [bad]]))


@pytest.mark.parametrize("data", [{"kind": "words"}, {"kind": "discrete"}, {}], ids=str)
def test_an_unknown_tokenizer_is_refused(data: dict[str, str]) -> None:
    with pytest.raises(TokenwmError, match="scalar tokenizer"):
        scalar_tokenizer_from_dict(data)


@given(tokenizer=tokenizers, data=st.data())
def test_a_device_gives_the_same_bins(tokenizer: BinTokenizer, data: st.DataObject) -> None:
    """Inside, outside, on every edge and next to it, in both precisions and as whole numbers."""
    size = (5, 2, tokenizer.num_dimensions)
    drawn = data.draw(hnp.arrays(np.float64, size, elements=st.floats(-2e3, 2e3, width=32)))
    edges = tokenizer.edges.T
    beside = [np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]
    encode = DeviceEncoder(tokenizer, torch.device("cpu"))
    for values in (drawn, edges, *beside):
        for array in (values, values.astype(np.float32), np.rint(values).astype(np.int64)):
            got = encode(torch.from_numpy(array))
            assert got.dtype == torch.int64
            np.testing.assert_array_equal(got.numpy(), tokenizer.encode(array))
    last = tokenizer.num_values - 1
    odd = torch.tensor([[torch.nan], [torch.inf], [-torch.inf]]).expand(3, size[-1])
    assert encode(odd).tolist() == [[token] * size[-1] for token in (last, last, 0)]


def test_a_device_gives_discrete_ids_as_they_are_and_counts_dimensions() -> None:
    encode = DeviceEncoder(DiscreteTokenizer(num_values=4, num_dimensions=2), torch.device("cpu"))
    assert encode(torch.tensor([[0.0, 3.0]])).tolist() == [[0, 3]]
    with pytest.raises(TokenwmError, match="3 dimension"):
        encode(torch.zeros(1, 3))
