# Two commands are enough: `make demo` and `make test`. Each makes its own virtual environment in .venv and installs
# what it needs, once. PYTHON names another interpreter (3.10 to 3.12), TORCH another torch, PIP_ARGS more pip flags.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=
VENV := .venv
RUN := . $(VENV)/bin/activate &&

.PHONY: demo test check fuzz gpu lint clean

demo: $(VENV)/.demo-ready
	@$(RUN) python examples/demo.py

test: check
	@$(RUN) python -m pytest --durations=15

# What a minute finds, before the tests begin.
check: $(VENV)/.test-ready
	@$(RUN) ruff check . && ruff format --check . && mypy

# A million changed inputs over every reader and every argument; make fuzz FUZZ_INPUTS=10000 FUZZ_SEED=2 FUZZ_JOBS=4 tries others.
fuzz: $(VENV)/.test-ready
	@$(RUN) FUZZ_INPUTS=$(FUZZ_INPUTS) FUZZ_SEED=$(FUZZ_SEED) FUZZ_JOBS=$(FUZZ_JOBS) python -m tests.fuzz

# On a machine with a GPU, in whatever environment `python3` is; nothing is installed.
gpu:
	$(PYTHON) -m pytest tests/kernels tests/gpu -m "gpu or not gpu"

lint: check
	@$(RUN) shellcheck -x $$(git ls-files '*.sh') .ci/run

# torch first and by itself, so that nothing else decides which build of it comes.
$(VENV)/.torch-ready:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else "Python 3.10, 3.11 or 3.12 is needed; write make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "installing $(TORCH) into $(VENV); without a GPU, PIP_ARGS can name PyTorch's index of CPU builds"
	@$(RUN) python -m pip install -q --disable-pip-version-check $(PIP_ARGS) '$(TORCH)'
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing this project and what the demo needs"
	@$(RUN) python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e '.[demo]'
	@touch $@

$(VENV)/.test-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing this project and what the tests need"
	@$(RUN) python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .demo .hypothesis .mypy_cache .ruff_cache
