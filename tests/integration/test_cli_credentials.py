"""Where the commands find the control plane and their token, and how they fail when they do not."""

import json
import stat
from pathlib import Path

import pytest

from control.cli.credentials import client_file, find_credentials
from control.cli.data_directory import DataDirectory
from control.cli.failures import CommandFailed, ExitCode, failure_of_problem
from control.cli.log_tail import LogTail, worth_showing

HERE = "http://127.0.0.1:8081"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names neither control plane nor token, and a home without data."""
    for name in ("TOLLKEEPER_CONTROL_URL", "TOLLKEEPER_OPERATOR_TOKEN", "TOLLKEEPER_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that an `up` has left, with its client file."""
    directory = DataDirectory(tmp_path / "data")
    directory.claim()
    directory.write_client_file({"url": HERE, "operator_token": "kept-token"})
    directory.release()
    return directory.path


def test_without_options_or_environment_the_client_file_is_used(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_DATA", str(data))
    found = find_credentials(None, None, None)
    assert (found.url, found.token) == (HERE, "kept-token")


def test_the_environment_wins_over_the_client_file_of_the_default_directory(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_DATA", str(data))
    monkeypatch.setenv("TOLLKEEPER_CONTROL_URL", "https://control.example/")
    monkeypatch.setenv("TOLLKEEPER_OPERATOR_TOKEN", "from-environment")
    found = find_credentials(None, None, None)
    assert (found.url, found.token) == ("https://control.example", "from-environment")


def test_a_directory_that_is_named_wins_over_the_environment(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLKEEPER_CONTROL_URL", "https://control.example")
    monkeypatch.setenv("TOLLKEEPER_OPERATOR_TOKEN", "from-environment")
    found = find_credentials(None, None, data)
    assert (found.url, found.token) == (HERE, "kept-token")


def test_a_token_file_wins_over_everything(data: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    assert find_credentials(None, tmp_path / "token", data).token == "from-file"


def test_the_kept_token_is_never_sent_to_another_address(data: Path) -> None:
    with pytest.raises(CommandFailed, match=r"No operator token for http://elsewhere\.example") as failure:
        find_credentials("http://elsewhere.example", None, data)
    assert failure.value.code == ExitCode.USAGE


def test_knowing_no_address_is_wrong_usage_and_says_how_to_give_one() -> None:
    with pytest.raises(CommandFailed, match="tollkeeper up") as failure:
        find_credentials(None, None, None)
    assert failure.value.code == ExitCode.USAGE


@pytest.mark.parametrize("content", ["", "two words", "tök"])
def test_a_token_file_without_one_token_is_wrong_usage(data: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(CommandFailed, match="does not hold one token"):
        find_credentials(None, tmp_path / "token", data)


def test_a_spoiled_client_file_is_named(data: Path) -> None:
    client_file(data).write_text("{")
    with pytest.raises(CommandFailed, match=r"client\.json cannot be read"):
        find_credentials(None, None, data)


def test_nobody_else_can_read_what_is_kept(data: Path) -> None:
    pepper = DataDirectory(data).pepper_file()
    for path in (pepper, client_file(data)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) & 0o077 in (0, 0o011)


def test_the_pepper_is_made_once(data: Path) -> None:
    first = DataDirectory(data).pepper_file().read_text()
    assert len(bytes.fromhex(first)) == 32
    assert DataDirectory(data).pepper_file().read_text() == first


def test_two_cannot_claim_one_directory_and_the_second_learns_who_has_it(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path / "data"), DataDirectory(tmp_path / "data")
    first.claim()
    with pytest.raises(CommandFailed, match=r"in use by another `tollkeeper` \(process \d+\)"):
        second.claim()
    first.release()
    second.claim()
    second.release()


def test_a_problem_is_told_with_every_field_once() -> None:
    problem = {
        "title": "The request is wrong",
        "detail": "name: must be a slug",
        "errors": [
            {"field": "name", "reason": "must be a slug"},
            {"field": "credit_limit", "reason": "is not an amount"},
        ],
    }
    failure = failure_of_problem(400, problem)
    assert failure.code == ExitCode.REFUSED
    assert failure.message.splitlines() == [
        "The request is wrong: name: must be a slug",
        "  credit_limit: is not an amount",
    ]
    assert failure_of_problem(404, {"title": "Not found"}).code == ExitCode.NOT_FOUND


def test_of_a_log_people_see_warnings_and_what_is_not_a_log_line() -> None:
    assert worth_showing(json.dumps({"level": "info", "event": "started"})) is None
    shown = worth_showing(json.dumps({"level": "warning", "event": "slow", "waited_ms": 7}))
    assert shown == "warning: slow waited_ms=7"
    assert worth_showing("Traceback (most recent call last):") == "Traceback (most recent call last):"


def test_a_log_is_read_from_where_it_ended_and_only_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "server.log"
    log.write_text("of an earlier start\n")
    tail = LogTail("gateway", log)
    with log.open("a") as file:
        file.write("first\nsec")
        file.flush()
        tail.pass_on()
        assert capsys.readouterr().err == "[gateway] first\n"
        file.write("ond\n")
    tail.pass_on()
    assert capsys.readouterr().err == "[gateway] second\n"


def test_of_a_flood_in_a_log_no_torn_line_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "server.log"
    log.write_text("")
    tail = LogTail("gateway", log)
    line = json.dumps({"log": "access", "path": "/" + "x" * 970}) + "\n"
    with log.open("a") as file:
        file.write(line[:1])
        file.flush()
        tail.pass_on()
        file.write(line[1:] + line * 1500)
    tail.pass_on()
    assert capsys.readouterr().err == ""
