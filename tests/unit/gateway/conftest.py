"""Quiet logs: what goes wrong in these tests is looked at in counts and answers."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _no_log_lines() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
