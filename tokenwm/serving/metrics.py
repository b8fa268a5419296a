"""Counters, histograms and gauges in Prometheus's text format."""

import threading
from collections import defaultdict
from collections.abc import Mapping

BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
"""Seconds: upper ends of a histogram's buckets; a last one has the rest."""

HELP: Mapping[str, str] = {
    "batched_requests_total": "Requests that have begun to be computed.",
    "batched_rows_total": "Rows of the batches that have begun.",
    "batches_total": "Batches that have begun.",
    "held_bytes": "Bytes of requests being received or answered, with their answers' frames.",
    "imagined_steps_total": "Imagined rows times steps.",
    "passes_total": "Passes through the transformer.",
    "queue_wait_seconds": "How long a request waited until it began.",
    "queued_rows": "Rows that wait.",
    "received_bytes_total": "Bytes of bodies that were read.",
    "refused_connections_total": "Connections refused because too many were open.",
    "request_seconds": "How long a request took, from its head to its answer.",
    "requests_total": "Answers by path and status; 499: the client did not wait.",
    "row_tokens_total": "Imagined frame tokens.",
    "running_seconds": "Age of the oldest batch that has begun; 0: none.",
    "sent_bytes_total": "Bytes of the bodies of answers.",
    "tokens_per_pass": "Imagined frame tokens per pass: how well drafts are accepted.",
}
"""Help text of each metric, by name without the prefix ``tokenwm_``."""


class Metrics:
    """Counts and times under the names of :data:`HELP`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: defaultdict[str, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self._histograms: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Increase a counter."""
        with self._lock:
            self._counters[name][_label(labels)] += amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""
        with self._lock:
            # How many fell into each bucket, and the sum of seconds.
            series = self._histograms.setdefault(name, {})
            counts = series.setdefault(_label(labels), [0.0] * (len(BOUNDS) + 2))
            counts[sum(seconds > bound for bound in BOUNDS)] += 1
            counts[-1] += seconds

    def value(self, name: str, **labels: str) -> float:
        """Return what a counter has come to."""
        with self._lock:
            return self._counters[name][_label(labels)]

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all of them, and the gauges given, one a line."""
        lines: list[str] = []
        with self._lock:
            for name, counter in sorted(self._counters.items()):
                values = [f"{_braced(label)} {value:.15g}" for label, value in counter.items()]
                lines += _block(name, "counter", sorted(values))
            for name, series in sorted(self._histograms.items()):
                values = [
                    line
                    for label, counts in sorted(series.items())
                    for line in _bins(label, counts)
                ]
                lines += _block(name, "histogram", values)
        for name, value in gauges.items():
            lines += _block(name, "gauge", [f" {value:.15g}"])
        return "\n".join(lines) + "\n"


def _block(name: str, kind: str, values: list[str]) -> list[str]:
    full = f"tokenwm_{name}"
    head = [f"# HELP {full} {HELP[name]}", f"# TYPE {full} {kind}"]
    return head + [f"{full}{value}" for value in values]


def _bins(label: str, counts: list[float]) -> list[str]:
    lines, total = [], 0.0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts[:-1], strict=True):
        total += count
        both = ",".join(filter(None, [label, f'le="{bound}"']))
        lines.append(f"_bucket{_braced(both)} {total:.15g}")
    lines.append(f"_sum{_braced(label)} {counts[-1]:.6f}")
    return [*lines, f"_count{_braced(label)} {total:.15g}"]


def _label(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))


def _braced(label: str) -> str:
    return f"{{{label}}}" if label else ""
