"""What a server counts, for Prometheus: requests, their time, and how far contributions are from adding up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, exposition

from onnxlift.completeness import Completeness
from onnxlift.explanation import Explanation

CONTENT_TYPE = exposition.CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_GAPS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1)


@dataclass
class Outcome:
    """How a request ended: `code` is the HTTP status, also of requests over gRPC."""

    code: int = 200


class Metrics:
    """The counters of one server, and the size and processor time of its process."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "onnxlift_requests", "Requests, by HTTP status.", ("protocol", "code"), registry=registry
        )
        self._seconds = Histogram(
            "onnxlift_request_seconds",
            "From the head of a request to its answer, waiting included.",
            ("protocol",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._under_way = Gauge("onnxlift_requests_under_way", "Requests that wait or are computed.", registry=registry)
        self._samples = Counter("onnxlift_samples", "Samples explained.", registry=registry)
        self._gaps = Histogram(
            "onnxlift_relative_gap",
            "|completeness gap| / |t(x) - t(r)| of samples, where that is finite.",
            buckets=_GAPS,
            registry=registry,
        )
        self._incomplete = Counter(
            "onnxlift_incomplete_samples", "Samples whose gap is above --tolerance, or NaN.", registry=registry
        )

    @contextmanager
    def request(self, protocol: str) -> Iterator[Outcome]:
        """Count a request; who handles it says how it ended."""
        outcome, start = Outcome(), time.perf_counter()
        try:
            with self._under_way.track_inprogress():
                yield outcome
        finally:
            self._requests.labels(protocol, outcome.code).inc()
            self._seconds.labels(protocol).observe(time.perf_counter() - start)

    def explained(self, explanation: Explanation, found: Completeness) -> None:
        """Count samples and their gaps; these only of rules whose contributions are meant to add up."""
        self._samples.inc(found.samples)
        self._incomplete.inc(found.incomplete)
        if found.tolerance is not None:
            relative = explanation.relative_gap
            for value in relative[np.isfinite(relative)]:
                self._gaps.observe(value)

    def text(self) -> bytes:
        """All of it, as CONTENT_TYPE."""
        return exposition.generate_latest(self._registry)
