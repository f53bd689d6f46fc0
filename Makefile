# Everything installs itself into .venv; only Python 3.10 to 3.13 with its venv module is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
APP := apps/unmask
APP_INSTALLED := $(VENV)/.app-installed
TESTS_INSTALLED := $(VENV)/.tests-installed
# A build of torch that stands next to torchvision has to match it, so both come from one install.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo app test lint bench zoo networks clean

demo: $(INSTALLED)
	$(BIN)/secateur compress --out runs/demo --overwrite

# Looks for signs of manipulation in faces, at http://127.0.0.1:8000 (or make app PORT=8080).
app: $(APP_INSTALLED)
	$(BIN)/unmask serve --port $(or $(PORT),8000)

test: $(TESTS_INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15
	cd $(APP) && ../../$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15

lint: $(TESTS_INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	cd $(APP) && ../../$(BIN)/ruff check . && ../../$(BIN)/ruff format --check . && ../../$(BIN)/mypy

bench: $(INSTALLED)
	$(PIP) fasterai==0.4.1
	$(BIN)/python benchmarks/training_step.py --json runs/benchmarks/training_step.json
	$(BIN)/python benchmarks/mask_update.py --json runs/benchmarks/mask_update.json
	$(BIN)/python benchmarks/memory.py --json runs/benchmarks/memory.json
	$(BIN)/python benchmarks/mask_criteria.py --json runs/benchmarks/mask_criteria.json
	$(BIN)/python benchmarks/compensation.py --json runs/benchmarks/compensation.json
	$(BIN)/python benchmarks/streaming.py --json runs/benchmarks/streaming.json

# All models of the zoo, hours on two cores; a run goes on where the last one stopped.
zoo: $(INSTALLED)
	$(PIP) torch-pruning==1.6.1
	$(BIN)/python benchmarks/zoo.py --peer torch-pruning --json docs/results/zoo.json \
		--markdown docs/results/zoo.md

# Random networks, some of them new in every run; 2000 take half an hour on one core.
networks: $(INSTALLED)
	NETWORKS=$(or $(COUNT),2000) $(BIN)/python -m pytest \
		tests/structure/test_random_networks.py --hypothesis-show-statistics

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "secateur needs Python 3.10 to 3.13; name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "venv is missing: apt-get install python3-venv"; exit 1; }

$(INSTALLED): pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (several GB the first time) ..."
	$(PIP) torch torchvision
	$(PIP) --editable '.[test]'
	@touch $@

# facenet-pytorch holds the face detector's weights. Its pins (torch < 2.3, numpy < 2) are stale, so
# it comes without its dependencies; unmask names what it really imports.
$(APP_INSTALLED): pyproject.toml $(APP)/pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) (several GB the first time) ..."
	$(PIP) torch torchvision
	$(PIP) --editable . --editable '$(APP)[web]'
	$(PIP) --no-deps facenet-pytorch==2.6.0
	@touch $@

# The page is tested in Debian's Chromium.
$(TESTS_INSTALLED): $(INSTALLED) $(APP_INSTALLED)
	$(PIP) --editable '$(APP)[test]'
	@command -v chromium >/dev/null || { apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "chromium is missing, so the tests of the page are skipped: apt-get install chromium"
	@touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
