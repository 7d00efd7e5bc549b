"""Counts: the sum over workers never steps back, and every name and label comes from a bounded set."""

import copy

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric

from gateway.contract.usage_event import OUTCOMES
from gateway.metrics import BUCKETS_S, Histogram, Metrics, Snapshot, add_snapshots, families, without_gauges
from gateway.refusals import Reason

ROUTES = ("models", "git")
FAMILIES = {
    "tollkeeper_requests": "counter", "tollkeeper_refusals": "counter", "tollkeeper_observed": "counter",
    "tollkeeper_events": "counter",
    "tollkeeper_request_body_bytes": "counter", "tollkeeper_response_body_bytes": "counter",
    "tollkeeper_cost_microcredits": "counter", "tollkeeper_overshoot_microcredits": "counter",
    "tollkeeper_admission_seconds": "histogram", "tollkeeper_upstream_seconds": "histogram",
    "tollkeeper_whole_seconds": "histogram",
    "tollkeeper_in_flight": "gauge", "tollkeeper_client_connections": "gauge", "tollkeeper_upstream_connections": "gauge",
    "tollkeeper_upstream_waiting": "gauge", "tollkeeper_redis_pipe_depth": "gauge", "tollkeeper_cold_lookups": "gauge",
    "tollkeeper_known_callers": "gauge", "tollkeeper_unsettled": "gauge", "tollkeeper_ready": "gauge",
    "tollkeeper_workers": "gauge", "tollkeeper_target_up": "gauge", "tollkeeper_target_connections": "gauge",
    "tollkeeper_target_pending": "gauge",
}  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """What a worker might have counted, as it arrives at the supervisor."""
    metrics = Metrics()
    for _ in range(draw(st.integers(0, 5))):
        label = (draw(st.sampled_from(ROUTES)), draw(st.sampled_from(OUTCOMES)), draw(st.integers(0, 5)))
        metrics.requests[label] += draw(st.integers(1, 9))
        metrics.refusals[
            (draw(st.sampled_from(("", *ROUTES))), draw(st.sampled_from(list(Reason))).value)
        ] += 1
        metrics.observed[(draw(st.sampled_from(ROUTES)), draw(st.sampled_from(list(Reason))).value)] += 1
        metrics.events[draw(st.sampled_from(("bad_head", "redis_lost")))] += draw(st.integers(0, 9))
        for histogram in (metrics.admission, metrics.upstream, metrics.whole):
            histogram.observe(draw(st.integers(0, 400_000)) / 1000)
    metrics.bytes_in, metrics.cost = draw(st.integers(0, 2**40)), draw(st.integers(0, 2**40))
    metrics.gauges = {"in_flight": draw(st.integers(0, 9)), "workers": 1}
    metrics.targets = [(route, "10.0.0.4:8443", draw(st.integers(0, 1)), 3, 2) for route in ROUTES]
    over_the_channel: Snapshot = orjson.loads(orjson.dumps(metrics.snapshot()))
    return over_the_channel


def flat(snapshot: Snapshot) -> dict[str, float]:
    """Every counter of a snapshot by one name."""
    counts: dict[str, float] = {}
    for kind in ("requests", "refusals", "observed"):
        for *labels, count in snapshot[kind]:
            counts[f"{kind} {labels}"] = counts.get(f"{kind} {labels}", 0) + count
    for kind in ("events", "totals"):
        counts |= {f"{kind} {name}": count for name, count in snapshot[kind].items()}
    for name, histogram in snapshot["histograms"].items():
        counts |= {f"{name} {place}": count for place, count in enumerate(histogram["counts"])}
    return counts


@given(st.lists(snapshots(), max_size=4))
def test_a_sum_is_the_sum_of_each_count(several: list[Snapshot]) -> None:
    before = copy.deepcopy(several)
    total = flat(add_snapshots(several))
    for name, count in total.items():
        assert count == sum(flat(one).get(name, 0) for one in several), name
    assert {name for one in several for name in flat(one)} <= set(total)
    assert several == before, "adding must not change what is added: the last snapshot of a worker is kept"


@given(st.lists(snapshots(), min_size=1, max_size=4), snapshots())
def test_a_worker_that_died_stays_in_the_sum_and_its_states_do_not(
    alive: list[Snapshot], dead: Snapshot
) -> None:
    before, after = add_snapshots([*alive, dead]), add_snapshots([*alive, without_gauges(dead)])
    assert flat(before) == flat(after)
    assert after["gauges"] == add_snapshots(alive)["gauges"]


@given(st.lists(snapshots(), max_size=4))
def test_sums_of_sums_are_sums(several: list[Snapshot]) -> None:
    assert flat(add_snapshots([add_snapshots(several)])) == pytest.approx(flat(add_snapshots(several)))


@given(snapshots())
def test_a_later_snapshot_never_counts_less(snapshot: Snapshot) -> None:
    metrics = Metrics()
    metrics.requests[("models", "completed", 2)] = 3
    metrics.admission.observe(0.1)
    earlier = copy.deepcopy(metrics.snapshot())
    metrics.requests[("models", "completed", 2)] += 1
    metrics.admission.observe(0.2)
    metrics.cost += 5
    first, second = (
        flat(add_snapshots([snapshot, earlier])),
        flat(add_snapshots([snapshot, metrics.snapshot()])),
    )
    assert all(second[name] >= count for name, count in first.items())
    assert second != first


LAST = len(BUCKETS_S) - 1


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.0005, 0), (0.00051, 1), (0.001, 1), (300.0, LAST), (300.1, LAST + 1)]
)
def test_a_bucket_holds_what_is_at_most_its_bound(seconds: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    assert histogram.counts[bucket] == 1
    assert sum(histogram.counts) == 1


def rendered(snapshot: Snapshot) -> dict[str, Metric]:
    return {family.name: family for family in families(snapshot)}


def test_every_family_is_there_before_the_first_request() -> None:
    assert {name: family.type for name, family in rendered(add_snapshots([])).items()} == FAMILIES
    assert {name: family.type for name, family in rendered(Metrics().snapshot()).items()} == FAMILIES
    assert all(family.documentation.endswith(".") for family in families(add_snapshots([])))


@given(snapshots())
def test_labels_come_from_bounded_sets(snapshot: Snapshot) -> None:
    bounds: dict[str, set[str]] = {
        "route": {"", *ROUTES}, "outcome": set(OUTCOMES), "status_class": {"none", "1xx", "2xx", "3xx", "4xx", "5xx"},
        "reason": {reason.value for reason in Reason}, "event": {"bad_head", "redis_lost"},
        "target": {"10.0.0.4:8443"},
    }  # fmt: skip
    for family in families(snapshot):
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label == "le":
                    assert value in {*map(str, BUCKETS_S), "+Inf"}
                else:
                    assert value in bounds[label]


@given(snapshots())
def test_a_histogram_is_cumulative_and_ends_with_its_count(snapshot: Snapshot) -> None:
    for key in ("admission", "upstream", "whole"):
        family = rendered(snapshot)[f"tollkeeper_{key}_seconds"]
        buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
        (count,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
        assert buckets == sorted(buckets)
        assert buckets[-1] == count == sum(snapshot["histograms"][key]["counts"])
