"""nginx + Lua + lua-nginx-redis doing the whole job: how API gateways on nginx (Kong, APISIX) are built.

It sends the very same scripts with the same arguments, one request a call (its requests know nothing of each other), and an
event with the same fields as Tollkeeper's gateway does, encodes it with cjson and keeps the same counts and histograms, as
the plugins of those gateways do. Where the two differ, the peer is favoured: its Lua has no keyed BLAKE2b, so the digest is
HMAC-SHA1 out of nginx's own C; it extends no hold. A socket cannot be used in the log phase, so it settles from a timer of
zero seconds, as those gateways do.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from control.embedded import free_port
from gateway.contract import scripts
from tests.benchmark import nginx, rules
from tests.benchmark.contender import Contender
from tests.benchmark.processes import BenchmarkFailed, Child, accepts, program
from tests.benchmark.rig import Rig

_MODULES = tuple(
    Path("/usr/lib/nginx/modules") / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")
)
_LIBRARIES = Path("/usr/share/lua/5.1")
_REDIS_CLIENT = _LIBRARIES / "nginx" / "redis.lua"


def _cjson() -> Path | None:
    """Where Debian's lua-cjson put its library: the folder depends on the processor."""
    return next(iter(sorted(Path("/usr/lib").glob("*/lua/5.1/cjson.so"))), None)


class NginxLua(Contender):
    name = "nginx-lua"
    does = "whole job"
    charges = True

    def __init__(self) -> None:
        super().__init__()
        self._charged: rules.Charged | None = None

    def absent(self) -> str | None:
        if program("nginx") is None:
            return "nginx is not installed"
        missing = [path.name for path in (*_MODULES, _REDIS_CLIENT) if not path.is_file()]
        if _cjson() is None:
            missing.append("cjson.so")
        return (
            f"libnginx-mod-http-lua, lua-nginx-redis or lua-cjson is not installed ({', '.join(missing)})"
            if missing
            else None
        )

    def start(self, rig: Rig) -> None:
        self.port = free_port()
        tag, key_id, token = rules.mint()
        digest = hmac.digest(rig.pepper, token.encode(), hashlib.sha1)
        self._charged = rules.publish(rig.client, tag, key_id, token, digest)
        config = self._write_configuration(rig)
        command = [program("nginx") or "nginx", "-p", rig.folder, "-c", config]
        self._child = Child(self.name, command, core=rig.proxy_core, log=rig.folder / f"{self.name}.log")
        self._child.wait_ready(lambda: accepts(self.port))

    def charged(self, rig: Rig) -> rules.Charged:
        if self._charged is None:
            raise BenchmarkFailed(f"{self.name} is not running")
        return self._charged

    def _write_configuration(self, rig: Rig) -> Path:
        source = (Path(__file__).with_name("whole_job.lua")).read_text()
        facts = {
            "@PEPPER@": rig.pepper.hex(),
            "@REDIS_PORT@": str(rig.redis_port),
            "@REDIS_PASSWORD@": rig.redis_password,
            "@ADMIT@": scripts.ADMIT.sha,
            "@SETTLE@": scripts.SETTLE.sha,
            "@ROUTE@": rules.ROUTE,
            "@PRICE@": str(rules.PRICE_MICROCREDITS),
        }
        for mark, fact in facts.items():
            source = source.replace(mark, fact)
        module = rig.folder / "whole_job.lua"
        module.touch(mode=0o600)
        module.write_text(source)
        cjson = _cjson()
        http = f"""  lua_package_path "{rig.folder}/?.lua;{_LIBRARIES}/?.lua;;";
  lua_package_cpath "{cjson.parent if cjson else ""}/?.so;;";
  lua_max_pending_timers 4096;
  lua_max_running_timers 2048;
  init_by_lua_block {{ whole_job = require "whole_job" }}
{nginx.upstream_block(rig.upstream_port)}  server {{
    listen 127.0.0.1:{self.port} backlog=1024;
    location / {{
      access_by_lua_block {{ whole_job.admit() }}
      log_by_lua_block {{ whole_job.settle() }}
      {nginx.PASS}
    }}
  }}
"""
        return nginx.write_configuration(rig.folder, self.name, http, _MODULES)
