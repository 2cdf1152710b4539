# The verbs of the repository. CI calls only these. Needs Python >= 3.11 and make, nothing else.

PYTHON ?= python3
EXTRAS ?= dev
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install install-models install-clients serve test test-fast test-models test-clients clients-docs lint fmt docs docs-site bench bench-ci bench-scale chaos chaos-long chaos-docs cast audit conformance clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 26

install: $(READY)  ## make .venv, or bring it up to date

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

serve: $(READY)  ## gateway, worker and a mock model in one process on port 8000
	$(BIN)/penstock serve $(ARGS)

# Twice as many processes as cores: most of a test is waiting. ARGS=-n0 is one after the other, as a debugger needs it.
# With byte code: a machine that forbids it would compile Penstock again for each process that a test starts.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(2 * (os.cpu_count() or 1))') --dist loadfile --no-loadscope-reorder

test: $(READY)  ## all tests, some ten minutes on two cores; ARGS goes to pytest
	$(PYTEST) $(ARGS)

test-fast: $(READY)  ## those that start no server and no process, in two minutes
	$(PYTEST) -m 'not real and not long' tests/unit tests/contract tests/simulation $(ARGS)

MODELS = $(MAKE) VENV=.venv-models EXTRAS=dev,transformers

install-models:  ## make .venv-models, with torch for CPUs: some 1 GB
	$(MODELS) install

test-models:  ## against a real engine of another project, with a tiny model made here
	$(MODELS) test ARGS='tests/models $(ARGS)'

CLIENTS := .venv-clients
REPORT  := bench/results/clients.json

install-clients: $(CLIENTS)/.clients  ## make .venv-clients, with clients of other projects for Python and node: some 1 GB

$(CLIENTS)/.clients: pyproject.toml tests/clients/install.py tests/clients/js/package.json
	$(MAKE) VENV=$(CLIENTS) install
	$(CLIENTS)/bin/python -m tests.clients.install
	@touch $@

test-clients: install-clients  ## clients of other projects against `penstock serve`, as their users run them
	$(CLIENTS)/bin/python -m pytest tests/clients -n0 --clients-report $(REPORT) $(ARGS)

clients-docs: $(READY)  ## write the results of the last `make test-clients` into docs/clients.md
	$(BIN)/python -m tests.clients.report $(REPORT) docs/clients.md

lint: $(READY)  ## style, types, import contracts, plain words, freshness of generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/words.py

fmt: $(READY)  ## format, and apply safe fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: $(READY)  ## write the generated pages
	$(BIN)/python docs/generate.py

docs-site:  ## build docs/ as a site into site/, links checked, usable without network; PORT=8080 serves it
	$(MAKE) VENV=.venv-site EXTRAS=site install
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --strict --quiet
	$(if $(PORT),.venv-site/bin/python -m http.server --bind 127.0.0.1 --directory site $(PORT),@echo 'site/index.html; with search: make docs-site PORT=8080')

bench: $(READY)  ## measure against a bare server and the naive form: a quarter of an hour; ARGS=--quick for a look
	$(BIN)/python -m bench $(ARGS)

bench-ci: $(READY)  ## a few of its cells against wide gates, in two minutes
	$(BIN)/python -m bench --ci

bench-scale: $(READY)  ## cost per token and per open stream as they grow, in four minutes; ARGS=--quick for a look
	$(BIN)/python -m bench.scale $(ARGS)

CHAOS = $(BIN)/python -m tests.chaos --all $(if $(SEED),--seed $(SEED)) $(ARGS)

chaos: $(READY)  ## kill everything on purpose for some ten minutes, check that nothing was lost or doubled; SEED=n repeats a run
	$(CHAOS) --report bench/results/chaos --made-by 'make chaos'

MINUTES ?= 60
chaos-long: $(READY)  ## the same for MINUTES=60
	$(CHAOS) --minutes $(MINUTES) --report bench/results/chaos-long --made-by 'make chaos-long MINUTES=$(MINUTES)'

chaos-docs: $(READY)  ## write the results of the last `make chaos` into docs/reliability.md and README.md
	$(BIN)/python -m tests.chaos --quote bench/results/chaos.json docs/reliability.md
	$(BIN)/python -m bench.readme

cast: $(READY)  ## record an answer whose worker is killed, as docs/img/kill.svg
	PYTHONPATH=. $(BIN)/python docs/cast.py

# Not part of any other target: it asks an index of advisories about every package, so it needs the network.
AUDIT := .venv-audit
audit: $(READY)  ## look for known vulnerabilities of the installed packages; needs an index of advisories
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; } \
		|| { rm -rf $(AUDIT); echo 'make audit: pip-audit cannot be installed here, so nothing was audited'; exit 1; }
	@$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable > $(AUDIT)/installed.txt
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r $(AUDIT)/installed.txt \
		|| { echo 'make audit: packages with vulnerabilities are listed above; where there is an error instead, the index of advisories could not be reached or did not know a package, and nothing was audited'; exit 1; }

WORKER ?= node examples/worker.js
conformance: $(READY)  ## does a worker keep the rules of docs/protocol.md? WORKER="the command that starts it"
	$(BIN)/python -m tests.conformance --worker '$(WORKER)' $(ARGS)

clean:  ## remove everything that make made
	rm -rf $(VENV) .venv-models .venv-site $(CLIENTS) $(AUDIT) tests/clients/js/node_modules site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
