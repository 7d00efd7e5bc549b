"""What is counted of the jobs, for Prometheus. One object a process; `registry` is what a listener serves."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class JobMetrics:
    """Every metric of the jobs, in a registry of its own, so that tests and processes do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = self._counter("job_runs", "Runs of a job that ended well", "job")
        self.failures = self._counter("job_failures", "Runs of a job that failed", "job")
        self.duration = Histogram(
            "tollkeeper_job_duration_seconds",
            "How long a run of a job took",
            ["job"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.leading = self._gauge("job_leading", "1 where this process is the one that runs the job", "job")
        self.drained_events = self._counter("drained_events", "Usage events that became rows of the ledger")
        self.repeated_events = self._counter(
            "repeated_events", "Usage events drained again that were rows before"
        )
        self.rejected_events = self._counter("rejected_events", "Entries of a stream set aside: not events")
        self.alerts = self._counter("alerts", "Crossings of a threshold that became alerts")
        self.alert_deliveries = self._counter(
            "alert_deliveries",
            "Attempts to tell a destination of an alert, by what came of them",
            "kind",
            "result",
        )
        self.alert_deliveries_pending = self._gauge(
            "alert_deliveries_pending", "Alerts that destinations are still to be told of"
        )
        self.alert_destinations_disabled = self._gauge(
            "alert_destinations_disabled", "Destinations that were disabled because they did not take alerts"
        )
        self.backlog_events = self._gauge("backlog_events", "Entries in the streams that wait to be drained")
        self.lag_seconds = self._gauge(
            "drain_lag_seconds", "Age of the oldest entry that waits to be drained"
        )
        self.expired_holds = self._counter("expired_holds", "Holds settled because their deadline passed")
        self.unreadable_holds = self._counter(
            "unreadable_holds", "Members of a holds set put aside: not holds"
        )
        self.published_rules = self._counter("published_rules", "Rules written to Redis by the publish job")
        self.rebuilds = self._counter("rebuilds", "Times that a Redis without rules was loaded anew")
        self.differences = self._gauge("reconcile_differences", "Differences that the last reconcile found")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tollkeeper_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tollkeeper_{name}", text, labels, registry=self.registry)
