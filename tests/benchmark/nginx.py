"""Configuration of an nginx with one worker, as the user we are, that keeps what it writes in the rig's folder."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

OPEN_FILES = 20_000
FILES, UPLOADS = "/files/", "/uploads"
_ON_KEPT_CONNECTIONS = 'proxy_http_version 1.1; proxy_set_header Connection "";'
PASS = f"proxy_pass http://upstream; {_ON_KEPT_CONNECTIONS}"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def write_configuration(folder: Path, name: str, http: str, modules: tuple[Path, ...] = ()) -> Path:
    """`folder/name.conf` with `http` inside the http block; connections are kept for as long as the load lasts."""
    loads = "".join(f"load_module {module};\n" for module in modules)
    temporary = "".join(f"  {module}_temp_path {folder}/{name}.{module};\n" for module in _TEMPORARY)
    path = folder / f"{name}.conf"
    path.write_text(f"""{loads}daemon off;
user {pwd.getpwuid(os.geteuid()).pw_name};
worker_processes 1;
worker_rlimit_nofile {OPEN_FILES};
pid {folder}/{name}.pid;
error_log {folder}/{name}.error.log warn;
events {{ worker_connections 8192; }}
http {{
{temporary}  access_log off;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
{http}}}
""")
    return path


def upstream_block(port: int) -> str:
    """The rig's upstream on kept connections, as `http://upstream`, for use with `PASS`."""
    return f"""  upstream upstream {{
    server 127.0.0.1:{port};
    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
"""


def upstream_server(port: int, folder: Path, answer: str, body_bytes_max: int) -> str:
    """What the rig's upstream does: `answer` to every request; files of `folder`; and `answer` once it has read an upload.

    `return` by itself would answer an upload first and read it afterwards. Passing the question on, without the body, makes
    nginx wait for all of it, in memory.
    """
    return f"""{upstream_block(port)}  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ default_type application/json; return 200 '{answer}'; }}
    location {FILES} {{ alias {folder}/; sendfile on; }}
    location = {UPLOADS} {{
      client_max_body_size {body_bytes_max};
      client_body_buffer_size {body_bytes_max};
      proxy_method GET;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_pass http://upstream/;
      {_ON_KEPT_CONNECTIONS}
    }}
  }}
"""
