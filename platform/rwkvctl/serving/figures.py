"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Figures"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Figures:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rwkvctl_requests", "Requests for a mask that were answered.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "rwkvctl_request_seconds",
            "From the first byte of a request to its answer, of those that got a mask.",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.bytes = Counter("rwkvctl_upload_bytes", "Bytes of all uploads.", registry=self.registry)
        self.going_on = Gauge("rwkvctl_requests_in_progress", "Requests at the moment.", registry=self.registry)
        self.retries = Counter(
            "rwkvctl_retries", "Requests that were sent again since a replica was lost.", registry=self.registry
        )
        self.slices = Gauge(
            "rwkvctl_replica_slices", "Slices that one replica's network has seen.", registry=self.registry
        )
        self.batches = Gauge("rwkvctl_replica_batches", "In so many batches.", registry=self.registry)
        self.model = Gauge(
            "rwkvctl_model", "1 for the version that is served.", ["version", "weights"], registry=self.registry
        )

    def describe(self, found: dict[str, Any]) -> None:
        """What a replica has said of itself."""
        self.slices.set(found["slices"])
        self.batches.set(found["batches"])
        self.model.clear()
        self.model.labels(found["model"]["version"], found["model"]["weights_sha256"][:12]).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
