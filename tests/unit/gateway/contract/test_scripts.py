"""The scripts as text: what can be seen without a Redis. What they do is in tests/contract."""

import hashlib
import re

import pytest

from gateway.contract import scripts
from gateway.contract.scripts import Script

KEYS_NAMED = {"admit": 4, "settle": 5, "extend": 4, "publish": 1, "adopt": 1}
COMMANDS_WITHOUT_A_KEY = {"TIME"}

every_script = pytest.mark.parametrize("script", scripts.ALL, ids=lambda script: script.name)


def _opening_comment(script: Script) -> str:
    """The paragraph of the script itself: `window.lua`, where it stands in front, has its own."""
    start = script.text.index(f"-- {script.name}: ")
    lines = script.text[start:].splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("--"))])


def _code(script: Script) -> str:
    return re.sub(r"--[^\n]*", "", script.text)


def _calls(script: Script) -> list[tuple[str, str]]:
    """(command, first argument) of every call of Redis in the code."""
    return re.findall(r"redis\.call\(\s*'(\w+)'\s*(?:,\s*([^,)]+))?", _code(script))


@every_script
def test_a_script_is_known_by_the_sha_1_that_redis_computes(script: Script) -> None:
    assert script.sha == hashlib.sha1(script.text.encode()).hexdigest()


def test_every_script_is_listed_once() -> None:
    assert sorted(script.name for script in scripts.ALL) == sorted(KEYS_NAMED)


@every_script
def test_a_script_starts_with_a_comment_that_says_why_it_is_right(script: Script) -> None:
    assert script.text.startswith("--")
    comment = _opening_comment(script)
    for word in ("-- KEYS", "-- ARGV", "-- Returns", "-- Why it is right"):
        assert word in comment


@every_script
def test_a_script_uses_exactly_the_keys_that_its_comment_lists(script: Script) -> None:
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", _code(script))}
    if "KEYS[index]" in _code(script):
        used |= {1, 2, 3}
    listing = next(line for line in _opening_comment(script).splitlines() if line.startswith("-- KEYS"))
    assert (
        used
        == {int(number) for number in re.findall(r"\d", listing)}
        == set(range(1, KEYS_NAMED[script.name] + 1))
    )


@every_script
def test_a_script_names_no_redis_key_but_those_in_keys(script: Script) -> None:
    """On Redis Cluster a key that is built inside Lua may lie on another machine."""
    calls = _calls(script)
    assert len(calls) == len(re.findall(r"redis\.p?call\b", _code(script))), (
        "a call that this test does not understand"
    )
    for command, key in calls:
        if command not in COMMANDS_WITHOUT_A_KEY:
            assert re.fullmatch(r"KEYS\[(\d|index)\]|name", key), (command, key)
    assert "tk:" not in _code(script)
    assert ".." not in _code(script), "a script that joins strings could build a key"


@every_script
def test_the_name_given_to_an_inner_function_is_always_one_of_keys(script: Script) -> None:
    inner = re.findall(r"local function (\w+)\(name,", _code(script))
    takes_key = [
        function
        for function in inner
        if re.search(
            rf"local function {function}\(name,.*?redis\.call\('\w+', name", _code(script), re.DOTALL
        )
    ]
    for function in takes_key:
        for argument in re.findall(rf"(?<!function ){function}\(([^,)]+)", _code(script)):
            assert re.fullmatch(r"KEYS\[\d\]|'key'|'account'|'organization'", argument), (function, argument)


@every_script
def test_a_script_is_deterministic_but_for_the_time(script: Script) -> None:
    for word in ("math.random", "RANDOMKEY", "os.", "SRANDMEMBER", "pcall", "loadstring"):
        assert word not in _code(script)
