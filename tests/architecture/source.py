"""What the architecture tests look at: every module of both planes, read and parsed, never imported."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLANES = ("gateway", "control")


@dataclass(frozen=True, slots=True)
class Module:
    name: str  # dotted
    path: Path
    tree: ast.Module

    @property
    def shown(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def modules() -> dict[str, Module]:
    """Dotted name → module, for everything under `gateway/` and `control/`."""
    found = {}
    for plane in PLANES:
        for path in sorted((ROOT / plane).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text("utf-8"), path.as_posix()))
    return found


def imported_by(module: Module) -> frozenset[str]:
    """Every dotted name that the module imports, late and type-only imports included; ours as far down as a
    module.
    """
    return frozenset(name for name, _ in _imports(module))


@cache
def _imports(module: Module) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((full if full in modules() else base, node.lineno))
    return tuple(found)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def is_within(name: str, package: str) -> bool:
    """Whether a dotted name is that package or something in it."""
    return name == package or name.startswith(package + ".")


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """(qualified name, lines of its body) of every function and method; a signature and a docstring cost nothing."""

    def within(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", _body_lines(child)
            inner = f"{prefix}{child.name}." if hasattr(child, "name") else prefix
            yield from within(child, inner)

    yield from within(module.tree, "")


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    assert body[-1].end_lineno is not None
    return body[-1].end_lineno - body[0].lineno + 1


@cache
def tracked_files() -> tuple[Path, ...]:
    """What Git tracks and is there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())
