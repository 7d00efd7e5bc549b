"""Who is waited for, and for how long: at every stage of a request exactly one is to blame for a standstill."""

from __future__ import annotations

from itertools import product

import pytest

from gateway.patience import HALF_TUNNEL_S, Overdue, overdue
from gateway.routing import Timeouts

TIMEOUTS = Timeouts(connect_s=1.0, first_byte_s=20.0, between_bytes_s=10.0, tunnel_idle_s=300.0)
BODY_S = 5.0
FLAGS = ("is_tunnel", "client_is_full", "upstream_is_full", "body_done", "answer_begun", "answer_done")


def blamed(still_s: float, *said: str, timeouts: Timeouts = TIMEOUTS) -> Overdue | None:
    """Who is, when nothing has moved for so long and these flags are up."""
    assert set(said) <= set(FLAGS)
    return overdue(
        still_s, timeouts, BODY_S,
        is_tunnel="is_tunnel" in said, client_is_full="client_is_full" in said,
        upstream_is_full="upstream_is_full" in said, body_done="body_done" in said,
        answer_begun="answer_begun" in said, answer_done="answer_done" in said,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "who", "limit_s"),
    [
        ((), Overdue.BODY, BODY_S),
        (("upstream_is_full",), Overdue.SENDING, 10.0),
        (("body_done",), Overdue.FIRST_BYTE, 20.0),
        (("body_done", "upstream_is_full"), Overdue.FIRST_BYTE, 20.0),
        (("body_done", "answer_begun"), Overdue.BETWEEN_BYTES, 10.0),
        (("answer_begun",), Overdue.BETWEEN_BYTES, 10.0),
        (("answer_begun", "upstream_is_full"), Overdue.BETWEEN_BYTES, 10.0),
        (("answer_begun", "answer_done"), Overdue.REST_OF_BODY, BODY_S),
        (("body_done", "answer_begun", "client_is_full"), Overdue.READER, BODY_S),
        (("answer_begun", "answer_done", "client_is_full"), Overdue.READER, BODY_S),
        (("is_tunnel", "answer_begun"), Overdue.TUNNEL, 300.0),
        (("is_tunnel", "answer_begun", "client_is_full"), Overdue.READER, BODY_S),
        (("is_tunnel", "answer_begun", "upstream_is_full"), Overdue.TUNNEL, 300.0),
        (("is_tunnel", "answer_begun", "body_done"), Overdue.TUNNEL, HALF_TUNNEL_S),
        (("is_tunnel", "answer_begun", "answer_done"), Overdue.TUNNEL, HALF_TUNNEL_S),
    ],
)  # fmt: skip
def test_who_is_waited_for_has_so_long_and_no_longer(
    said: tuple[str, ...], who: Overdue, limit_s: float
) -> None:
    assert blamed(limit_s, *said) is None
    assert blamed(limit_s + 0.001, *said) is who


def test_half_a_tunnel_is_given_no_more_time_than_a_whole_one() -> None:
    short = Timeouts(tunnel_idle_s=2.0)
    for said in (("is_tunnel",), ("is_tunnel", "body_done"), ("is_tunnel", "answer_done")):
        assert blamed(2.0, *said, timeouts=short) is None
        assert blamed(2.1, *said, timeouts=short) is Overdue.TUNNEL


def test_there_is_an_end_to_every_wait_and_time_to_every_wait() -> None:
    for flags in product((False, True), repeat=len(FLAGS)):
        said = [name for name, is_up in zip(FLAGS, flags, strict=True) if is_up]
        assert blamed(0.0, *said) is None, said
        assert blamed(301.0, *said) is not None, said


def test_everybody_who_may_be_waited_for_is_named() -> None:
    found = {
        blamed(1e6, *(name for name, is_up in zip(FLAGS, flags, strict=True) if is_up))
        for flags in product((False, True), repeat=len(FLAGS))
    }
    assert found == set(Overdue)
