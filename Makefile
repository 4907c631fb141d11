# `make` alone lists what can be made.
PYTHON ?= python3
# The packages in `integration/`, wherever a command is run.
IN_INTEGRATION := PYTHONPATH='$(CURDIR)/integration'
ENVIRONMENT := $(IN_INTEGRATION) integration/.venv/celery-5.7/bin/python
WORKFLOW_TOOLS := integration/.venv/tools/workflows/bin
SERVICES := $(IN_INTEGRATION) $(PYTHON) -m harness.services run --

# The integration tests that are run, and by how many processes: for the most part they wait.
SELECT ?= not full
PROCESSES ?= 6

.DEFAULT_GOAL := help
.PHONY: help build release wheel demo prepare-demo test test-full build-tests test-rust test-integration lint docs lint-workflows bench bench-decode bench-workers bench-lanes bench-single bench-statements bench-waiting bench-cleanup plot-load fuzz captures settings environments clean

help: ## Lists what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

build: ## Builds the daemon for development
	cargo build --locked

release: ## Builds the daemon as it is installed
	cargo build --locked --release

wheel: ## Builds the Python package with the program in it, into `dist/`
	$(IN_INTEGRATION) $(PYTHON) -m harness.environments wheel
	integration/.venv/wheel/bin/maturin build --release --locked --out dist

demo: prepare-demo release ## Compares it with django-db and kills it, in two minutes; `KEEP=1`
	@CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m demo.demo

prepare-demo:
	@$(IN_INTEGRATION) $(PYTHON) -m demo.prepare

test: build build-tests environments ## Runs the tests, with servers that run already or private ones
	$(SERVICES) $(MAKE) --no-print-directory test-rust test-integration

test-full: build environments ## Runs what `make test` leaves out: more databases, serializers, versions
	$(SERVICES) $(MAKE) --no-print-directory test-integration SELECT=full

build-tests:
	cargo test --locked --no-run

test-rust:
	cargo test --locked --quiet

test-integration:
	CELERIAC_BIN=target/debug/celeriac $(ENVIRONMENT) -m pytest integration \
		-m '$(SELECT)' -n $(PROCESSES) --dist loadgroup --durations 20

lint: ## Checks formatting, lints and licences
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --quiet
	$(PYTHON) .ci/licences.py

docs: ## Builds the site of the documentation into `target/site`
	$(IN_INTEGRATION) $(PYTHON) -m harness.environments tools/docs
	integration/.venv/tools/docs/bin/mkdocs build --strict

lint-workflows: ## Checks the files under `.github/`
	$(IN_INTEGRATION) $(PYTHON) -m harness.environments tools/workflows
	$(WORKFLOW_TOOLS)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(WORKFLOW_TOOLS)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(WORKFLOW_TOOLS)/check-jsonschema --builtin-schema vendor.github-issue-forms \
		.github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(WORKFLOW_TOOLS)/zizmor --offline --quiet .github

bench: release environments ## Measures it against django-celery-results
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.drain $(BENCH)

bench-decode: ## Measures what it costs to decode a message
	cargo bench --locked --bench decode -- $(BENCH)

bench-workers: release environments ## Measures a real worker with each result backend
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.workers $(BENCH)

bench-lanes: release environments ## Measures what more lanes and daemons bring
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.lanes $(BENCH)

bench-single: release environments ## Measures what a single result costs the database server
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.single $(BENCH)

bench-waiting: release environments ## Measures how long `get()` takes with each result backend
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.waiting $(BENCH)

bench-statements: release environments ## Counts statements and rows written per task
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.statements $(BENCH)

bench-cleanup: release environments ## Measures the deletion of expired rows against Celery's
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.cleanup $(BENCH)

fuzz: ## Fuzzes every decoder with cargo-fuzz; `FUZZ="--target json --minutes 10"`
	$(PYTHON) fuzz/run.py $(FUZZ)

plot-load: release environments ## Draws a chart of a load from the metrics
	CELERIAC_BIN=target/release/celeriac $(ENVIRONMENT) -m benches.plot_load $(BENCH)

captures: environments ## Makes `tests/data/golden/` anew, with real workers
	$(ENVIRONMENT) -m captures.make_captures $(CAPTURES)

settings: ## Writes `docs/settings.md` and the example file anew, from the code
	CELERIAC_WRITE_REFERENCE=1 cargo test --locked --quiet --bin celeriac reference

environments: ## Makes the virtual environments of the tests
	$(IN_INTEGRATION) $(PYTHON) -m harness.environments

clean: ## Removes what was built and the virtual environments
	cargo clean
	rm -rf integration/.venv
