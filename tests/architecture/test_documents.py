"""What the documents tell an operator is what the product has: metrics, log lines, commands, files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from control.api.metrics import ApiMetrics
from control.cli import app
from control.jobs.metrics import JobMetrics
from gateway.metrics import Metrics, families
from tests.architecture.source import ROOT, modules

DOCUMENTS = ("README.md", "CHANGELOG.md", "deploy/operations.md", "tests/benchmark/README.md")
OPERATIONS = ROOT / "deploy/operations.md"
PACKAGES = ("gateway", "control")
NOT_FOR_OPERATORS = ("control.cli", "control.demo", "control.embedded")


def metric_names() -> set[str]:
    gathered = [
        *families(Metrics().snapshot()),
        *ApiMetrics().registry.collect(),
        *JobMetrics().registry.collect(),
    ]
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in gathered
        if family.name.startswith("tollkeeper_")
    }


def log_events() -> Iterator[str]:
    """Events that a process of an installation logs as a warning or an error."""
    for name, module in modules().items():
        if not name.startswith(PACKAGES) or name.startswith(NOT_FOR_OPERATORS):
            continue
        for node in ast.walk(ast.parse(module.path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr="warning" | "error"),
                    args=[ast.Constant(value=str(event)), *_],
                ):
                    yield event


def commands(document: str) -> set[tuple[str, ...]]:
    """(command, perhaps its sub-command) of every line in a shell block that calls `tollkeeper`."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    calls = re.findall(r"\btollkeeper ((?:[a-z][a-z-]*(?: |$))+)", "\n".join(blocks), re.MULTILINE)
    return {tuple(call.split()[:2]) for call in calls}


def test_there_is_something_to_look_at() -> None:
    assert len(metric_names()) > 20
    assert len(set(log_events())) > 10
    assert len(commands("README.md")) > 5


@pytest.mark.parametrize("name", sorted(metric_names()))
def test_the_operations_guide_explains_every_metric(name: str) -> None:
    assert f"`{name}" in OPERATIONS.read_text("utf-8")


@pytest.mark.parametrize("event", sorted(set(log_events())))
def test_the_operations_guide_explains_every_warning_and_error_in_the_logs(event: str) -> None:
    assert f"`{event}`" in OPERATIONS.read_text("utf-8")


def anchors(document: Path) -> set[str]:
    """What links to the headings of a document are called."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_or_a_heading_leads_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        file, _, heading = target.partition("#")
        place = path.parent / file if file else path
        assert place.exists(), target
        assert not heading or heading in anchors(place), target


@pytest.mark.parametrize("document", ["README.md", "deploy/operations.md"])
def test_a_document_shows_only_commands_that_there_are(document: str) -> None:
    groups = typer.main.get_command(app)
    known = getattr(groups, "commands")  # noqa: B009 - typer's group has it, its annotation does not
    for call in commands(document):
        assert call[0] in known, call
        below = getattr(known[call[0]], "commands", None)
        if below is not None:
            assert set(call[1:]) & set(below), call
