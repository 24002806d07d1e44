# make serve              create .venv, install, serve the bundled model (MODEL=folder-or-hub-id for another)
# make test               create .venv, install the dev extra, check lint, format, types, layers, run all tests
# make quick              the same without the slow tests: the inner loop
# make bench              print the benchmark tables of bench/ that take minutes (BENCHES="twin_speed ..." for others)
# make bench-peers        measure Armillary beside other engines, which it installs in build/peers
# make native             compile the kernels of src/native again: quick after a first time
# make docs               write the generated pages of docs/ anew
# make soak MINUTES=60    load for so many minutes, checked for leaks and losses; figures in build/soak.json
# make sanitize           run the native kernels' tests under the address and undefined-behaviour sanitisers
# make tour               record the tour of README.md anew
#
# Variables: MODEL, ARGS (more flags for serve; PEERS for bench-peers, TESTS for pytest), WORKERS (processes for tests;
# empty for none besides), PYTHON (interpreter for .venv), VENV, TORCH_INDEX (package index to take torch from; see
# "Installing" in README.md).

MODEL ?= isles
ARGS ?=
PEERS ?=
TESTS ?= tests
MINUTES ?= 3
# The scripts of bench/ that take minutes at most and need nothing but the bundled model.
BENCHES ?= http_overhead linear native_attention native_linear native_sampler scheduler_step shared_prefix \
	structured_output timeline_step twin_speed
# Most tests keep one core busy. More than two would disturb those that start servers.
WORKERS ?= -n 2 --dist loadfile
PYTHON ?=
VENV ?= .venv
TORCH_INDEX ?=

TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help serve test check quick bench bench-peers native sanitize docs tour soak install install-dev clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

serve: $(VENV)/.installed
	$(BIN)/armillary serve $(MODEL) $(ARGS)

test: check
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)

quick: check
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-dev
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m bench.$$name || exit 1; done

bench-peers: $(VENV)/.installed-dev
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python -m bench.peers $(PEERS)

native: $(VENV)/.installed-dev
	ARMILLARY_NATIVE=required $(PIP) install --quiet --no-build-isolation --no-deps -e .

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/docs.py
	$(BIN)/python tools/dashboard.py

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -s tests/survival/test_soak.py --soak-minutes $(MINUTES)

sanitize: $(VENV)/.installed-dev
	ARMILLARY_SANITIZERS=required $(BIN)/python -m pytest tests/native

tour: $(VENV)/.installed-dev
	$(BIN)/python tools/tour.py

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The first interpreter of a version this release is tested on; any newer one if there is no such.
$(VENV)/.created:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then chosen=$$python; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "Python must be 3.11 or newer, found: $$(python3 --version 2>&1 || echo none)."; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$chosen --version)"; \
	$$chosen -m venv $(VENV) || { \
	  echo "Python's venv module must be complete; on Debian and Ubuntu it is the package python3-venv."; \
	  rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(wildcard src/native/*)
	@$(BIN)/python tools/torch_notice.py "$(TORCH)" "$(TORCH_INDEX)"
	@if [ -n "$(TORCH_INDEX)" ]; then $(PIP) install --index-url "$(TORCH_INDEX)" "$(TORCH)"; fi
	$(PIP) install --quiet -e .
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python -c 'from armillary.kernels import native; native.find()'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python tools/requirements.py dev >$(VENV)/requirements-dev.txt
	$(PIP) install --quiet -r $(VENV)/requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
