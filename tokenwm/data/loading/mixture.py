"""Several datasets as one stream of windows: shares, the real:synthetic ratio, corrupt samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch.utils.data import Dataset

from tokenwm.data.episode import CorruptSample, Segment
from tokenwm.data.loading.order import Order, Place, ShuffledOrder, WeightedOrder, Weighting, philox
from tokenwm.data.loading.windows import WindowDataset
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CorruptSampleError, ShardError

MAX_REPLACEMENTS = 100
"""Corrupt windows in a row that another one may stand in for."""


@dataclass(frozen=True, kw_only=True)
class MixtureItem:
    """A dataset to train on.

    Attributes:
        root: Its folder or URL.
        weight: Windows drawn from it for each window of the main dataset, whose weight is 1.
        synthetic: Whether its episodes were imagined by a model rather than recorded; None to
            believe the dataset, see :meth:`ShardReader.is_synthetic`.
        weighting: How often windows of each episode are drawn, see
            :data:`tokenwm.data.loading.order.Weighting`; None for alike.
    """

    root: str
    weight: float = 1.0
    synthetic: bool | None = None
    weighting: Weighting | None = None


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A source of training windows with a fixed share: a dataset, or its real or synthetic part.

    Attributes:
        name: Name in the logs.
        is_synthetic: Whether its episodes are marked as synthetic.
        share: Share of all windows that are drawn, in [0, 1].
        windows: The windows.
        order: Order in which they come.
    """

    name: str
    is_synthetic: bool
    share: Fraction
    windows: WindowDataset
    order: Order


class MixedWindows(Dataset[Segment]):
    """Windows of several strata, by (number of the stratum, number of the window).

    Args:
        parts: Name and windows of every stratum.
        skip_corrupt: Let another window of the same stratum, a function of the corrupt one, stand
            in for it, and note so in :attr:`Segment.skipped`; else a corrupt sample is an error.
    """

    def __init__(
        self, parts: Iterable[tuple[str, WindowDataset]], skip_corrupt: bool = False
    ) -> None:
        self._parts = list(parts)
        self._skip_corrupt = skip_corrupt

    def __getitem__(self, place: Place) -> Segment:
        stratum, window = place
        name, windows = self._parts[stratum]
        skipped: list[CorruptSample] = []
        number = window
        while True:
            try:
                return replace(windows[number], source=name, skipped=tuple(skipped))
            except CorruptSampleError as error:
                if not self._skip_corrupt:
                    raise
                if len(skipped) == MAX_REPLACEMENTS:
                    raise ShardError(
                        f"{MAX_REPLACEMENTS} corrupt windows in a row, the last one: {error}"
                    ) from error
                key, *_ = windows.locate(number)
                skipped.append(CorruptSample(root=windows.reader.root, key=key, reason=str(error)))
            word = philox(window, len(skipped), stratum).random_raw()
            number = int(word) % len(windows)


def make_strata(
    items: Sequence[tuple[MixtureItem, ShardReader]],
    num_steps: int,
    fields: Sequence[str],
    seed: int,
    real_fraction: float | None = None,
) -> list[Stratum]:
    """Divide the train splits of datasets into strata.

    Within a dataset windows are drawn alike, whatever their episodes are, unless ``real_fraction``
    moves weight from its real to its synthetic ones or back.

    Args:
        items: Datasets with their readers; the first is the main one.
        num_steps: ``T``, steps per window.
        fields: Fields of the windows.
        seed: Seed of the order.
        real_fraction: Share of the windows that recorded episodes are to have; None to leave it as
            the weights make it.

    Raises:
        ShardError: ``num_steps`` is above the length of every episode, a dataset does not fit the
            first, a weight is impossible, or the real fraction cannot be met.
    """
    main_item, main = items[0]
    longest = max(int(r.episodes.lengths(r.keys("train")).max(initial=0)) for _, r in items)
    if 0 < longest < num_steps:
        raise ShardError(
            f"data.num_steps is {num_steps}, but the longest training episode of {main.root} has "
            f"{longest} steps; use at most {longest}"
        )
    if len(items) == 1 and real_fraction is None:
        windows = WindowDataset(main, "train", num_steps, fields)
        order = _order(main_item, windows, seed, stream=0)
        is_synthetic = bool(main_item.synthetic)
        name = main.manifest.name
        return [
            Stratum(
                name=name,
                is_synthetic=is_synthetic,
                share=Fraction(1),
                windows=windows,
                order=order,
            )
        ]
    parts: list[tuple[str, bool, Fraction, WindowDataset, Order]] = []
    for number, ((item, reader), name) in enumerate(zip(items, _names(items), strict=True)):
        check_compatible(main, reader, fields)
        if not 0 <= item.weight < float("inf"):
            raise ShardError(f"weight of {item.root} is {item.weight}; use a number >= 0")
        whole = WindowDataset(reader, "train", num_steps, fields)
        for is_synthetic, keys in _divide(item, reader).items():
            windows = WindowDataset(reader, "train", num_steps, fields, keys)
            order = _order(item, windows, seed, stream=2 * number + is_synthetic)
            suffix = "" if len(keys) == len(whole.keys) else f"_{_kind(is_synthetic)}"
            weight = Fraction(str(item.weight)) * len(windows) / len(whole)
            parts.append((name + suffix, is_synthetic, weight, windows, order))
    if real_fraction is not None:
        # One beside the other, so that the ratio is held as nearly as each share, see order.py.
        parts.sort(key=lambda part: part[1])
    shares = shares_of([(part[2], part[1]) for part in parts], real_fraction)
    return [
        Stratum(name=name, is_synthetic=is_synthetic, share=share, windows=windows, order=order)
        for (name, is_synthetic, _, windows, order), share in zip(parts, shares, strict=True)
        if share > 0
    ]


def shares_of(
    weights: Sequence[tuple[Fraction | float, bool]], real_fraction: float | None = None
) -> list[Fraction]:
    """Exact shares from weights.

    Args:
        weights: (Weight, whether it is of synthetic data) of every stratum.
        real_fraction: What the shares of real data are to add up to, in [0, 1]; None to leave it as
            the weights make it.

    Returns:
        Shares that add up to 1.

    Raises:
        ShardError: All weights are 0, or the fraction cannot be met.
    """
    exact = [Fraction(str(weight)) for weight, _ in weights]
    if real_fraction is None:
        if sum(exact) == 0:
            raise ShardError("all weights of the mixture are 0; nothing would be drawn")
        return [weight / sum(exact) for weight in exact]
    if not 0 <= real_fraction <= 1:
        raise ShardError(f"real_fraction is {real_fraction}; it must be in [0, 1]")
    real = Fraction(str(real_fraction))
    wanted = {False: real, True: 1 - real}
    totals = {
        kind: sum((w for w, (_, k) in zip(exact, weights, strict=True) if k == kind), Fraction(0))
        for kind in wanted
    }
    for kind, share in wanted.items():
        if share > 0 and totals[kind] == 0:
            raise ShardError(
                f"real_fraction {real_fraction} cannot be met: no {_kind(kind)} episodes with a "
                "weight above 0 are there. Imagined data is marked by `synthetic: true` in its "
                "manifest's `extra`, in the metadata of its episodes, or in the mixture's entry"
            )
    return [
        wanted[kind] * weight / totals[kind] if totals[kind] else Fraction(0)
        for weight, (_, kind) in zip(exact, weights, strict=True)
    ]


def check_compatible(main: ShardReader, other: ShardReader, fields: Sequence[str]) -> None:
    """Refuse a dataset whose windows mean something else than those of the main one.

    Raises:
        ShardError: Names both datasets, what differs, and both values.
    """
    expected, found = (_meaning(reader.manifest, fields) for reader in (main, other))
    for name in [*expected, *found]:
        ours, theirs = expected.get(name), found.get(name)
        if ours != theirs:
            hint = ""
            if name.startswith("vocabulary") or name == "tokenizer_hash":
                hint = "; make the tokens of both with one tokenizer and one vocabulary"
            raise ShardError(
                f"{other.root} cannot be mixed with {main.root}: {name} is {_short(theirs)} there "
                f"and {_short(ours)} here{hint}"
            )


def _meaning(manifest: Manifest, fields: Sequence[str]) -> dict[str, Any]:
    """Everything that datasets trained on together must agree in, by name."""
    meaning: dict[str, Any] = {"kind": manifest.kind, "control_rate": manifest.control_rate}
    meaning["cameras"] = list(manifest.cameras)
    meaning["actions_per_step"] = manifest.actions_per_step
    for name, feature in manifest.features.items():
        if name in fields or (name.startswith("frames.") and "frames" in fields):
            for key in ("kind", "shape", "dtype", "units", "names", "num_values"):
                meaning[f"{key} of {name}"] = getattr(feature, key)
    if manifest.kind == "tokens":
        meaning["tokenizer_hash"] = manifest.extra.get("tokenizer_hash")
        for key, value in dict(manifest.extra.get("vocabulary", {})).items():
            meaning[f"vocabulary: {key}"] = value
    return meaning


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _divide(item: MixtureItem, reader: ShardReader) -> dict[bool, list[str]]:
    """Keys of the real and of the synthetic episodes of the train split; empty parts left out."""
    parts: dict[bool, list[str]] = {}
    for key in reader.keys("train"):
        marked = reader.is_synthetic(key) if item.synthetic is None else item.synthetic
        parts.setdefault(marked, []).append(key)
    return parts


def _order(item: MixtureItem, windows: WindowDataset, seed: int, stream: int) -> Order:
    if item.weighting is None:
        return ShuffledOrder(len(windows), seed, stream)
    counts = windows.windows_per_episode
    return WeightedOrder(item.weighting, windows.episodes, counts, seed, stream)


def _names(items: Sequence[tuple[MixtureItem, ShardReader]]) -> list[str]:
    """A name for every dataset, numbered where two have the same."""
    names = [reader.manifest.name for _, reader in items]
    return [
        name if names.count(name) == 1 else f"{name}_{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _kind(is_synthetic: bool) -> str:
    return "synthetic" if is_synthetic else "real"
