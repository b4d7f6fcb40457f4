# SPDX-License-Identifier: MIT
"""What a replica counts, and all replicas' counts as one text for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ascedfast.report import RowReport

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SEVERITY = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
FILL = tuple(k / 8 for k in range(1, 9))


class ReplicaMetrics:
    """Of one process; a registry of its own, so that several fit into one."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self.registry = CollectorRegistry()
        one = {"registry": self.registry}
        self.seconds = Histogram("ascedfast_step_seconds", "One step of all rows.", buckets=SECONDS, **one)
        self.fill = Histogram("ascedfast_batch_fill", "Rows of a step over max_rows.", buckets=FILL, **one)
        self.rows = Counter("ascedfast_row_steps", "Steps of single rows.", **one)
        self.running = Gauge("ascedfast_rows_running", "Images being stepped.", **one)
        self.waiting = Gauge("ascedfast_rows_waiting", "Images whose request waits in a replica.", **one)
        self.images = Counter("ascedfast_images", "Images drawn, by what was found.", ["status"], **one)
        self.severity = Histogram("ascedfast_severity", "Of watched images.", ["mode"], buckets=SEVERITY, **one)
        self.share = Gauge("ascedfast_corrected_share", "Of the watched images since the replica began.", **one)
        self._watched = self._corrected = 0

    def stepped(self, seconds: float, rows: int) -> None:
        self.seconds.observe(seconds)
        self.fill.observe(rows / self._max_rows)
        self.rows.inc(rows)

    def drew(self, reports: Sequence[RowReport | None]) -> None:
        """Count images, None for one that nobody watched. Reads the reports, which copies from the device."""
        for row in reports:
            self.images.labels("off" if row is None else row.status).inc()
            if row is None:
                continue
            if not isinstance(row.severity, str):
                self.severity.labels(row.config.mode).observe(row.severity)
            self._watched += 1
            self._corrected += row.status == "corrected"
            self.share.set(self._corrected / self._watched)

    def families(self) -> list[Metric]:
        return list(self.registry.collect())


class Gathered(Collector):
    """The families of several replicas, each sample labelled with the replica that it is from."""

    def __init__(self, replicas: dict[str, list[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for replica, families in self._replicas.items():
            for family in families:
                one = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    one.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from merged.values()


class ServerMetrics:
    """Of the process that answers HTTP."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        one = {"registry": self.registry}
        self.requests = Counter("ascedfast_requests", "Requests for images answered, by status.", ["code"], **one)
        self.seconds = Histogram("ascedfast_request_seconds", "From a request to its answer.", buckets=SECONDS, **one)
        self.in_flight = Gauge("ascedfast_images_in_flight", "Images being stepped or waiting, all replicas.", **one)
        self.replicas = Gauge("ascedfast_replicas", "Replicas that told their counts.", **one)
        self.resent = Counter("ascedfast_requests_resent", "Sent again because their replica had died.", **one)
