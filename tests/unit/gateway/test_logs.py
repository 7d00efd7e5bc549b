"""The access log: exactly the fraction that was asked for, and never in anybody's way."""

import io
import os
import threading
import time
from fractions import Fraction

import orjson
import pytest
import structlog

from gateway.logs import LINES_KEPT_MAX, AccessLog, configure_logs


def wait_until(condition: object, seconds: float = 10.0) -> None:
    """Until `condition()` is true, at most `seconds`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "fraction", ["0", "1", "0.5", "0.1", "0.01", "0.001", "0.3", "0.7", "0.999", "0.0625", "0.333333"]
)
def test_of_many_requests_exactly_the_fraction_is_written(fraction: str) -> None:
    log = AccessLog(float(fraction), io.BytesIO())
    requests = 20_000
    written = 0
    for number in range(1, requests + 1):
        written += log.wants_line()
        assert written == int(number * Fraction(fraction)), number
    log.close()


def test_lines_are_written_whole_in_order_and_each_ended() -> None:
    stream = io.BytesIO()
    log = AccessLog(1.0, stream)
    for number in range(5000):
        log.write(b'{"n":%d}' % number)
    log.close()
    assert [orjson.loads(line)["n"] for line in stream.getvalue().splitlines()] == list(range(5000))
    assert stream.getvalue().endswith(b"}\n")
    assert log.dropped == 0


def test_a_log_that_is_off_writes_nothing_and_starts_no_thread() -> None:
    before = threading.active_count()
    log = AccessLog(0.0, io.BytesIO())
    assert threading.active_count() == before
    assert not any(log.wants_line() for _ in range(100))
    log.close()


class StandingStill(io.RawIOBase):
    """A stream whose reader does not read until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()
        self.lines = 0

    def write(self, data: object) -> int:
        assert isinstance(data, bytes)
        self.is_held.set()
        self.may_go_on.wait(30)
        self.lines += data.count(b"\n")
        return len(data)


def test_a_reader_that_stands_still_blocks_nobody_and_what_is_lost_is_counted() -> None:
    stream = StandingStill()
    log = AccessLog(1.0, stream)  # type: ignore[arg-type]
    log.write(b"{}")
    assert stream.is_held.wait(10)
    began = time.monotonic()
    for _ in range(LINES_KEPT_MAX + 123):
        log.write(b"{}")
    assert time.monotonic() - began < 5, "writing a line waits for the log's reader"
    assert log.dropped == 123
    stream.may_go_on.set()
    log.close(10)
    assert stream.lines == LINES_KEPT_MAX + 1


def test_closing_waits_only_so_long_for_a_reader_that_stands_still() -> None:
    stream = StandingStill()
    log = AccessLog(1.0, stream)  # type: ignore[arg-type]
    log.write(b"{}")
    assert stream.is_held.wait(10)
    began = time.monotonic()
    log.close(0.2)
    assert 0.1 < time.monotonic() - began < 5
    stream.may_go_on.set()


def test_a_reader_that_is_gone_turns_the_log_off_and_breaks_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        log = AccessLog(1.0, stream)
        assert log.wants_line()
        log.write(b"{}")
        wait_until(lambda: not log.is_on)
        assert not log.wants_line()
        log.close()


def test_log_lines_are_json_from_the_level_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        configure_logs("Warning")
        log = structlog.get_logger("gateway.test")
        log.info("too_little")
        log.warning("just_enough", count=3)
        (line,) = capsys.readouterr().err.splitlines()
    finally:
        structlog.configure(**before)
    fields = orjson.loads(line)
    assert (fields["event"], fields["level"], fields["count"]) == ("just_enough", "warning", 3)
    assert fields["timestamp"].endswith("Z")
