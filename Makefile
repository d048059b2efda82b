# Two commands are enough: `make demo` and `make test`. Each makes its own virtual environment in .venv and installs
# what it needs, once. PYTHON names the interpreter (3.11 to 3.13; else tools/choose_python.sh finds one), TORCH another torch,
# PIP_ARGS more pip flags. CPU=1 takes torch from PyTorch's index of CPU builds: 1.4 GB instead of 5.1.
PYTHON ?=
TORCH ?= torch==2.13.0
CPU ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PIP_ARGS ?=
# Files of tests that run at the same time; a file stays with one process, which keeps its fixtures.
TEST_JOBS ?= 2
VENV := .venv
RUN := . $(VENV)/bin/activate &&
# Python compiles what is imported, when it is; pip would compile all of it, which takes a third of the installation.
PIP := $(RUN) python -m pip install -q --disable-pip-version-check --no-compile

.PHONY: demo test matrix check style fuzz soak gpu docs lint clean

demo: $(VENV)/.demo-ready
	@$(RUN) python examples/demo.py

# mypy takes a minute of one processor, so the tests run beside it; what it finds is printed at their end.
test: style
	@$(RUN) mypy > $(VENV)/mypy.txt 2>&1 & types=$$!; \
	    $(RUN) python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations=15; tests=$$?; \
	    wait $$types && exit $$tests; cat $(VENV)/mypy.txt; exit 1

# What seconds find, and types.
check: style
	@$(RUN) mypy

style: $(VENV)/.test-ready
	@$(RUN) ruff check . && ruff format --check . && shellcheck -x $$(git ls-files '*.sh') .ci/run

# A million changed inputs over every reader and every argument; make fuzz FUZZ_INPUTS=10000 FUZZ_SEED=2 FUZZ_JOBS=4 tries others.
fuzz: $(VENV)/.test-ready
	@$(RUN) FUZZ_INPUTS=$(FUZZ_INPUTS) FUZZ_SEED=$(FUZZ_SEED) FUZZ_JOBS=$(FUZZ_JOBS) python -m tests.fuzz

# A thousand faults at random moments of small runs, each compared with the run that nothing happened to; hours.
# make soak SOAK_CASES=30 SOAK_SEED=2 SOAK_JOBS=4 tries others; with SOAK_RESULTS=FILE a later start takes up where this one ended.
soak: $(VENV)/.test-ready
	@$(RUN) SOAK=1 python -m pytest tests/faults/test_networks.py tests/faults/test_local_output.py \
	  tests/faults/test_process_faults.py tests/kernels/test_compiled.py tests/train/test_against_hugging_face.py \
	  tests/train/test_resume.py tests/train/test_graphs.py
	@$(RUN) SOAK_CASES=$(SOAK_CASES) SOAK_SEED=$(SOAK_SEED) SOAK_JOBS=$(SOAK_JOBS) python -m tests.faults \
	  $(if $(SOAK_RESULTS),--results $(SOAK_RESULTS))

# The suite's core with each Python, megatron-core and torch that are supported and that this machine has an interpreter for; the
# table comes into docs/matrix.md. CORNERS="3.13/0.19.2/2.15.0 ..." names some of them alone.
matrix:
	@python=$$(sh tools/choose_python.sh $(PYTHON)) || exit 2; "$$python" -m tests.matrix $(CORNERS)

# On a machine with a GPU, in whatever environment `python3` is; nothing is installed.
gpu:
	$(or $(PYTHON),python3) -m pytest tests/kernels tests/gpu -m "gpu or not gpu"

lint: check

# The documentation as a site, in site/.
docs: $(VENV)/.docs-ready
	@$(RUN) python -m tools.argument_pages && mkdocs build --strict

# torch first and by itself, so that nothing else decides which build of it comes.
$(VENV)/.torch-ready:
	@python=$$(sh tools/choose_python.sh $(PYTHON)) || exit 2; \
	    "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	        echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@if [ -n "$(CPU)" ]; then echo "installing $(TORCH), the CPU build, into $(VENV): 1.4 GB with all that is needed"; \
	    elif [ -e /proc/driver/nvidia ] || command -v nvidia-smi >/dev/null; then echo "installing $(TORCH) into $(VENV): 5.1 GB"; \
	    else echo "installing $(TORCH) into $(VENV): 5.1 GB with CUDA, though here is no NVIDIA driver;" \
	        "CPU=1 takes 1.4 GB: make $(or $(MAKECMDGOALS),demo) CPU=1"; fi
	@$(PIP) $(if $(CPU),--index-url '$(CPU_INDEX)') $(PIP_ARGS) '$(TORCH)'
	@touch $@

$(VENV)/.demo-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing this project and what the demo needs"
	@$(PIP) $(PIP_ARGS) -e '.[demo]'
	@touch $@

$(VENV)/.test-ready: $(VENV)/.torch-ready pyproject.toml
	@echo "installing this project and what the tests need"
	@$(PIP) $(PIP_ARGS) -e '.[test]'
	@touch $@

$(VENV)/.docs-ready: $(VENV)/.torch-ready pyproject.toml
	@$(PIP) $(PIP_ARGS) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .matrix .demo site .hypothesis .mypy_cache .ruff_cache
