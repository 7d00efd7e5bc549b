"""`tollkeeper demo`: the story that it tells is what really happened."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import TOLLKEEPER, environment, remove_data, started

FREE_PORTS = ("--port", "0", "--control-port", "0", "--management-port", "0")


@pytest.fixture
def data() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tollkeeper-demo-"))
    yield directory
    remove_data(directory)


def tell(data: Path) -> str:
    with started("demo", "--once", "--data", str(data), *FREE_PORTS) as demo:
        assert demo.wait(100) == 0, "\n".join(demo.lines + demo.talk)
        return "\n".join(demo.lines)


@pytest.mark.slow
def test_the_story_turns_out_as_told_the_first_time_and_again_with_the_data_of_the_first(data: Path) -> None:
    first = tell(data)
    assert "X-Principal: service-account/acme/production-worker" in first
    assert re.search(r"^ +200 +GET /anything/hello", first, re.MULTILINE)
    assert re.search(r"^ +401 +GET /anything/hello", first, re.MULTILINE)
    assert re.search(r"^ +402 +GET /anything/again", first, re.MULTILINE)
    assert re.search(r"level key, limit 0\.05, spent 0\.05, resets at \d{4}-\d\d-\d\dT00:00:00Z", first)
    assert len(re.findall(r"/anything/(?:hello|again) +echo +200 +completed +0\.01 +0\.01", first)) == 5
    assert re.search(r"/v1/chat/completions +models +200 +completed +0\.04 +0\.029 ", first), (
        "3 and 13 tokens"
    )
    assert re.search(r"production-worker: 499\.921 of 500 monthly", first)
    assert len(first.splitlines()) <= 60, "the story is to be seen on one screen"

    second = tell(data)
    assert "Found organization acme" in second
    assert re.search(r"production-worker: 499\.842 of 500 monthly", second)


@pytest.mark.slow
def test_it_stays_up_until_ctrl_c_and_fails_when_the_story_is_not_as_told(data: Path) -> None:
    with started("demo", "--data", str(data), *FREE_PORTS) as demo:
        while "Ctrl-C ends the demo" not in demo.line():
            pass
        blocked = subprocess.run(
            [
                *TOLLKEEPER,
                "accounts",
                "update",
                "acme/production-worker",
                "--limit",
                "0",
                "--data",
                str(data),
            ],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert blocked.returncode == 0, blocked.stderr
        assert demo.stop() == 0, demo.talk
    with started("demo", "--once", "--data", str(data), *FREE_PORTS) as demo:
        assert demo.wait(100) == 1
        assert "did not turn out as told: the request with a good key was answered 402" in "\n".join(
            demo.talk
        )
