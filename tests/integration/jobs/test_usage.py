"""Reports of usage: they add up to the ledger, page by page, for one organization only."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from control.domain import usage
from control.domain.refusals import Invalid
from control.jobs import drain, publish
from tests.integration.jobs.world import Workload, World

START = datetime(2026, 3, 1, tzinfo=UTC)
END = datetime(2026, 3, 3, tzinfo=UTC)


@pytest.fixture
async def workloads(world: World) -> list[Workload]:
    """Two accounts of one organization and one of another, used every third hour of two days, in half the hour."""
    first = await world.add_workload()
    second = await world.add_workload(tag=first.tag)
    other = await world.add_workload()
    await publish.run_once(world.context)
    start_ms = int(START.timestamp() * 1000)
    for hour in range(0, 48, 3):
        at_ms = start_ms + hour * 3_600_000 + 1_800_000
        for number, workload in enumerate((first, second, other)):
            event = world.event(
                workload, await world.admit(workload, 1), 10**number * (hour + 1), admitted_at_ms=at_ms,
                request_id=f"req_{hour:02}_{number}", route=f"route-{hour % 2}", units={"tokens": hour},
            )  # fmt: skip
            await world.append(workload, event.encode())
        await world.append(first, world.refusals(first, at_ms - at_ms % 60_000, 2).encode())
    await drain.run_once(world.context)
    return [first, second, other]


async def test_every_report_adds_up_to_the_rows_of_its_organization(
    world: World, workloads: list[Workload]
) -> None:
    for group_by in usage.GROUPS:
        found = await usage.report(world.postgres, workloads[0].tag, group_by, START, END, 200)
        expected = sum(row["cost"] for row in await world.ledger() if row["organization"] == workloads[0].tag)
        assert sum(row["cost"] for row in found.rows) == expected
        assert sum(row["requests"] for row in found.rows) == 32
        assert sum(row["refused"] for row in found.rows) == 32
        assert (sum(row["bytes_in"] for row in found.rows), sum(row["bytes_out"] for row in found.rows)) == (
            320,
            640,
        )
        assert found.next is None


async def test_accounts_and_keys_are_named(world: World, workloads: list[Workload]) -> None:
    by_account = await usage.report(world.postgres, workloads[0].tag, "account", START, END, 200)
    assert {(row["account"], row["name"]) for row in by_account.rows} == {
        (w.account, w.name) for w in workloads[:2]
    }
    by_key = await usage.report(world.postgres, workloads[0].tag, "key", START, END, 200)
    assert {(row["key"], row["account"], row["account_name"]) for row in by_key.rows} == {
        (w.key, w.account, w.name) for w in workloads[:2]
    }
    assert all(row["name"].startswith("key of") for row in by_key.rows)


async def test_days_and_hours_are_utc_and_in_order(world: World, workloads: list[Workload]) -> None:
    by_day = await usage.report(world.postgres, workloads[2].tag, "day", START, END, 200)
    assert [(row["day"], row["requests"]) for row in by_day.rows] == [("2026-03-01", 8), ("2026-03-02", 8)]
    by_hour = await usage.report(world.postgres, workloads[2].tag, "hour", START, END, 200)
    assert [row["hour"] for row in by_hour.rows][:2] == ["2026-03-01T00:00:00Z", "2026-03-01T03:00:00Z"]


async def test_bounds_are_rounded_outward_to_whole_hours(world: World, workloads: list[Workload]) -> None:
    at = START + timedelta(hours=3, minutes=59)
    found = await usage.report(world.postgres, workloads[2].tag, "hour", at, at + timedelta(seconds=1), 9)
    assert [row["hour"] for row in found.rows] == ["2026-03-01T03:00:00Z"]
    assert (await usage.report(world.postgres, workloads[2].tag, "hour", END, END, 9)).rows == []


async def test_pages_put_together_are_the_whole_report(world: World, workloads: list[Workload]) -> None:
    for group_by in usage.GROUPS:
        whole = await usage.report(world.postgres, workloads[0].tag, group_by, START, END, 200)
        rows: list[dict[str, object]] = []
        cursor: str | None = None
        while True:
            part = await usage.report(world.postgres, workloads[0].tag, group_by, START, END, 1, cursor)
            assert len(part.rows) == 1
            rows += part.rows
            cursor = part.next
            if cursor is None:
                break
        assert rows == whole.rows


async def test_rows_of_the_ledger_come_latest_first_in_pages(world: World, workloads: list[Workload]) -> None:
    whole = await usage.events(world.postgres, workloads[0].tag, START, END, 200)
    assert len(whole.rows) == 32
    assert whole.rows[0]["request_id"] == "req_45_1"
    assert whole.rows[0]["units"] == {"tokens": 45}
    places = [(row["admitted_at"], row["request_id"]) for row in whole.rows]
    assert places == sorted(places, reverse=True)
    rows, cursor = [], None
    while True:
        part = await usage.events(world.postgres, workloads[0].tag, START, END, 5, cursor)
        rows += part.rows
        if (cursor := part.next) is None:
            break
    assert rows == whole.rows


async def test_a_cursor_that_no_report_gave_is_refused(world: World) -> None:
    workload = await world.add_workload()
    encoded = [
        base64.urlsafe_b64encode(text).decode()
        for text in (b"{}", b"[]", b"[1]", b'["\\u0000"]', b'["a","b"]')
    ]
    for cursor in ("", "!!!", "x" * 1_000, "é", *encoded):
        with pytest.raises(Invalid, match="cursor"):
            await usage.report(world.postgres, workload.tag, "key", START, END, 5, cursor)
        with pytest.raises(Invalid, match="cursor"):
            await usage.events(world.postgres, workload.tag, START, END, 5, cursor)
