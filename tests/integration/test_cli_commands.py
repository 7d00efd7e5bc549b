"""The commands of the CLI as programs, against a real control plane: what they print where, and how they end."""

import asyncio
import json
import os
import pty
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import asyncpg
import pytest
import typer.main

from control.cli import app
from control.cli.schema import prepare
from control.embedded import free_port, wait_until
from gateway.contract.token import PATTERN

COMMAND = (sys.executable, "-P", "-m", "control.cli")


def run(
    *arguments: str, env: dict[str, str], stdin: int = subprocess.DEVNULL
) -> "subprocess.CompletedProcess[str]":
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=bare | env,
    )


@dataclass(frozen=True, slots=True)
class Installation:
    """A running control plane, and the environment that leads the commands to it."""

    env: dict[str, str]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return run(*arguments, env=self.env)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def output(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def installation(migrated_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    """`tollkeeper control` on a database and a Redis of this test's own."""
    tokens: list[str] = []
    asyncio.run(prepare(migrated_dsn, tokens.append))
    url = f"http://127.0.0.1:{free_port()}"
    servers = {
        "TOLLKEEPER_POSTGRES_DSN": migrated_dsn,
        "TOLLKEEPER_REDIS_URL": redis_url,
        "TOLLKEEPER_PEPPER": secrets.token_hex(32),
    }
    with (tmp_path / "control.log").open("w+") as log:
        process = subprocess.Popen(
            [*COMMAND, "control", "--listen", url.removeprefix("http://")],
            env=os.environ | servers,
            stdout=log,
            stderr=log,
        )
        try:
            asyncio.run(
                wait_until(
                    lambda: process.poll() is not None or answers(url), 30, "the control plane to be ready"
                )
            )
            assert process.poll() is None, (tmp_path / "control.log").read_text()
            client = {"TOLLKEEPER_CONTROL_URL": url, "TOLLKEEPER_OPERATOR_TOKEN": tokens[0]}
            yield Installation(servers | client)
        finally:
            process.terminate()
            assert process.wait(20) == 0


def test_a_key_is_made_by_three_commands_and_its_token_is_all_that_standard_output_holds(
    installation: Installation,
) -> None:
    installation.output(
        "orgs", "create", "acme", "--limit", "1000", "--period", "monthly", "--billing-day", "31"
    )
    installation.output("accounts", "create", "acme", "nightly-report", "--display-name", "Nightly Report")
    done = installation.run("keys", "create", "acme/nightly-report", "--name", "prod", "--limit", "2.5")
    assert PATTERN.fullmatch(done.stdout.strip().encode())
    assert done.stdout.strip() not in done.stderr
    assert "shown this once" in done.stderr

    (key,) = installation.json("keys", "list", "acme/nightly-report")["data"]
    assert (key["name"], key["credit_limit"], key["status"]) == ("prod", "2.5", "active")
    shown = installation.output("keys", "list", "acme/nightly-report")
    assert key["id"] in shown
    assert key["hint"] in shown
    assert done.stdout.strip() not in shown
    organization = installation.json("orgs", "show", "acme")
    assert (organization["credit_limit"], organization["billing_day"]) == ("1000", 31)


def test_limits_and_pace_are_set_and_lifted_with_options_and_the_quota_explains_them(
    installation: Installation,
) -> None:
    limits = ("--enforcement", "observe", "--alerts", "100,50%")
    pace = ("--requests-per-minute", "60", "--burst", "5", "--requests-in-flight", "3")
    installation.output("orgs", "create", "acme", "--limit", "20", *limits)
    installation.output("accounts", "create", "acme", "nightly-report", *limits, *pace)
    created = installation.json("keys", "create", "acme/nightly-report", "--name", "prod", *limits, *pace)
    key = created["key"]["id"]
    for shown in (
        installation.json("orgs", "show", "acme"),
        installation.json("accounts", "show", "acme/nightly-report"),
        installation.json("keys", "show", key),
    ):
        assert (shown["enforcement"], shown["alert_thresholds"]) == ("observe", [50, 100])
    for command, noun in (("accounts", "acme/nightly-report"), ("keys", key)):
        shown = installation.json(command, "show", noun)
        assert (shown["requests_per_minute"], shown["burst"], shown["requests_in_flight"]) == (60, 5, 3)
        lifted = installation.json(
            command,
            "update",
            noun,
            "--requests-per-minute",
            "none",
            "--requests-in-flight",
            "none",
            "--alerts",
            "none",
        )
        assert (lifted["requests_per_minute"], lifted["burst"], lifted["requests_in_flight"]) == (None,) * 3
        assert lifted["alert_thresholds"] == []
    wrong = installation.run("keys", "update", key, "--burst", "many")
    assert wrong.returncode == 2
    assert "--burst" in wrong.stderr

    installation.output("orgs", "update", "acme", "--enforcement", "enforce")
    quota = installation.run("keys", "quota", key)
    assert "organization's limit, 20 credits shared" in quota.stdout
    assert installation.json("keys", "quota", key)["binding"] == "organization"


def test_credits_are_granted_to_a_prepaid_organization_and_listed(installation: Installation) -> None:
    installation.output("orgs", "create", "acme")
    refused = installation.run("orgs", "grant", "acme", "5")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "prepaid" in refused.stderr

    assert installation.json("orgs", "update", "acme", "--billing", "prepaid")["granted"] == "0"
    expires = ("--expires", "2033-01-31T12:00:00Z")
    for _ in range(2):
        installation.output(
            "orgs", "grant", "acme", "5", *expires, "--note", "invoice 7", "--idempotency-key", "7"
        )
    installation.output("orgs", "grant", "acme", "2.5")
    rows = installation.json("orgs", "grants", "acme")["data"]
    assert [(row["amount"], row["left"], row["note"]) for row in rows] == [
        ("2.5", "2.5", None),
        ("5", "5", "invoice 7"),
    ]
    assert "invoice 7" in installation.output("orgs", "grants", "acme")
    assert installation.json("orgs", "show", "acme")["remaining"] == "7.5"
    assert installation.json("orgs", "update", "acme", "--billing", "none")["billing"] is None


def test_a_key_is_switched_off_and_on_again_until_it_is_revoked(installation: Installation) -> None:
    installation.output("orgs", "create", "acme")
    installation.output("accounts", "create", "acme", "nightly-report")
    key = installation.json("keys", "create", "acme/nightly-report", "--name", "prod")["key"]["id"]
    assert installation.json("keys", "disable", key)["status"] == "disabled"
    assert installation.json("keys", "enable", key)["status"] == "active"
    assert (
        installation.json("keys", "update", key, "--limit", "7", "--period", "daily")["credit_limit"] == "7"
    )
    assert installation.json("keys", "update", key, "--limit", "none")["credit_limit"] is None
    assert installation.json("keys", "revoke", key)["status"] == "revoked"
    refused = installation.run("keys", "enable", key)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "revoked" in refused.stderr
    installation.output("keys", "delete", key)
    assert installation.json("keys", "list", "acme/nightly-report")["data"] == []
    hidden = installation.json("keys", "list", "acme/nightly-report", "--status", "all")["data"]
    assert [row["id"] for row in hidden] == [key]


def test_an_account_is_deactivated_activated_and_found_by_its_name_even_when_it_is_deleted(
    installation: Installation,
) -> None:
    installation.output("orgs", "create", "acme")
    account = installation.json("accounts", "create", "acme", "nightly-report")["id"]
    assert installation.json("accounts", "deactivate", "acme/nightly-report")["status"] == "inactive"
    assert installation.json("accounts", "activate", account)["status"] == "active"
    assert installation.json("accounts", "delete", account, "--yes")["status"] == "deleted"
    assert installation.json("accounts", "list", "acme")["data"] == []
    assert installation.json("accounts", "show", "acme/nightly-report")["id"] == account


def test_deleting_an_account_asks_and_names_the_keys_that_are_revoked_with_it(
    installation: Installation,
) -> None:
    installation.output("orgs", "create", "acme")
    installation.output("accounts", "create", "acme", "nightly-report")
    installation.output("keys", "create", "acme/nightly-report", "--name", "the-only-key")

    nobody_to_ask = installation.run("accounts", "delete", "acme/nightly-report")
    assert nobody_to_ask.returncode == 2
    assert "the-only-key" in nobody_to_ask.stderr
    assert "Nothing was deleted" in nobody_to_ask.stderr

    for answer, status in (("n", "active"), ("y", "deleted")):
        ours, terminal = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        asked = run("accounts", "delete", "acme/nightly-report", env=installation.env, stdin=terminal)
        os.close(ours)
        os.close(terminal)
        assert asked.returncode == (0 if answer == "y" else 1), asked.stderr
        assert installation.json("accounts", "show", "acme/nightly-report")["status"] == status


def test_the_exit_code_tells_a_script_what_kind_of_no_it_was(installation: Installation) -> None:
    installation.output("orgs", "create", "acme")
    refused = installation.run("orgs", "create", "acme")
    wrong_field = installation.run("accounts", "create", "acme", "report", "--limit", "-1")
    usage = installation.run("orgs", "create")
    token_in_an_argument = installation.run("orgs", "list", "--token", "tko_x")
    unreachable = installation.run("orgs", "list", "--url", f"http://127.0.0.1:{free_port()}")
    wrong_token = run("orgs", "list", env=installation.env | {"TOLLKEEPER_OPERATOR_TOKEN": "tko_" + "0" * 43})
    missing = [
        installation.run("orgs", "show", "nobody"),
        installation.run("accounts", "show", "acme/nobody"),
        installation.run("keys", "show", "0" * 16),
    ]
    every = [refused, wrong_field, usage, token_in_an_argument, unreachable, wrong_token, *missing]
    assert [done.returncode for done in every] == [1, 1, 2, 2, 3, 1, 4, 4, 4]
    assert {done.stdout for done in every} == {""}
    assert "credit_limit" in wrong_field.stderr
    assert all("Traceback" not in done.stderr and done.stderr for done in every)


def test_a_long_list_is_read_page_after_page_up_to_the_rows_asked_for(
    installation: Installation,
) -> None:
    async def fill() -> None:
        conn = await asyncpg.connect(installation.env["TOLLKEEPER_POSTGRES_DSN"])
        await conn.executemany(
            "INSERT INTO organizations (tag, name, display_name, created_by) VALUES ($1, $2, $2, 'test')",
            [(f"{number:06d}", f"org-{number}") for number in range(205)],
        )
        await conn.close()

    asyncio.run(fill())
    every = installation.json("orgs", "list")
    assert len({row["name"] for row in every["data"]}) == 205
    assert every["next"] is None
    some = installation.run("orgs", "list", "--rows", "203", "--json")
    assert len(json.loads(some.stdout)["data"]) == 203
    assert json.loads(some.stdout)["next"]
    assert "There are more" in installation.run("orgs", "list", "--rows", "203").stderr


def test_usage_of_an_organization_that_did_nothing_is_an_empty_report(installation: Installation) -> None:
    installation.output("orgs", "create", "acme")
    for group in ("account", "key", "route", "hour", "day"):
        assert installation.json("usage", "acme", "--group-by", group)["data"] == []
    assert installation.json("ledger", "acme")["data"] == []
    assert installation.output("usage", "acme", "--from", "2026-01-01", "--to", "2026-02-01") == ""


def test_destinations_of_alerts_are_added_tested_and_removed_and_secrets_are_printed_once(
    installation: Installation,
) -> None:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204 if self.path == "/well" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    installation.output("orgs", "create", "acme")
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        added = installation.run("alerts", "destinations", "add", "acme", "webhook", "--to", f"{base}/well")
        assert added.stdout.startswith("whsec_")
        assert "shown this once" in added.stderr
        slack = installation.json(
            "alerts", "destinations", "add", "acme", "slack", "--to", f"{base}/sekret", "--name", "team"
        )
        assert "sekret" not in str(slack)
        sent = installation.run("alerts", "test", "acme", "--json")
        assert sent.returncode == 1, "one did not take it"
        tested = json.loads(sent.stdout)["data"]
        assert [(row["delivered"], row["status"]) for row in tested] == [(True, 204), (False, 500)]
        server.shutdown()
    too_soon = installation.run("alerts", "test", "acme", "--destination", slack["id"])
    assert (too_soon.returncode, too_soon.stdout) == (1, "")
    assert "once in 5 s" in too_soon.stderr

    shown = installation.output("alerts", "destinations", "list", "acme")
    assert "team" in shown
    assert added.stdout.strip() not in shown
    disabled = installation.json("alerts", "destinations", "disable", "acme", slack["id"])
    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "operator")
    assert installation.json("alerts", "destinations", "enable", "acme", slack["id"])["enabled"]
    updated = installation.json(
        "alerts", "destinations", "update", "acme", slack["id"], "--min-threshold", "100"
    )
    assert updated["min_threshold"] == 100
    webhook = next(
        row
        for row in installation.json("alerts", "destinations", "list", "acme")["data"]
        if row["kind"] == "webhook"
    )
    rotated = installation.output("alerts", "destinations", "rotate-secret", "acme", webhook["id"])
    assert rotated.startswith("whsec_")
    assert rotated != added.stdout
    installation.output("alerts", "destinations", "delete", "acme", webhook["id"])
    assert installation.run("alerts", "destinations", "delete", "acme", webhook["id"]).returncode == 4
    assert (
        installation.run(
            "alerts", "destinations", "add", "acme", "slack", "--to", "http://a", "--to", "http://b"
        ).returncode
        == 2
    )
    assert installation.json("alerts", "list", "acme")["data"] == []


def test_a_renewed_operator_token_works_and_the_one_before_it_does_not(installation: Installation) -> None:
    assert installation.run("operator-token").returncode == 2
    renewed = installation.output("operator-token", "--renew").strip()
    assert installation.run("orgs", "list").returncode == 1
    with_renewed = run("orgs", "list", env=installation.env | {"TOLLKEEPER_OPERATOR_TOKEN": renewed})
    assert with_renewed.returncode == 0


def test_counters_that_equal_the_ledger_are_said_to(installation: Installation) -> None:
    assert installation.json("reconcile") == {"differences": []}
    away = run(
        "reconcile", env=installation.env | {"TOLLKEEPER_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    )
    assert (away.returncode, away.stdout) == (3, "")


def test_migrate_tells_what_it_applied_and_finds_nothing_the_second_time(postgres_dsn: str) -> None:
    env = {"TOLLKEEPER_POSTGRES_DSN": postgres_dsn}
    first = run("migrate", env=env)
    assert first.returncode == 0
    assert first.stdout.split()[0].startswith("0001_")
    assert json.loads(run("migrate", "--json", env=env).stdout) == {"applied": []}
    assert run("migrate", env={}).returncode == 2
    assert run("migrate", env={"TOLLKEEPER_POSTGRES_DSN": "postgresql://127.0.0.1:1/x"}).returncode == 3


@pytest.mark.parametrize("name", ["control", "jobs"])
def test_a_process_without_its_settings_lists_all_that_is_missing(name: str) -> None:
    done = run(name, env={})
    assert (done.returncode, done.stdout) == (2, "")
    for missing in ("TOLLKEEPER_POSTGRES_DSN", "TOLLKEEPER_REDIS_URL"):
        assert missing in done.stderr


def test_the_gateway_command_becomes_the_gateway_with_its_own_options() -> None:
    done = run("gateway", "--help", env={})
    assert done.returncode == 0
    assert "--check-config" in done.stdout


def test_every_option_and_command_says_what_it_is_for_and_the_exit_codes_are_told() -> None:
    root: Any = typer.main.get_command(app)
    waiting, silent = [("tollkeeper", root)], []
    while waiting:
        path, command = waiting.pop()
        if not command.help:
            silent.append(path)
        silent += [
            f"{path} {parameter.name}" for parameter in command.params if not getattr(parameter, "help", "")
        ]
        waiting += [(f"{path} {name}", each) for name, each in getattr(command, "commands", {}).items()]
    assert silent == []
    assert all(f"{code} " in root.epilog for code in range(5))


def test_the_version_is_printed() -> None:
    assert run("--version", env={}).stdout.startswith("tollkeeper 0.")
