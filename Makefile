# Two commands for a fresh machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
# The CPU build where it is at hand; on a GPU machine: make TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=

.PHONY: demo test test-slow learning learning-methods learning-curves lint benchmark-control clean

demo: $(VENV)/.installed
	$(RUN) recipes/arithmetic.py $(ARGS)

test: lint
	$(RUN) -m pytest -n 2 --dist worksteal

# Kill-and-resume in full, and what else takes minutes.
test-slow: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n 2 --dist worksteal --ignore tests/learning

# The learning claims of the README, every seed (about an hour on 2 cores); results stay in runs/learning.
learning: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n 2 --dist worksteal -s tests/learning/test_learning.py

# Every method on CartPole, Pendulum and arithmetic, every seed (many hours); docs/algorithms.md shows the table.
learning-methods: $(VENV)/.installed
	$(RUN) -m pytest -m slow -n 2 --dist worksteal -s tests/learning/test_methods.py
	$(RUN) tests/learning/table.py

# What figure 17 of recipes/theory.py shows beside those: every method on Acrobot and Pendulum, ten seeds (some hours).
learning-curves: $(VENV)/.installed
	$(RUN) -m tests.learning.curves
	$(RUN) tests/learning/table.py

# Speed on control beside Stable-Baselines3, which only this target installs.
benchmark-control: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check "stable-baselines3==2.9.*"
	PYTHONPATH=. $(RUN) benchmarks/control_speed.py $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml Makefile
	@command -v $(PYTHON) >/dev/null || { echo "rlhf needs Python 3.11 or newer; '$(PYTHON)' was not found. Install it, or name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rlhf needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV)
