"""Counters and histograms in Prometheus's text format."""

import threading
from collections import defaultdict
from collections.abc import Mapping

BOUNDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
"""Seconds: upper ends of a histogram's buckets; a last one has the rest."""


class Metrics:
    """Counts and times, from any thread. Names and labels are the caller's own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: defaultdict[str, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self._histograms: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count."""
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
        """What a counter has come to."""
        with self._lock:
            return self._counters[name][_label(labels)]

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of them, and what has a value now, one a line."""
        lines = []
        with self._lock:
            for name, counter in sorted(self._counters.items()):
                lines.append(f"# TYPE tokenwm_{name} counter")
                for label, value in sorted(counter.items()):
                    lines.append(f"tokenwm_{name}{_braced(label)} {value:.15g}")
            for name, series in sorted(self._histograms.items()):
                lines.append(f"# TYPE tokenwm_{name} histogram")
                for label, counts in sorted(series.items()):
                    lines += _histogram_lines(f"tokenwm_{name}", label, counts)
        for name, value in gauges.items():
            lines += [f"# TYPE tokenwm_{name} gauge", f"tokenwm_{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


def _histogram_lines(name: str, label: str, counts: list[float]) -> list[str]:
    lines, total = [], 0.0
    for bound, count in zip([*map(str, BOUNDS), "+Inf"], counts[:-1], strict=True):
        total += count
        both = ",".join(filter(None, [label, f'le="{bound}"']))
        lines.append(f"{name}_bucket{_braced(both)} {total:g}")
    lines.append(f"{name}_sum{_braced(label)} {counts[-1]:.6f}")
    return [*lines, f"{name}_count{_braced(label)} {total:.15g}"]


def _label(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))


def _braced(label: str) -> str:
    return f"{{{label}}}" if label else ""
