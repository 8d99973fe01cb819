# `make` alone lists the targets.  Needs make, a C compiler and Python 3.11 or newer (another one: make PYTHON=python3.12).
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick check docs bench accelerator lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the main job: forgetting on split digits, 10 seeds; flags through ARGS="--seeds 3"
	$(RUN) scripts/run.py split_digits $(ARGS)

test: $(READY) ## all tests
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

quick: $(READY) ## the tests that take less than about ten seconds each
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

check: $(READY) ## lint, format, types, who imports whom, examples of docstrings
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(VENV)/bin/basedpyright
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m pytest --doctest-modules bptoolkit

docs: $(READY) ## the pages under docs/ and the reference as HTML, in docs/_build/html; a warning is an error
	$(RUN) -m sphinx -W --keep-going -q -E docs docs/_build/html $(ARGS)

bench: $(READY) ## time the runner against bare matrix products; prints JSON
	$(RUN) scripts/bench_forgetting.py $(ARGS)

accelerator: $(READY) ## the tests that need a GPU or TPU; skipped, with the reason, where there is none
	$(RUN) -m pytest -m accelerator -rs $(ARGS)

lock: ## write requirements.lock anew from pyproject.toml; ARGS=--upgrade takes the newest versions
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT \
	  && $(PYTHON) -m venv "$$folder" \
	  && "$$folder/bin/pip" install --quiet uv \
	  && "$$folder/bin/uv" pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
	       --no-header --quiet --output-file requirements.lock $(ARGS)

clean: ## remove the environment and everything that tools have left; runs/ stays
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an installation that was interrupted is taken up again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "bptoolkit needs Python 3.11 or newer, got $$($(PYTHON) --version 2>/dev/null || echo no $(PYTHON)). Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@rm -f $@
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	@$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true  # pip does it on one core; it too passes over what does not compile
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
