"""What must never be in the repository: where it was developed, where packages came from, secrets."""

import re

import pytest

from tests.architecture.source import ROOT, tracked_files

# One letter of each stands in brackets, so that this file does not hold what it looks for.
FORBIDDEN = {
    "the address of a package registry": (
        r"py[p]i\.org|py[t]honhosted|registry\.n[p]mjs|deb\.de[b]ian\.org|registry-1\.d[o]cker\.io"
    ),
    "an option that names a package index": r"--(?:extra-)?index-u[r]l[ =]\S+:|--find-l[i]nks[ =]|trusted-h[o]st\s*=",
    "a path of a developer's machine": r"(?<![\w.~/])/(?:w[o]rk|r[o]ot|h[o]me/\w+)/|/tmp/p[v]\b",
    "a private key": r"BEGIN (?:[A-Z]+ )?PRIVATE K[E]Y",
    "a whole token": r"\btkm?[_][0-9A-Za-z]{16}_[0-9A-Za-z]{49}\b",
    "a merge that was not finished": r"^(?:<{7}|>{7}) ",
}
BINARY = {".png", ".jpg", ".ico", ".woff2", ".gz"}


def test_there_are_files_to_look_at() -> None:
    assert ROOT / "pyproject.toml" in tracked_files()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        for path in tracked_files()
        if path.suffix not in BINARY
        for text in [path.read_text("utf-8")]
        for match in pattern.finditer(text)
    ]
    assert found == [], f"{what} is in a tracked file"


@pytest.mark.parametrize("name", ["runtime.lock", "dev.lock"])
def test_a_lock_gives_every_package_one_version_and_its_hashes(name: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "deploy/locks" / name).read_text("utf-8").strip())
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==[0-9][\w.]*( ; .+)? \\\n", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_what_is_tested_is_what_is_shipped() -> None:
    """Every version in the runtime lock is the one in the lock that the tests run with."""
    runtime, dev = (
        dict(
            re.findall(
                r"^([a-z0-9-]+)==(\S+)", (ROOT / "deploy/locks" / name).read_text("utf-8"), re.MULTILINE
            )
        )
        for name in ("runtime.lock", "dev.lock")
    )
    assert runtime
    assert {name: dev.get(name) for name in runtime} == runtime
