# make quickstart   set up .venv, then train and watch a model imagine (ARGS="--minutes 60" for more)
# make test         all tests      PYTEST_ARGS="tests/unit -k shapes" for some
# make lint         ruff and mypy
# make clean        remove .venv and caches; runs/, data/ and shards/ are kept

PYTHON ?= python3
# More options for pip, for example an index that has torch's CPU build.
PIP_ARGS ?=
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help quickstart setup test lint format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | sed -n '/^make /p'

# By variables, not by -c: those hold for what builds the package (hatchling), too.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tokenwm needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e '.[pusht,atari,hdf5,rlds,ray,slurm,scaling,serve,hub,sb3,completion,dev,dev-s3]'
	touch $@

setup: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/tokenwm quickstart $(ARGS)

# Two workers on two cores: each gets one thread, or they would fight for the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 SDL_VIDEODRIVER=dummy $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict tokenwm $(wildcard tools/*.py)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
