"""One installation for all faults, started once; every test ends with it whole again and its books in order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from control.embedded import wait_until
from tests.conftest import run_apart
from tests.faults.stack import Stack
from tests.system.installation import Installation, check_logs, opened
from tests.system.loop_thread import LoopThread
from tests.system.recording_upstream import RecordingUpstream

ROUTES = """
[[route]]
name = "priced"
path = "/priced/"
upstream = ["{upstream}"]
price.request = "0.10"

[[route]]
name = "free"
path = "/free/"
upstream = ["{upstream}"]
"""


@pytest.fixture(scope="session")
def fault_upstream() -> Iterator[RecordingUpstream]:
    thread = LoopThread("upstream of the faults")
    recording = RecordingUpstream(thread)
    yield recording
    recording.close()
    thread.close()


@pytest.fixture(scope="session")
def running_stack(fault_upstream: RecordingUpstream) -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="tollkeeper-faults-"))
    directory.chmod(0o711)
    stack = Stack(directory, ROUTES.format(upstream=fault_upstream.url))

    async def start() -> None:
        try:
            await stack.start()
        except BaseException:
            await stack.close()
            raise

    run_apart(start)
    yield stack
    run_apart(stack.close)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def stack(running_stack: Stack) -> AsyncIterator[Stack]:
    """The installation, ready; after the test, no process may have logged anything that it did not expect."""
    await running_stack.heal()
    await wait_until(running_stack.gateway_is_ready, 30, "the gateway to be ready")
    yield running_stack
    check_logs(running_stack.directory)


@pytest.fixture
async def installation(stack: Stack) -> AsyncIterator[Installation]:
    async with opened(stack.addresses) as clients:
        yield clients
