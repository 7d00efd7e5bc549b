"""`window.lua` and `periods.py` give the same windows, so what Redis counts and what the ledger is asked agree."""

import random
from collections.abc import Sequence
from importlib.resources import files

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.periods import PERIODS, Period, window_at

DAY_MS = 86_400_000
YEAR_2100_ENDS_MS = 4_133_980_800_000

WINDOW_LUA = (files("gateway.contract.scripts") / "window.lua").read_text("utf-8")
WINDOWS = (
    WINDOW_LUA
    + """
local found = {}
for index = 1, #ARGV, 4 do
  local at, billing_day, since = tonumber(ARGV[index + 1]), tonumber(ARGV[index + 2]), tonumber(ARGV[index + 3])
  local start, finish = window_at(ARGV[index], at, billing_day, since)
  found[#found + 1] = ('%.0f %.0f'):format(start, finish)
end
return found
"""
)

Question = tuple[Period, int, int, int]
"""(period, at_ms, billing_day, since_ms)"""

INSTANTS = st.integers(0, YEAR_2100_ENDS_MS - 1)


def _in_lua(client: redis.Redis, questions: Sequence[Question]) -> list[tuple[int, ...]]:
    answers = client.eval(WINDOWS, 0, *(part for question in questions for part in question))
    return [tuple(int(number) for number in answer.split()) for answer in answers]


def _in_python(question: Question) -> tuple[int, int]:
    period, at_ms, billing_day, since_ms = question
    window = window_at(period, at_ms, billing_day=billing_day, since_ms=since_ms)
    return window.start_ms, window.end_ms


def _assert_agree(client: redis.Redis, questions: Sequence[Question]) -> None:
    for question, answer in zip(questions, _in_lua(client, questions), strict=True):
        assert answer == _in_python(question), question


def test_lua_and_python_agree_on_any_instant_of_1970_to_2100(valkey: redis.Redis) -> None:
    @settings(
        max_examples=150, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(
        st.lists(
            st.tuples(st.sampled_from(PERIODS), INSTANTS, st.integers(1, 31), INSTANTS | st.just(0)),
            min_size=30,
        )
    )
    def agree(questions: list[Question]) -> None:
        _assert_agree(valkey, questions)

    agree()


def test_lua_and_python_agree_around_every_midnight_of_1970_to_2100(valkey: redis.Redis) -> None:
    """At each of 47 847 midnights, or a millisecond before or after it; chance chooses which, and the billing day."""
    chosen = random.Random(5)
    questions: list[Question] = []
    for midnight in range(DAY_MS, YEAR_2100_ENDS_MS, DAY_MS):
        offset, billing_day = chosen.choice((-1, 0, 1)), chosen.choice((1, 15, 28, 29, 30, 31))
        questions.append(("monthly", midnight + offset, billing_day, 0))
    for start in range(0, len(questions), 1_500):
        _assert_agree(valkey, questions[start : start + 1_500])


def test_lua_and_python_agree_at_both_ends_of_the_windows_they_name(valkey: redis.Redis) -> None:
    chosen = random.Random(7)
    for period in PERIODS:
        for billing_day in range(1, 32):
            at_ms = chosen.randrange(YEAR_2100_ENDS_MS)
            start_ms, end_ms = _in_python((period, at_ms, billing_day, 0))
            edges = [
                edge for edge in (start_ms - 1, start_ms, end_ms - 1, end_ms) if 0 <= edge < YEAR_2100_ENDS_MS
            ]
            _assert_agree(
                valkey,
                [(period, edge, billing_day, since) for edge in edges for since in (0, at_ms, start_ms)],
            )
