"""Periods as Redis counts them: where windows begin and end, by the calendar in UTC, to the millisecond."""

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from control.embedded.valkey import _server_binary
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.periods import PERIODS, Period, window_at
from gateway.contract.records import Budget, Hold
from tests.contract.desk import Desk, rules_of, workload

BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)


def ms(text: str) -> int:
    """Of a moment in UTC, as in 2024-02-29 12:00."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


def limited(limit: int | None, period: Period = "never", billing_day: int = 1, since_ms: int = 0) -> Budget:
    return Budget(None if limit is None else Microcredits(limit), period, billing_day, since_ms)


WINDOWS: list[tuple[Period, int, str, str, str]] = [
    # period, billing day, any moment in the window, its start, its end
    ("hourly", 1, "2024-03-15 12:34", "2024-03-15 12:00", "2024-03-15 13:00"),
    ("hourly", 1, "2023-12-31 23:59", "2023-12-31 23:00", "2024-01-01 00:00"),
    ("daily", 1, "2024-03-15 12:00", "2024-03-15 00:00", "2024-03-16 00:00"),
    ("daily", 1, "2024-02-28 23:59", "2024-02-28 00:00", "2024-02-29 00:00"),
    ("daily", 1, "2024-02-29 00:00", "2024-02-29 00:00", "2024-03-01 00:00"),
    ("daily", 1, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-01 00:00"),
    ("daily", 1, "2023-12-31 12:00", "2023-12-31 00:00", "2024-01-01 00:00"),
    ("weekly", 1, "2024-03-15 12:00", "2024-03-11 00:00", "2024-03-18 00:00"),
    ("weekly", 1, "2024-03-17 23:59", "2024-03-11 00:00", "2024-03-18 00:00"),
    ("weekly", 1, "2024-03-18 00:00", "2024-03-18 00:00", "2024-03-25 00:00"),
    ("weekly", 1, "2025-01-01 00:00", "2024-12-30 00:00", "2025-01-06 00:00"),
    ("weekly", 1, "2024-02-29 12:00", "2024-02-26 00:00", "2024-03-04 00:00"),
    ("monthly", 1, "2024-03-15 12:00", "2024-03-01 00:00", "2024-04-01 00:00"),
    ("monthly", 1, "2023-12-31 23:59", "2023-12-01 00:00", "2024-01-01 00:00"),
    ("monthly", 15, "2024-12-31 23:59", "2024-12-15 00:00", "2025-01-15 00:00"),
    ("monthly", 15, "2025-01-14 23:59", "2024-12-15 00:00", "2025-01-15 00:00"),
    ("monthly", 31, "2024-02-15 12:00", "2024-01-31 00:00", "2024-02-29 00:00"),
    ("monthly", 31, "2024-02-29 00:00", "2024-02-29 00:00", "2024-03-31 00:00"),
    ("monthly", 31, "2023-02-15 12:00", "2023-01-31 00:00", "2023-02-28 00:00"),
    ("monthly", 31, "2023-02-28 00:00", "2023-02-28 00:00", "2023-03-31 00:00"),
    ("monthly", 31, "2024-04-30 00:00", "2024-04-30 00:00", "2024-05-31 00:00"),
    ("monthly", 30, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-30 00:00"),
    ("monthly", 29, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-29 00:00"),
    ("monthly", 29, "2024-02-28 12:00", "2024-01-29 00:00", "2024-02-29 00:00"),
    ("monthly", 31, "2100-02-28 12:00", "2100-02-28 00:00", "2100-03-31 00:00"),
    ("monthly", 31, "2000-02-29 12:00", "2000-02-29 00:00", "2000-03-31 00:00"),
]


@every_level
@pytest.mark.parametrize(("period", "billing_day", "moment", "start", "end"), WINDOWS)
def test_a_window_begins_and_ends_at_the_very_millisecond(
    clocked: Desk, level: Level, period: Period, billing_day: int, moment: str, start: str, end: str
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, period, billing_day)})
    place = LEVELS.index(level)
    clocked.set_time(ms(start) - 1, 999)
    before = Hold.unpack(clocked.admitted(BUILDER, 100).encode())
    assert before.windows[place] < ms(start)
    for request, at_ms in (("first", ms(start)), ("later", ms(moment))):
        clocked.set_time(at_ms)
        hold = Hold.unpack(clocked.admitted(BUILDER, 50, request=request).encode())
        assert hold.windows[place] == ms(start)
    clocked.set_time(ms(end) - 1, 999)
    assert clocked.admit(BUILDER, 1, request="last") == ["budget", level, 100, 0, 100, ms(end)]
    clocked.set_time(ms(end))
    fresh = Hold.unpack(clocked.admitted(BUILDER, 100, request="fresh").encode())
    assert fresh.windows[place] == ms(end)
    assert clocked.counters(BUILDER, level) == (0, 100)


@every_level
def test_without_a_period_a_limit_is_for_ever(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100)})
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 100), 100)
    for moment in ("2024-03-31 23:59", "2025-01-01 00:00", "2099-12-31 23:59"):
        clocked.set_time(ms(moment))
        assert clocked.admit(BUILDER) == ["budget", level, 100, 100, 0, 0]


@pytest.mark.parametrize("period", PERIODS)
def test_levels_roll_each_by_its_own_period(clocked: Desk, period: Period) -> None:
    """Only the level whose window has ended starts afresh; a request must still fit all of them."""
    clocked.set_time(ms("2024-03-31 23:59"))
    clocked.publish_all(BUILDER, key=limited(100, "hourly"), account=limited(1_000, period))
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 100), 100)
    clocked.set_time(ms("2024-04-01 00:00"))  # a Monday, and the first of a month
    clocked.admitted(BUILDER, 30, request="r2")
    assert clocked.counters(BUILDER, "key") == (0, 30)
    assert clocked.counters(BUILDER, "account") == ((100, 30) if period == "never" else (0, 30))
    assert clocked.counters(BUILDER, "organization") == (100, 30)


@every_level
def test_windows_in_which_nobody_came_are_passed_over(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "monthly", 31)})
    clocked.admitted(BUILDER, 100)
    clocked.set_time(ms("2031-02-28 12:00"))
    hold = Hold.unpack(clocked.admitted(BUILDER, 100, request="r2").encode())
    assert hold.windows[LEVELS.index(level)] == ms("2031-02-28 00:00")


# What an edit does to the present window.


@every_level
def test_a_limit_lowered_under_what_is_spent_refuses_from_the_next_request_and_raised_lets_it_pass(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 60), 60)
    passes = []
    for version, limit in enumerate((60, 59, 0, 61, 60, None, 1), start=2):
        clocked.publish(rules_of(level, BUILDER, limited(limit, "daily"), version))
        passes.append(isinstance(clocked.admit(BUILDER, 0, request=f"r{version}"), str))
    assert passes == [False, False, False, True, False, True, False]
    assert clocked.counters(BUILDER, level) == (60, 0)


@every_level
@pytest.mark.parametrize("old", PERIODS)
@pytest.mark.parametrize("new", PERIODS)
def test_a_changed_period_starts_a_fresh_window_and_what_was_booked_stays_booked(
    clocked: Desk, level: Level, old: Period, new: Period
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, old)})
    running = clocked.admitted(BUILDER, 40)
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 60, request="r2"), 60, '{"n":1}')
    now_ms = ms("2024-03-15 12:30")
    clocked.set_time(now_ms)
    clocked.publish(rules_of(level, BUILDER, limited(100, new, since_ms=now_ms), 2))
    hold = Hold.unpack(clocked.admitted(BUILDER, 100, request="r3").encode())
    assert hold.windows[LEVELS.index(level)] == now_ms
    end_ms = window_at(new, now_ms).end_ms
    resets_at = 0 if new == "never" else end_ms
    assert clocked.admit(BUILDER, 1, request="r4") == ["budget", level, 100, 0, 100, resets_at]
    clocked.settle(BUILDER, running, 40, '{"n":2}')
    assert clocked.counters(BUILDER, level) == (0, 100), "it belongs to the window in which it was admitted"
    assert clocked.events(BUILDER) == ['{"n":1}', '{"n":2}']


def test_another_billing_day_alone_re_opens_nothing_that_is_used_up(clocked: Desk) -> None:
    """Its window may begin later than the present one, and then it is a new one; never one that lies before."""
    clocked.publish_all(BUILDER, organization=limited(100, "monthly", 10))
    clocked.admitted(BUILDER, 100)
    clocked.publish(rules_of("organization", BUILDER, limited(100, "monthly", 5), 2))
    refusal = ["budget", "organization", 100, 0, 100, ms("2024-04-05 00:00")]
    assert clocked.admit(BUILDER, 1, request="r2") == refusal
    clocked.publish(rules_of("organization", BUILDER, limited(100, "monthly", 14), 3))
    clocked.admitted(BUILDER, 100, request="r3")


@every_level
def test_a_clock_that_steps_back_over_a_boundary_re_opens_nothing(clocked: Desk, level: Level) -> None:
    clocked.set_time(ms("2024-01-01 00:00"))
    clocked.publish_all(BUILDER, **{level: limited(100, "monthly")})
    clocked.admitted(BUILDER, 100)
    for moment in ("2023-12-31 23:59", "2023-11-15 00:00", "2024-01-01 00:00"):
        clocked.set_time(ms(moment))
        assert clocked.admit(BUILDER, 1, request="r2") == [
            "budget",
            level,
            100,
            0,
            100,
            ms("2024-02-01 00:00"),
        ]


# Summer time.


@pytest.fixture
def abroad(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A Redis, and this process, whose time zone is not UTC."""
    zone: str = request.param
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    socket = tmp_path / "redis"
    command = [
        str(_server_binary()),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env={"PATH": os.defpath, "TZ": zone}, cwd=tmp_path, stdout=log) as server,
    ):
        client = redis.Redis(unix_socket_path=str(socket))
        try:
            until = time.monotonic() + 30
            while not _answers(client):
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, "Valkey did not start within 30 s"
                time.sleep(0.01)
            yield Desk(client, clock=True)
        finally:
            client.close()
            server.terminate()
            server.wait(timeout=30)
            monkeypatch.undo()
            time.tzset()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


SUMMER_AND_WINTER = [
    ("America/New_York", ["2024-03-10 06:59", "2024-03-10 07:00", "2024-11-03 05:30", "2024-11-03 06:30"]),
    ("Europe/Berlin", ["2024-03-31 00:59", "2024-03-31 01:00", "2024-10-27 00:30", "2024-10-27 01:30"]),
    ("Pacific/Kiritimati", ["2024-03-31 09:59", "2024-03-31 10:00", "2023-12-31 10:00"]),
]


@pytest.mark.parametrize(("abroad", "moments"), SUMMER_AND_WINTER, indirect=["abroad"])
def test_neither_summer_time_nor_the_machines_time_zone_moves_a_window(
    abroad: Desk, moments: list[str]
) -> None:
    assert time.localtime(ms(moments[0]) // 1_000).tm_hour != datetime.fromisoformat(moments[0]).hour
    for moment in moments:
        abroad.client.flushdb()
        day = moment[:10]
        next_day = f"{datetime.fromisoformat(day) + timedelta(days=1):%Y-%m-%d}"
        abroad = Desk(abroad.client, clock=True)
        abroad.set_time(ms(moment))
        abroad.publish_all(
            BUILDER,
            key=limited(100, "hourly"),
            account=limited(100, "daily"),
            organization=limited(100, "monthly"),
        )
        hold = Hold.unpack(abroad.admitted(BUILDER, 50).encode())
        month = ms(f"{day[:7]}-01 00:00")
        assert hold.windows == (ms(f"{moment[:13]}:00"), ms(f"{day} 00:00"), month)
        assert window_at("daily", ms(moment)).end_ms == ms(f"{next_day} 00:00")
        abroad.set_time(ms(f"{next_day} 00:00") - 1)
        refusal = ["budget", "account", 100, 0, 50, ms(f"{next_day} 00:00")]
        assert abroad.admit(BUILDER, 51, request="r2") == refusal
        abroad.set_time(ms(f"{next_day} 00:00"))
        abroad.admitted(BUILDER, 50, request="r3")
        assert abroad.counters(BUILDER, "account") == (0, 50)
