PYTHON ?= python3.11
TORCH := torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# touched when the environment is complete; older than what it is made from = stale
READY := $(VENV)/.ready
# distributions of integrations/ that come with the environment
PLUGINS := integrations/bseq-behaviour integrations/bseq-transformers

.DEFAULT_GOAL := help
.PHONY: help demo test check-faults check-scale lint bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the whole job on real purchases, in a few minutes; writes demo/
	$(BIN)/bseq demo --out demo $(ARGS)

# files of tests at a time; each process has one thread (conftest.py)
WORKERS ?= 2

test: $(READY) ## the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check-faults: $(READY) ## every fault of docs/faults.md, the slow tests included; a verdict a row
	$(BIN)/python -m benchmarks.checks.faults $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-scale: $(READY) ## any number of ranks, any checkpoint, killed at any moment: all cells, in minutes
	$(BIN)/python -m benchmarks.checks.check_scale $(ARGS)

# a benchmark is a file of benchmarks/FOLDER/ with a main; the others are its parts
bench: ## list the benchmarks; make bench-NAME ARGS="..." runs one
	@for file in $$(grep -l '^if __name__' benchmarks/*/*.py); do \
		printf 'make bench-%-16s %s\n' "$$(basename "$$file" .py)" "$$(sed -n '1s/"""//gp' "$$file")"; \
	done

bench-%: FILE = $(shell grep -ls '^if __name__' benchmarks/*/$*.py)
bench-%: $(READY)
	$(if $(FILE),,$(error there is no benchmark $*; make bench lists them))
	$(BIN)/python -m $(subst /,.,$(basename $(FILE))) $(ARGS)

lock: ## write requirements/cpu.txt anew, with the newest packages that fit
	$(PYTHON) requirements/lock.py $(TORCH)

clean: ## remove the environment, caches, build products and the demo's output
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is there is brought up to date rather than made anew. torchrec's metadata asks for the CUDA build
# of fbgemm, so the lock is installed without looking at dependencies; CONTRIBUTING.md, "Regenerate the lock".
$(READY): pyproject.toml $(PLUGINS:%=%/pyproject.toml) requirements/cpu.txt Makefile
	@$(BIN)/python -c "" 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --no-deps -r requirements/cpu.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e . $(PLUGINS:%=-e %)
	@touch $@
