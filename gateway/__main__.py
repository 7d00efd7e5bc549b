"""`python -m gateway`, which is also `tollkeeper gateway`: check the settings, then supervise the workers."""

from __future__ import annotations

import argparse
import asyncio
import sys
from functools import partial

from gateway.logs import configure_logs
from gateway.route_table import SettingsError
from gateway.settings import GatewaySettings, load_settings
from gateway.supervisor import Supervisor, environment_with

_OPTIONS = ("listen", "management_listen", "workers", "config", "upstream", "access_log", "log_level")


def _parser() -> argparse.ArgumentParser:
    lines = [
        f"  TOLLKEEPER_{name.upper():<26} {field.description} (default: {field.default})"
        for name, field in GatewaySettings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="tollkeeper gateway",
        description="The data plane: recognises keys, holds and settles credits, forwards to upstreams.",
        epilog="Environment:\n"
        + "\n".join(lines)
        + "\n\nOptions win over the environment. Exit status: 0 stopped "
        "in order, 1 could not listen, 2 bad settings.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check-config", action="store_true", help="validate everything, list all problems, and exit"
    )
    for name in _OPTIONS:
        option = "--" + name.replace("_", "-")
        parser.add_argument(
            option, help=str(GatewaySettings.model_fields[name].description).replace("%", "%%")
        )
    return parser


def main() -> int:
    """Run the gateway; the exit status."""
    arguments = _parser().parse_args()
    overrides = {name: getattr(arguments, name) for name in _OPTIONS if getattr(arguments, name) is not None}
    try:
        loaded = load_settings(overrides)
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    if arguments.check_config:
        routes = loaded.routes.routes
        print(f"The settings are good: {len(routes)} route(s): {', '.join(route.name for route in routes)}.")
        return 0
    configure_logs(loaded.settings.log_level)
    supervise = Supervisor(loaded, environment_with(overrides), partial(load_settings, overrides)).run
    try:
        return asyncio.run(supervise())
    except OSError as error:
        print(f"The gateway cannot listen: {error}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
