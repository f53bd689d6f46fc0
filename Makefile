# Everything installs itself into .venv; only Python 3.10 to 3.13 with its venv module is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A build of torch that stands next to torchvision has to match it, so both come from one install.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench zoo networks clean

demo: $(INSTALLED)
	$(BIN)/secateur compress --out runs/demo --overwrite

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(INSTALLED)
	$(PIP) fasterai==0.4.1
	$(BIN)/python benchmarks/training_step.py --json runs/benchmarks/training_step.json
	$(BIN)/python benchmarks/mask_update.py --json runs/benchmarks/mask_update.json
	$(BIN)/python benchmarks/memory.py --json runs/benchmarks/memory.json

# All models of the zoo, hours on two cores; a run goes on where the last one stopped.
zoo: $(INSTALLED)
	$(PIP) torch-pruning==1.6.1
	$(BIN)/python benchmarks/zoo.py --peer torch-pruning --json docs/results/zoo.json \
		--markdown docs/results/zoo.md

# Random networks, some of them new in every run; 2000 take half an hour on one core.
networks: $(INSTALLED)
	NETWORKS=$(or $(COUNT),2000) $(BIN)/python -m pytest \
		tests/structure/test_random_networks.py --hypothesis-show-statistics

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "secateur needs Python 3.10 to 3.13; name one with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "venv is missing: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (several GB the first time) ..."
	$(PIP) torch torchvision
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
