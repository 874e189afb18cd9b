"""Which numbers does this process report? Every metric of the gateway, in one table.

Prometheus names and units; labels have few values by construction (no tenant, no model text). What counts for
every request is kept as plain numbers, which are put into Prometheus' form when somebody asks.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ", re.MULTILINE)
"""The beginning of a line with a value: name and labels."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Telemetry:
    """The metrics of one process.

    Several workers share a port, and whoever scrapes it meets one of them: each marks its samples with its
    number, so that what one says is never taken for what another said.
    """

    def __init__(self, *, worker: int | None = None) -> None:
        self.registry = CollectorRegistry()
        self._worker = worker
        self._requests = _Requests()
        self.registry.register(self._requests)
        self._failed_attempts = Counter(
            "tollgate_failed_attempts",
            "Attempts that failed, by reason",
            ("code",),
            registry=self.registry,
        )
        self._clients_gone = Counter(
            "tollgate_clients_gone",
            "Clients that left before their answer was complete",
            registry=self.registry,
        )

    def request_ended(self, path: str, status: int, seconds: float) -> None:
        """A request of the data plane is over."""
        self._requests.ended(path, status, seconds)

    def attempt_failed(self, code: str) -> None:
        """An attempt failed."""
        self._failed_attempts.labels(code).inc()

    def client_gone(self) -> None:
        """A client left."""
        self._clients_gone.inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge whose value is asked for when somebody looks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def count(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A counter that somebody else counts, asked for when somebody looks."""
        self.registry.register(_Kept(CounterMetricFamily, name, text, read=lambda: {(): read()}))

    def count_by_labels(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """A counter per combination of label values that somebody else counts, asked for likewise."""
        self.registry.register(_Kept(CounterMetricFamily, name, text, read=read, labels=labels))

    def watch_by_label(
        self, name: str, text: str, *, label: str, read: dict[str, Callable[[], float]]
    ) -> None:
        """One gauge per label value, asked for when somebody looks."""
        gauge = Gauge(name, text, (label,), registry=self.registry)
        for value, function in read.items():
            gauge.labels(value).set_function(function)

    def watch_each(
        self, name: str, text: str, *, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """One gauge per label value that there is when somebody looks."""
        self.registry.register(_Kept(GaugeMetricFamily, name, text, read=_by_one(read), labels=(label,)))

    def watch_by_labels(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """A gauge per combination of label values that there is when somebody looks."""
        self.registry.register(_Kept(GaugeMetricFamily, name, text, read=read, labels=labels))

    def count_each(
        self, name: str, text: str, *, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """One counter per label value that there is when somebody looks."""
        self.registry.register(_Kept(CounterMetricFamily, name, text, read=_by_one(read), labels=(label,)))

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        text = generate_latest(self.registry)
        if self._worker is None:
            return text
        label = f'worker="{self._worker}"'.encode()
        return _SAMPLE.sub(lambda found: _labelled(found, label), text)


def _labelled(sample: re.Match[bytes], label: bytes) -> bytes:
    name, labels = sample[1], sample[2]
    return name + b"{" + label + (b"," + labels if labels else b"") + b"} "


def _by_one(read: Callable[[], Mapping[str, float]]) -> Callable[[], Mapping[tuple[str, ...], float]]:
    return lambda: {(value,): number for value, number in read().items()}


class _Requests(Collector):
    """Requests by path and status, and how long they took.

    Plain numbers, because the library's own children take a lock for each of the three that change.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._latencies: dict[str, list[int]] = {}
        """By path: how many took at most so long, one for each of `SECONDS` and one for longer."""
        self._seconds: dict[str, float] = {}

    def ended(self, path: str, status: int, seconds: float) -> None:
        key = path, status
        self._counts[key] = self._counts.get(key, 0) + 1
        latencies = self._latencies.get(path)
        if latencies is None:
            latencies = self._latencies[path] = [0] * (len(SECONDS) + 1)
            self._seconds[path] = 0.0
        latencies[bisect_left(SECONDS, seconds)] += 1
        self._seconds[path] += seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tollgate_requests", "Requests on the data plane, by path and status", labels=("path", "status")
        )
        for (path, status), count in self._counts.items():
            requests.add_metric((path, str(status)), count)
        yield requests
        latency = HistogramMetricFamily(
            "tollgate_request_seconds",
            "Time from a request's headers to the end of its answer",
            labels=("path",),
        )
        bounds = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        for path, counts in self._latencies.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            latency.add_metric((path,), buckets, self._seconds[path])
        yield latency


class _Kept(Collector):
    """Values that are kept elsewhere, by the values of their labels."""

    def __init__(
        self,
        family: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        text: str,
        *,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
    ) -> None:
        self._family = family
        self._name = name
        self._text = text
        self._read = read
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        family = self._family(self._name, self._text, labels=self._labels)
        for values, number in self._read().items():
            family.add_metric(values, number)
        yield family
