"""What may happen on the random walk, and how often: strategies out of which walk.py draws."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from gateway.contract.money import Microcredits
from gateway.contract.records import Pace
from tests.contract.desk import workload

STARTS_AT_MS: Final = 1_709_164_740_000  # 2024-02-28 23:59 UTC: the day before a leap day
PREPAID: Final = "Cask13"
WORKLOADS: Final = [
    workload(tag, account, key)
    for tag in ("Acme01", "Bolt02", PREPAID)
    for account in (0, 1)
    for key in (0, 1)
]
LIMITS: Final = [None, 0, 1, 40, 100, 250]
OBSERVED: Final = {"key": WORKLOADS[:1], "account": WORKLOADS[4:5], "organization": WORKLOADS[:1]}
"""Whose level only observes, at first."""
OPENING: Final = {"key": Microcredits(60), "account": Microcredits(100), "organization": Microcredits(150)}
"""The limits that walks begin with; of the prepaid organization's keys and accounts none, so that its grants are felt."""

BUSY: Final = WORKLOADS[::4]
"""One of each organization: half of what happens, happens to them, so that there is something for limits to bite on."""

workloads = st.sampled_from([*WORKLOADS, *BUSY * 4, *BUSY[-1:] * 3])
amounts = st.sampled_from([0, 0, 1, 7, 10, 25, 40, 100])
lifetimes_ms = st.sampled_from([1, 1_000, 60_000, 90_000_000])
some = st.integers(0, 999)
# Moments, minutes, hours, days and months that end; a clock that is set back by a little and by a day.
DAY_US: Final = 86_400_000_000
ON_US: Final = [
    1,
    400,
    999_999,
    1_000_000,
    10_000_000,
    60_000_000,
    3_600_000_000,
    DAY_US,
    7 * DAY_US,
    31 * DAY_US,
]
BACK_US: Final = [-1, -1_000, -60_000_000, -DAY_US]
passing_us = st.sampled_from([*ON_US, *BACK_US])
# Rates that divide the minute into whole microseconds; test_pace has the others.
paces = st.builds(
    Pace,
    st.sampled_from([None, 1, 1, 60, 600, 60_000]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, None, None, 0, 1, 3, 4]),
)
changes = st.one_of(
    st.fixed_dictionaries({"limit": st.sampled_from(LIMITS)}),
    st.fixed_dictionaries(
        {
            "period": st.sampled_from(["never", "hourly", "daily", "weekly", "monthly"]),
            "billing_day": st.sampled_from([1, 15, 29, 31]),
        }
    ),
    st.fixed_dictionaries({"enforcement": st.sampled_from(["enforce", "observe", "observe"])}),
    st.fixed_dictionaries(
        {"alerts": st.sampled_from([(80, 100), (), (1,), (50, 80, 100), (100, 150), (10, 20, 30, 40)])}
    ),
)
one_in_ten = st.sampled_from([False] * 9 + [True])
nearly = st.sampled_from([-1, 0, 0, 1])
"""Milliseconds from an edge."""
grants_after_ms = st.sampled_from([0, 1, 59_000, 59_000, 3_600_000, 86_400_000, None])
requests = st.tuples(some, amounts, one_in_ten)
settlements = st.tuples(some, amounts, st.sampled_from([True, True, True, False]))
