"""Sizes that stay readable, and names that say something."""

import ast
import re

from tests.architecture.source import functions, modules

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

# path → why this file may be longer. Hot-path code may be, where splitting it costs microseconds: say the
# figure.
LONG_FILES: dict[str, str] = {}
# "path:qualified name" → why this function may be longer.
LONG_FUNCTIONS: dict[str, str] = {}

EMPTY_WORDS = re.compile(r"(manager|helper|util|utils|misc|common|stuff)s?")


def words(name: str) -> list[str]:
    """`ApiKeyManager`, `api_key_manager` → api, key, manager."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def test_a_file_can_be_read_in_one_sitting() -> None:
    lines = {module.shown: len(module.path.read_text("utf-8").splitlines()) for module in modules().values()}
    too_long = {path: count for path, count in lines.items() if count > FILE_LINES_MAX}
    assert {path: count for path, count in too_long.items() if path not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(too_long), "an exception that is not needed any more: remove it"


def test_a_function_can_be_seen_whole() -> None:
    too_long = {
        f"{module.shown}:{name}": count
        for module in modules().values()
        for name, count in functions(module)
        if count > FUNCTION_LINES_MAX
    }
    assert {path: count for path, count in too_long.items() if path not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) <= set(too_long), "an exception that is not needed any more: remove it"


def test_every_module_that_is_not_empty_says_what_it_is() -> None:
    silent = [
        module.shown
        for module in modules().values()
        if module.tree.body and not ast.get_docstring(module.tree)
    ]
    assert silent == []


def test_no_module_or_class_has_a_name_that_says_nothing() -> None:
    named = [(module.shown, module.name) for module in modules().values()]
    named += [
        (f"{module.shown}:{node.lineno}", node.name)
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    empty = [f"{where} {name}" for where, name in named if any(map(EMPTY_WORDS.fullmatch, words(name)))]
    assert empty == []
