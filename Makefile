# Every task of a working copy. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1

BIN := .venv/bin
ARGS ?=
COMPILE = --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet

.PHONY: help setup run test check format bench lock clean

help: ## list the tasks
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: ## .venv from the locked packages (quick when nothing changed)
	@PYTHON="$(PYTHON)" deploy/setup.sh environment

run: setup ## the whole product on this machine, with its own Postgres and Valkey (Ctrl-C ends it)
	@exec $(BIN)/tollkeeper demo $(ARGS)

check: setup ## lint, format, types, architecture: seconds
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/architecture

test: setup ## check, then every test, two at a time (ARGS="-k name" to choose)
	@deploy/setup.sh commands git curl
	@$(MAKE) check
	@$(BIN)/pytest tests --ignore=tests/benchmark -n 2 --dist loadgroup $(ARGS)

format: setup ## rewrite the sources as `check` wants them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## the gateway beside its peers: CPU microseconds a request
	@deploy/setup.sh commands wrk nginx haproxy
	@deploy/setup.sh packages libnginx-mod-http-lua lua-nginx-redis lua-cjson
	@$(BIN)/python -m tests.benchmark $(ARGS)

lock: ## write deploy/locks/*.lock anew from pyproject.toml (needs uv; UPGRADE=--upgrade for newer versions)
	@uv=$$(command -v uv || echo $(BIN)/uv); "$$uv" --version >/dev/null || { echo "lock: uv is needed (pip install uv)" >&2; exit 1; }; \
	echo 'setuptools>=77' | "$$uv" pip compile $(COMPILE) $(UPGRADE) pyproject.toml - -o deploy/locks/runtime.lock >/dev/null; \
	echo 'setuptools>=77' | "$$uv" pip compile $(COMPILE) $(UPGRADE) --extra embedded --extra dev -c deploy/locks/runtime.lock \
		pyproject.toml - -o deploy/locks/dev.lock >/dev/null
	@! grep -nE 'https?://|file:|@ ' deploy/locks/*.lock

clean: ## remove what set-up, tests and tools wrote
	@rm -rf .venv .venv.lock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
