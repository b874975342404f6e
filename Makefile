# `make` lists what can be done. Every target sets up what it needs: a bare machine with python3, make and git is enough.

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-api test-kill test-fast check format clean bench-optim bench-step bench-convergence bench-data bench-start bench-cancel bench-api

UV := $(or $(shell command -v uv 2>/dev/null),.tools/uv/bin/uv)
RUN := .venv/bin

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: .venv/.synced ## Install everything into .venv, exactly as uv.lock says

demo: setup ## Run the main job end to end: digits with 30% wrong labels, two jobs, a table (2-4 minutes)
	$(RUN)/hush demo

serve: setup ## Start the service on this machine and leave it running until Ctrl-C
	$(RUN)/hush serve

test: setup ## Run all tests: those without servers in two processes, then the others one after the other
	$(RUN)/pytest -n 2 --dist loadfile -m "not slow"
	$(RUN)/pytest -n 2 --dist loadfile -m slow tests/distributed
	$(RUN)/pytest -m slow --ignore tests/distributed

test-api: setup ## Hold the running service against its OpenAPI document by thousands of requests (about 5 minutes)
	$(RUN)/pytest tests/api -s --api-examples 250

test-kill: setup ## Kill every process of the service and of Ray, in turn, while jobs train (about 40 minutes)
	$(RUN)/pytest tests/kill -s --kill-rounds 36

test-fast: setup ## Run the tests that need no servers (a minute or two)
	$(RUN)/pytest -n 2 --dist loadfile -m "not slow"

check: setup ## Lint, format, types, import rules
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

format: setup ## Mend what lint and format can mend
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench-optim: setup ## Time an IVON step beside ivon-opt's and fused AdamW's; on a GPU if there is one
	$(RUN)/python -m benchmarks.optim

bench-step: setup ## Time a training step of each method, and the label-noise record; on a GPU if there is one
	$(RUN)/python -m benchmarks.step

bench-convergence: setup ## Compare the methods on wrong labels: an hour; FASHION_MNIST=folder of its idx files
	$(RUN)/python -m benchmarks.convergence $(if $(FASHION_MNIST),--data $(FASHION_MNIST))

bench-data: setup | $(UV) ## Time loading beside webdataset, streaming and ImageFolder; CLOTHING_PHOTOS=tar in Clothing1M's layout
	$(UV) run --frozen --group bench python -m benchmarks.data $(if $(CLOTHING_PHOTOS),--photos $(CLOTHING_PHOTOS))

bench-start: setup ## Time the way from a POST to the first step beside a bare `ray job submit`: ten minutes
	$(RUN)/python -m benchmarks.start

bench-cancel: setup ## Time the way from a cancel to CANCELLED, on a real Ray: five minutes
	$(RUN)/python -m benchmarks.cancel

bench-api: setup ## Time the API with 100,000 jobs stored, on SQLite and PostgreSQL, and follow events with 200 clients
	$(RUN)/python -m benchmarks.api

clean: ## Remove what make made here: the environment, caches
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.tools/uv/bin/uv:
	python3 tools/bootstrap_uv.py .tools/uv

.venv/.synced: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen
	@touch $@
