"""Tollkeeper's gateway with one worker: recognise, admit, forward with the principal stamped, settle with an event."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

from control.embedded import free_port
from gateway.contract import layout
from tests.benchmark import rules
from tests.benchmark.contender import Contender
from tests.benchmark.processes import Child
from tests.benchmark.rig import Rig


class WholeJob(Contender):
    name = "whole-job"
    does = "whole job"
    charges = True
    access_log: ClassVar[str] = "off"
    price: ClassVar[str] = f'price.request = "{rules.PRICE_CREDITS}"\n'

    def absent(self) -> str | None:
        return None

    def start(self, rig: Rig) -> None:
        self.port, management_port = free_port(), free_port()
        routes = rig.folder / f"{self.name}.routes.toml"
        routes.write_text(
            f'[[route]]\nname = "{rules.ROUTE}"\npath = "/"\nupstream = ["http://127.0.0.1:{rig.upstream_port}"]\n'
            f"{self.price}"
        )
        command: list[str | Path] = [
            sys.executable, "-m", "gateway", "--listen", f"127.0.0.1:{self.port}",
            "--management-listen", f"127.0.0.1:{management_port}", "--workers", "1", "--config", routes,
        ]  # fmt: skip
        self._child = Child(
            self.name,
            command,
            core=rig.proxy_core,
            log=rig.folder / f"{self.name}.log",
            environment=self._environment(rig),
        )
        self._child.wait_ready(lambda: _answers_ready(management_port))

    def _environment(self, rig: Rig) -> dict[str, str]:
        """Ours without any setting of Tollkeeper's that happens to be in it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
        return inherited | {
            "TOLLKEEPER_REDIS_URL": rig.redis_url,
            "TOLLKEEPER_PEPPER": rig.pepper.hex(),
            "TOLLKEEPER_SHARDS": str(layout.SHARDS_DEFAULT),
            "TOLLKEEPER_ACCESS_LOG": self.access_log,
        }

    def working_pids(self) -> list[int]:
        """The worker. The supervisor above it is accounted for by itself."""
        first, *workers = self.pids()
        return workers or [first]


class WholeJobVaried(WholeJob):
    """The same under heads none of which is like the last: nothing that the gateway remembers of a head helps it."""

    name = "whole-job-varied"
    does = "whole job, every head new"
    heads_differ = True


class WholeJobMetered(WholeJob):
    """The same, priced by what the answer's JSON says was used."""

    name = "whole-job-metered"
    does = "whole job, JSON metered"
    price = (
        f'hold = "{rules.PRICE_CREDITS}"\n'
        "price.meters = [\n"
        '  { unit = "input_tokens", json = "/usage/prompt_tokens", per_1 = "0" },\n'
        f'  {{ unit = "output_tokens", json = "/usage/completion_tokens", per_1 = "{rules.PRICE_CREDITS}" }},\n'
        "]\n"
    )


class WholeJobLogged(WholeJob):
    """The same with one line a request in the access log, written to a file."""

    name = "whole-job-logged"
    does = "whole job, access log on"
    access_log = "on"


def _answers_ready(management_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{management_port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
