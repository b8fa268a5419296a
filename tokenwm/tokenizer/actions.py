"""Tokens of actions and of proprioception: discrete ids, or real values binned per dimension."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.tokenizer.margins import num_margin_bins, with_margins

BinMethod = Literal["uniform", "quantile"]


@dataclass(frozen=True, kw_only=True)
class BinTokenizer:
    """Real values ↔ bin numbers, each dimension with its own bins.

    Attributes:
        edges: ``(A, num_values + 1)`` float64, ascending; values outside fall into the first or
            last bin.
        names: Names of the dimensions; may be empty.
        units: Unit of the values, for the reader.
        margin_bins: Bins at each end that lie beyond the range of the training data, so that a
            value a little further is a little further. Tokenizers made before there were margins
            have none.
        still: Dimensions that never move in the training data, which then lies in the middle bin.
    """

    edges: NDArray[np.float64]
    names: tuple[str, ...] = ()
    units: str = ""
    margin_bins: int = 0
    still: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        fits = self.edges.ndim == 2 and self.edges.shape[0] >= 1 and self.edges.shape[1] >= 3
        if not fits or not np.isfinite(self.edges).all():
            raise TokenwmError(
                f"bin edges have shape {self.edges.shape}; expected finite "
                "(dimensions, bins + 1) with dimensions >= 1 and bins >= 2"
            )
        if (np.diff(self.edges, axis=1) < 0).any():
            raise TokenwmError("bin edges must ascend in every dimension")
        if not 0 <= self.margin_bins <= (self.num_values - 2) // 2:
            raise TokenwmError(
                f"margin_bins={self.margin_bins} at each end of {self.num_values} bins; at least 2 "
                "must be left between them"
            )
        if not set(self.still) <= set(range(self.num_dimensions)):
            raise TokenwmError(f"still={self.still}; there are {self.num_dimensions} dimensions")

    @classmethod
    def fit(
        cls,
        quantiles: NDArray[np.float64],
        *,
        num_bins: int,
        method: BinMethod,
        margin: float = 0.0,
        names: Sequence[str] = (),
        units: str = "",
    ) -> "BinTokenizer":
        """Choose bins from the quantiles of the training data.

        Args:
            quantiles: ``(A, Q)``, evenly spaced quantiles per dimension; the first is the minimum
                and the last the maximum.
            num_bins: Bins per dimension over the range of the training data, 2 to 65536.
            method: ``uniform`` divides [minimum, maximum] evenly; ``quantile`` puts about as many
                training values into each bin.
            margin: What further bins cover beyond that range on each side, 0 to 100 of such
                ranges: the dimension's own or, if that is larger, the median dimension's, since
                what hardly moves on one day stands elsewhere on another. The first are as wide as
                those inside on the mean, and the further away the wider. There are at most
                ``num_bins`` of them on each side.
            names: Names of the dimensions.
            units: Unit of the values.

        Raises:
            TokenwmError: ``num_bins`` or ``margin`` is out of range.
        """
        if not 2 <= num_bins <= 65536:
            raise TokenwmError(
                f"num_bins={num_bins}; tokens are stored as uint16, so use 2 to 65536"
            )
        if not 0.0 <= margin <= 100.0:
            raise TokenwmError(f"margin={margin}; use 0 (no bins beyond the training data) to 100")
        margin_bins = num_margin_bins(margin, num_bins)
        if num_bins + 2 * margin_bins > 65536:
            raise TokenwmError(
                f"margin={margin} makes {num_bins + 2 * margin_bins} of {num_bins} bins; tokens "
                "are stored as uint16, so take fewer bins or a smaller margin: at most 65536 in all"
            )
        low, high = quantiles[:, :1], quantiles[:, -1:]
        # A dimension that never moves still needs bins of a width; this is far below any sensor.
        least = np.maximum(1e-3 * np.abs(low), 1e-6)
        inner = np.linspace(0.0, 1.0, num_bins + 1)
        if method == "uniform":
            edges = low + np.maximum(high - low, least) * inner
        else:
            grid = np.linspace(0.0, 1.0, quantiles.shape[1])
            edges = np.stack([np.interp(inner, grid, row) for row in quantiles])
            edges[:, -1:] = np.maximum(high, low + least)
        still: tuple[int, ...] = ()
        if margin_bins:
            edges, still = with_margins(edges, quantiles[:, [0, -1]], least[:, 0], margin)
        return cls(
            edges=edges, names=tuple(names), units=units, margin_bins=margin_bins, still=still
        )

    @property
    def num_dimensions(self) -> int:
        """``A``."""
        return int(self.edges.shape[0])

    @property
    def num_values(self) -> int:
        """Bins per dimension."""
        return int(self.edges.shape[1]) - 1

    @property
    def centers(self) -> NDArray[np.float64]:
        """``(A, num_values)`` the value each bin stands for."""
        return (self.edges[:, 1:] + self.edges[:, :-1]) / 2

    def encode(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """``(..., A)`` values → ``(..., A)`` bins.

        Raises:
            TokenwmError: The number of dimensions differs or a value is not finite.
        """
        _check_dimensions(values, self.num_dimensions)
        if not np.isfinite(values).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise TokenwmError(
                f"value at index {where} is {values[where]}; only finite values can be binned"
            )
        columns = [
            np.searchsorted(self.edges[d, 1:-1], values[..., d], side="right")
            for d in range(self.num_dimensions)
        ]
        return np.stack(columns, axis=-1).astype(np.uint16)

    @property
    def scale_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The values ``(A,)`` each that :meth:`scale` makes -1 and 1.

        Those of the training data, but for dimensions that never moved there.
        """
        return self.edges[:, self.margin_bins], self.edges[:, -1 - self.margin_bins]

    @property
    def training_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest value of the training data, ``(A,)`` each, in units of the data."""
        low, high = (end.copy() for end in self.scale_range)
        still, middle = list(self.still), self.num_values // 2
        low[still], high[still] = self.edges[still, middle], self.edges[still, middle + 1]
        return low, high

    def outside(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """``(..., A)`` values → where they lie beyond the range of the training data."""
        return beyond_range(values, *self.training_range)

    def clipped(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """``(..., A)`` values → where they lie beyond all bins and count as the nearest."""
        return beyond_range(values, self.edges[:, 0], self.edges[:, -1])

    def decode(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """``(..., A)`` bins → ``(..., A)`` float32 bin centres.

        Raises:
            TokenwmError: The number of dimensions differs.
        """
        _check_dimensions(tokens, self.num_dimensions)
        dimension = np.arange(self.num_dimensions)
        return self.centers[dimension, tokens.astype(np.int64)].astype(np.float32)

    def scale(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """``(..., A)`` values → the same in units in which the training data is in [-1, 1]."""
        low, high = self.scale_range
        scaled: NDArray[np.float64] = 2.0 * (values - low) / (high - low) - 1.0
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; without a margin, that of tokenizers before there were any."""
        values: dict[str, Any] = {
            "kind": "continuous",
            "edges": self.edges.tolist(),
            "names": list(self.names),
            "units": self.units,
        }
        if self.margin_bins:
            values |= {"margin_bins": self.margin_bins, "still": list(self.still)}
        return values


@dataclass(frozen=True, kw_only=True)
class DiscreteTokenizer:
    """Discrete ids of actions or states: the id is the token.

    Attributes:
        num_values: Ids are in [0, num_values).
        num_dimensions: Ids per step.
        sizes: Ids of a dimension that the training data uses are in [0, size), one size for each;
            empty if all are ``num_values``. Others have tokens, and a model has not seen them.
    """

    num_values: int
    num_dimensions: int = 1
    sizes: tuple[int, ...] = ()

    @property
    def used_sizes(self) -> tuple[int, ...]:
        """``(A,)``, how many ids of each dimension to choose from."""
        return self.sizes or (self.num_values,) * self.num_dimensions

    def encode(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        """``(..., A)`` ids → ``(..., A)`` tokens.

        Raises:
            TokenwmError: The number of dimensions differs or an id is out of range.
        """
        _check_dimensions(values, self.num_dimensions)
        if not np.equal(np.mod(values, 1), 0).all():  # NaN and infinity are not whole either
            raise TokenwmError("discrete ids must be whole numbers")
        if values.size and (values.min() < 0 or values.max() >= self.num_values):
            raise TokenwmError(
                f"discrete ids span [{values.min()}, {values.max()}]; "
                f"allowed is [0, {self.num_values})"
            )
        return values.astype(np.uint16)

    def decode(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """``(..., A)`` tokens → ``(..., A)`` ids.

        Raises:
            TokenwmError: The number of dimensions differs.
        """
        _check_dimensions(tokens, self.num_dimensions)
        return tokens.astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values: dict[str, Any] = {
            "kind": "discrete",
            "num_values": self.num_values,
            "num_dimensions": self.num_dimensions,
        }
        return values | ({"sizes": list(self.sizes)} if self.sizes else {})


ScalarTokenizer = BinTokenizer | DiscreteTokenizer


def _check_dimensions(values: NDArray[Any], expected: int) -> None:
    if values.ndim == 0 or values.shape[-1] != expected:
        raise TokenwmError(
            f"values have {values.shape[-1] if values.ndim else 'no'} dimension(s), shape "
            f"{values.shape}; their tokens were made for {expected}"
        )


def beyond_range(
    values: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """``(..., A)`` values → where they lie beyond ``low`` and ``high``, ``(A,)`` each."""
    # As float32, which the data is: the extremes of the training data are not outside.
    beyond: NDArray[np.bool_] = (values < low.astype(np.float32)) | (
        values > high.astype(np.float32)
    )
    return beyond


def scalar_tokenizer_from_dict(data: Mapping[str, Any]) -> ScalarTokenizer:
    """Inverse of ``to_dict``.

    Raises:
        TokenwmError: The kind is unknown or a field is missing.
    """
    try:
        if data["kind"] == "continuous":
            return BinTokenizer(
                edges=np.asarray(data["edges"], dtype=np.float64),
                names=tuple(data["names"]),
                units=str(data["units"]),
                margin_bins=int(data.get("margin_bins", 0)),
                still=tuple(int(number) for number in data.get("still", ())),
            )
        if data["kind"] == "discrete":
            return DiscreteTokenizer(
                num_values=int(data["num_values"]),
                num_dimensions=int(data["num_dimensions"]),
                sizes=tuple(int(size) for size in data.get("sizes", ())),
            )
    except KeyError as error:
        raise TokenwmError(f"scalar tokenizer lacks the field {error}") from error
    raise TokenwmError(
        f"unknown scalar tokenizer kind {data['kind']!r}; known: continuous, discrete"
    )
