#!/usr/bin/env bash
# Makes what a working copy needs. Called by the Makefile, from the root of the checkout:
#
#   deploy/setup.sh environment             .venv from deploy/locks/dev.lock, hashes checked; instant when nothing changed
#   deploy/setup.sh commands CMD[=PACKAGE]… the named commands, from Debian's packages when missing and we are root
#   deploy/setup.sh packages PACKAGE…       the named Debian packages themselves (for those that bring no command)
#
# Never asks, never prints what went well in detail, says what to do when it cannot go on.
set -euo pipefail

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore DEBIAN_FRONTEND=noninteractive
VENV=.venv
LOCK=deploy/locks/dev.lock

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

apt_install() {
    can_install || die "missing: $*. Install it with your system's packages (Debian: sudo apt-get install $*), then try again."
    say "installing with apt-get: $*"
    # The lists are often absent in a container; an old list is only refreshed when it does not do.
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 && return
    apt-get update -qq >/dev/null || say "apt-get update failed, trying with the lists there are"
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null || die "apt-get could not install: $*"
}

# The interpreter that was named; else the system's own where it is ready to use: distributions build with profile-guided
# optimisation, version switchers mostly do not, and that is a third of the time in which plain Python runs.
find_python() {
    local candidate
    if [ -z "${PYTHON:-}" ]; then
        for candidate in /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11; do
            if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
                echo "$candidate"
                return
            fi
        done
    fi
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
        # Run it: a version switcher's shim is found on the path even where it leads nowhere.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

make_venv() {
    local python version
    python=$(find_python) || die "Python 3.11 or newer is needed and was not found. Install it, or name it: make setup PYTHON=/path/to/python3"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || apt_install "python$version-venv"
    say "Python $version -> $VENV"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
}

wanted_stamp() {
    "$VENV/bin/python" -c '
import hashlib, pathlib, sys
facts = [sys.version, sys.prefix, *(pathlib.Path(name).read_text() for name in sys.argv[1:])]
print(hashlib.sha256("\0".join(facts).encode()).hexdigest())' "$LOCK" pyproject.toml deploy/setup.sh
}

environment() {
    # Two set-ups at once would install over each other.
    if command -v flock >/dev/null 2>&1; then
        exec 9>.venv.lock
        flock -w 900 9 || die "another set-up holds .venv.lock for 15 minutes now"
    fi
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
    local stamp
    stamp=$(wanted_stamp)
    [ "$(cat "$VENV/stamp" 2>/dev/null || true)" = "$stamp" ] && return
    rm -f "$VENV/stamp"
    say "installing $(grep -c '==' "$LOCK") locked packages (hashes checked)"
    "$VENV/bin/python" -m pip install -qq --require-hashes --only-binary :all: -r "$LOCK"
    say "installing tollkeeper itself, editable"
    "$VENV/bin/python" -m pip install -qq --no-deps --no-build-isolation -e .
    "$VENV/bin/python" -m pip check >/dev/null || "$VENV/bin/python" -m pip check
    printf '%s\n' "$stamp" >"$VENV/stamp"
    say "done"
}

commands() {
    local entry missing=()
    for entry in "$@"; do
        command -v "${entry%%=*}" >/dev/null 2>&1 || [ -x "/usr/sbin/${entry%%=*}" ] || missing+=("${entry##*=}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

packages() {
    local name missing=()
    for name in "$@"; do
        dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

case "${1:-}" in
    environment | commands | packages) "$@" ;;
    *) die "unknown step: '${1:-}'" ;;
esac
