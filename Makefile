VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint check format bench soak slurm-packages browser clean

demo: $(VENV)/.ready            ## set up, then run a real job on this machine's CPU
	$(BIN)/launcher run configs/demo.yaml

test: $(VENV)/.ready slurm-packages browser   ## set up, then all tests, on a real Slurm cluster where this is root
	$(BIN)/pytest

lint: $(VENV)/.ready            ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint                     ## that, and unit and contract tests: before every commit
	$(BIN)/pytest -q tests/unit tests/contract

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready           ## the figures of README and docs; streamed, predictions, faults and noticed take longer and run by themselves
	for name in cli measure ledger engine attention loading schedules pipeline tensor score; do $(BIN)/python -m benchmarks.$$name || exit 1; done

soak: $(VENV)/.ready            ## an hour of random specs and faults; from a printed seed
	PYTHONPATH=tests $(BIN)/python tests/faults/soak.py

slurm-packages:                 ## Debian's Slurm, for the dev cluster; says so and goes on where it can't
	sh tests/install.sh slurm

browser:                        ## Debian's Chromium, for the tests of the report; says so and goes on where it can't
	sh tests/install.sh browser

$(VENV)/.ready: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
