"""Every setting is explained in the code, and named where an operator looks for it."""

import importlib
from collections.abc import Iterator

import pytest
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from tests.architecture.source import ROOT, modules

DOCUMENTS = ("README.md", "deploy/operations.md")
SETTINGS_MODULES = ("gateway.settings", "control.settings")


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """(name in the environment, field) of every settings class of both planes."""
    for module_name in SETTINGS_MODULES:
        if module_name not in modules():
            continue
        for kind in vars(importlib.import_module(module_name)).values():
            if isinstance(kind, type) and issubclass(kind, BaseSettings) and kind.__module__ == module_name:
                prefix = kind.model_config.get("env_prefix", "")
                for name, field in kind.model_fields.items():
                    alias = field.validation_alias
                    yield (alias if isinstance(alias, str) else prefix + name).upper(), field


EVERY_SETTING = sorted(settings(), key=lambda setting: setting[0])


def test_there_are_settings_to_look_at() -> None:
    assert EVERY_SETTING


@pytest.mark.parametrize(("name", "field"), EVERY_SETTING, ids=[name for name, _ in EVERY_SETTING])
def test_a_setting_has_a_description_that_is_a_sentence(name: str, field: FieldInfo) -> None:
    assert field.description, f"{name} has no description"
    assert field.description.endswith("."), f"{name}: {field.description!r} is not a sentence"


@pytest.mark.parametrize("name", sorted({name for name, _ in EVERY_SETTING}))
def test_an_operator_finds_every_setting_in_the_documents(name: str) -> None:
    documents = [ROOT / path for path in DOCUMENTS if (ROOT / path).exists()]
    assert documents
    assert any(name in document.read_text("utf-8") for document in documents), (
        f"{name} is in none of {DOCUMENTS}"
    )
