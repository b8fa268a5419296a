"""The parent of a model: a finished one whose weights its training began from (fine-tuning)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tokenwm.errors import CheckpointError

FloatArray = NDArray[np.float64]

INHERITED = (
    *("weights_sha256", "tokenizer_hash", "steps", "windows_seen", "learning_rate"),
    *("tokenwm_version", "code_revision"),
    *("data", "data_name", "data_manifest_sha256", "data_provenance", "data_mixture"),
    *("value_ranges", "parent"),
)
"""Fields of its parent's provenance that a child keeps."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A finished model that training begins from.

    Attributes:
        folder: Its checkpoint folder, for messages.
        model: The model, on the CPU; a ``FrameTokenizer`` or a ``WorldModel``.
        provenance: Where it came from.
        cameras: Names of its cameras in order; None if it does not say.
        control_rate: Its steps per second, Hz; None if it does not say.
    """

    folder: str
    model: nn.Module
    provenance: Mapping[str, Any]
    cameras: tuple[str, ...] | None = None
    control_rate: float | None = None

    @property
    def identity(self) -> str:
        """SHA-256 of its weights."""
        return str(self.provenance.get("weights_sha256"))

    def record(self) -> dict[str, Any]:
        """Its part of the child's provenance; in ``parent`` lie its own parents."""
        return {name: self.provenance[name] for name in INHERITED if name in self.provenance}

    def require_same(self, what: str, theirs: Any, here: Any, remedy: str) -> None:
        """Check that parent and child agree in something.

        Raises:
            CheckpointError: They do not; names both values and what to do.
        """
        if theirs != here:
            raise CheckpointError(
                f"training cannot begin from {self.folder}: {what} {_short(theirs)} there and "
                f"{_short(here)} here; {remedy}"
            )

    def require_same_sizes(
        self, prefix: str, theirs: Mapping[str, Any], here: Mapping[str, Any]
    ) -> None:
        """Check that parent and child agree in options that weights depend on, by name.

        Raises:
            CheckpointError: They do not.
        """
        for name in {**theirs, **here}:
            remedy = "leave it away, since sizes are the parent's"
            self.require_same(f"{prefix}.{name} is", theirs.get(name), here.get(name), remedy)


def lineage(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance of a model, of its parent, of that one's parent, …, the youngest first."""
    found: Any = provenance
    while isinstance(found, Mapping):
        yield found
        found = found.get("parent")


def data_known_to(provenance: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The provenance of every dataset that a model or one of its ancestors was trained on."""
    for of_model in lineage(provenance):
        mixed = of_model.get("data_mixture")
        for item in (of_model, *(mixed if isinstance(mixed, list) else ())):
            data = item.get("data_provenance") if isinstance(item, Mapping) else None
            if isinstance(data, Mapping):
                yield data


def value_ranges(datasets: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Least and greatest values of actions and states over the train splits of datasets.

    Args:
        datasets: The statistics of each, as manifests hold them.

    Returns:
        ``action`` and ``state``, if known → ``[least, greatest]``, of each dimension.
    """
    known: dict[str, list[list[float]]] = {}
    for statistics in datasets:
        for name in ("action", "state"):
            figures = statistics.get(name, {})
            if {"min", "max"} <= figures.keys():
                ends = [figures["min"], figures["max"]]
                low, high = known.setdefault(name, ends)
                known[name] = [
                    np.minimum(low, ends[0]).tolist(),
                    np.maximum(high, ends[1]).tolist(),
                ]
    return known


def widened_range(
    provenance: Mapping[str, Any], name: str, low: FloatArray, high: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The range that bins were made for, with what the model was fine-tuned on since."""
    for of_model in lineage(provenance):
        ends = (of_model.get("value_ranges") or {}).get(name)
        if ends is not None and np.shape(ends) == (2, len(low)):
            low, high = np.minimum(low, ends[0]), np.maximum(high, ends[1])
    return low, high


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
