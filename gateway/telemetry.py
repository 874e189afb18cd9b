"""Which numbers does this process report? Every metric of the gateway, in one table.

Prometheus names and units; labels have few values by construction (no tenant, no model text). Children are
looked up once and kept, because a labels() call costs more than the increment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
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
        self._requests = Counter(
            "tollgate_requests",
            "Requests on the data plane, by path and status",
            ("path", "status"),
            registry=self.registry,
        )
        self._latency = Histogram(
            "tollgate_request_seconds",
            "Time from a request's headers to the end of its answer",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
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
        self._request_children: dict[tuple[str, int], Counter] = {}
        self._latency_children: dict[str, Histogram] = {}

    def request_ended(self, path: str, status: int, seconds: float) -> None:
        """A request of the data plane is over."""
        counter = self._request_children.get((path, status))
        if counter is None:
            counter = self._request_children[path, status] = self._requests.labels(path, str(status))
        counter.inc()
        histogram = self._latency_children.get(path)
        if histogram is None:
            histogram = self._latency_children[path] = self._latency.labels(path)
        histogram.observe(seconds)

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
        self.registry.register(_Counted(name, text, lambda: {(): read()}))

    def count_by_labels(
        self,
        name: str,
        text: str,
        *,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """A counter per combination of label values that somebody else counts, asked for likewise."""
        self.registry.register(_Counted(name, text, read, labels=labels))

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
        self.registry.register(_Watched(name, text, label=label, read=read))

    def count_each(
        self, name: str, text: str, *, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """One counter per label value that there is when somebody looks."""
        self.count_by_labels(
            name, text, labels=(label,), read=lambda: {(value,): number for value, number in read().items()}
        )

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


class _Counted(Collector):
    """A counter whose values are kept elsewhere, by the values of its labels."""

    def __init__(
        self,
        name: str,
        text: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        *,
        labels: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._text = text
        self._read = read
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._read().items():
            family.add_metric(values, count)
        yield family


class _Watched(Collector):
    """Gauges whose values are kept elsewhere, by the values of one label."""

    def __init__(self, name: str, text: str, *, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._read = read

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=(self._label,))
        for value, number in self._read().items():
            family.add_metric((value,), number)
        yield family
