"""The scripts as text: what can be seen without a Redis. What they do is in tests/contract."""

import hashlib
import re

import pytest

from gateway.contract import scripts
from gateway.contract.scripts import Script

KEYS_NAMED = {"admit": 1, "settle": 2, "extend": 4, "publish": 1, "adopt": 1}
"""Keys that stand at a place of their own."""

KEYS_OF_A_REQUEST = {"admit": 3, "settle": 3}
"""Keys that follow them once for each request of a batch."""

COMMANDS_WITHOUT_A_KEY = {"TIME"}
READS = {"HMGET"}

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
    return re.findall(r"redis\.p?call\(\s*'(\w+)'\s*(?:,\s*([^,)]+))?", _code(script))


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
    assert ("then for each" in listing) == (script.name in KEYS_OF_A_REQUEST)


@pytest.mark.parametrize("name", KEYS_OF_A_REQUEST)
def test_the_keys_of_a_requests_of_a_batch_follow_one_another_behind_the_others(name: str) -> None:
    (script,) = (script for script in scripts.ALL if script.name == name)
    offsets = re.findall(r"KEYS\[names(?: \+ (\d))?\]", _code(script))
    assert sorted(int(offset or 0) for offset in offsets) == list(range(KEYS_OF_A_REQUEST[name]))
    (first,) = re.findall(r"(?:\badmit\(|local names, cost = )(3 \* i(?: - 1)?),", _code(script))
    each = [_place(first, request) for request in (1, 2, 3)]
    before = KEYS_NAMED[name] + 1
    assert each == [before, before + KEYS_OF_A_REQUEST[name], before + 2 * KEYS_OF_A_REQUEST[name]]


def _place(expression: str, i: int) -> int:
    """What `3 * i` or `3 * i - 1` comes to."""
    return 3 * i - (1 if expression.endswith("- 1") else 0)


@every_script
def test_a_script_names_no_redis_key_but_those_in_keys(script: Script) -> None:
    """On Redis Cluster a key that is built inside Lua may lie on another machine."""
    code, calls = _code(script), _calls(script)
    assert len(calls) == len(re.findall(r"redis\.p?call\b", code)), (
        "a call that this test does not understand"
    )
    for command, key in calls:
        if command not in COMMANDS_WITHOUT_A_KEY:
            assert re.fullmatch(r"KEYS\[(\d|index)\]|name|record\.name", key), (command, key)
    assert "tk:" not in code
    for places in re.findall(r"KEYS\[([^\]]+)\]", code):
        assert re.fullmatch(r"\d|index|names(?: \+ [12])?", places), places


@every_script
def test_a_script_joins_no_strings_but_pieces_of_its_own_text(script: Script) -> None:
    """What is joined of two literals is a longer literal; anything else could be a key."""
    code = re.sub(r"'[^'\n]*'", "''", _code(script))  # what stands in a literal joins nothing
    joins = re.findall(r"''\s*\.\.\s*''", code)
    assert code.count("..") == len(joins)
    assert "table.concat" not in code
    assert not joins or script.name == "settle", "only the text of an event is long enough for that"


@every_script
def test_the_name_of_a_record_is_always_one_of_keys(script: Script) -> None:
    """Where a key is called `name` or `record.name`, it has come from KEYS, through a parameter and nothing else."""
    code = _code(script)
    if not any(key in ("name", "record.name") for _, key in _calls(script)):
        return
    functions = re.findall(r"local function (\w+)\((?:level, )?name[,)]", code)
    assert functions, "nobody takes a name"
    for function in functions:
        calls = re.findall(rf"(?<!function ){function}\((?:'\w+', )?([^,)]+)", code)
        assert calls
        for argument in calls:
            assert re.fullmatch(r"KEYS\[(?:\d|names(?: \+ [12])?)\]", argument), (function, argument)
    if any(key == "record.name" for _, key in _calls(script)):
        assert re.findall(r"(\S+, )?record\.name(, \S+)? = (.*)", code) == [
            ("record.level, ", "", "level, name")
        ]
    assert not re.search(r"\bname\s*=[^=]", code.replace("record.name = level, name", "")), (
        "a name is changed"
    )


@every_script
def test_what_may_fail_without_ending_the_script_is_a_read(script: Script) -> None:
    """A record that cannot be read spoils its own requests alone; a write that fails half-way must not go unseen."""
    for command in re.findall(r"redis\.pcall\(\s*'(\w+)'", _code(script)):
        assert command in READS
    guarded = len(re.findall(r"redis\.pcall\(", _code(script)))
    assert not guarded or "record.err" in _code(script)


@every_script
def test_a_script_is_deterministic_but_for_the_time(script: Script) -> None:
    code = _code(script).replace("redis.pcall", "")
    for word in ("math.random", "RANDOMKEY", "os.", "SRANDMEMBER", "pcall", "loadstring"):
        assert word not in code
