# make course   environment, packages, every notebook executed; results in build/notebooks/
# make lab      environment, packages, JupyterLab
# make test     environment, packages, test tools, every test
#
# Nothing is installed outside .venv/. PYTHON=/path/to/python chooses the interpreter (3.11, 3.12 or 3.13).

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
            $(shell $(p) -c "$(SUPPORTED)" >/dev/null 2>&1 && echo $(p))))
BIN := .venv/bin

.PHONY: course lab test lock

course: .venv/.course
	$(BIN)/python -m icrl_utils course

lab: .venv/.course
	$(BIN)/python -m icrl_utils lab

test: .venv/.test
	$(BIN)/python -m pytest

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or: make course PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

# Stamps: packages are installed once, and again when the requirements change.
.venv/.course: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --editable .
	@touch $@

.venv/.test: requirements.txt requirements-dev.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --requirement requirements-dev.txt --editable .
	@touch $@ .venv/.course

# Remakes the exact lock from what is installed now (a local build suffix such as +cpu is no part of a version).
lock: .venv/.test
	@{ grep '^#' requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
