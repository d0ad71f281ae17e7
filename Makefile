# Needs Python 3.11 or later, make and the package registry; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: train test lint install clean help

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/'

train: $(INSTALLED)  ## train the default recipe; ARGS="optimizer.lr=0.01" adds overrides
	$(BIN)/python train.py $(ARGS)

test: $(INSTALLED)   ## run the test suite; ARGS="-k tie" adds pytest options
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)  ## create .venv and install everything

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "builder needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[recipes,dev]'
	touch $@

clean:           ## remove .venv and caches (runs stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache builder.egg-info
