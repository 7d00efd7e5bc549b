"""Figures of the API for Prometheus. Labels are route templates, never what a caller wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


class ApiMetrics:
    """One registry a process, so that tests and several applications do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "tollkeeper_control_requests",
            "Calls of the REST API, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tollkeeper_control_request_seconds",
            "Time that a call of the REST API took.",
            ("route",),
            registry=self.registry,
        )
        self.problems = Counter(
            "tollkeeper_control_problems",
            "Calls that were refused or failed, by code.",
            ("code",),
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "tollkeeper_control_requests_in_flight", "Calls being answered.", registry=self.registry
        )

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
