# Verbs for people who work on quantarena. `make` alone lists them.
PY := .venv/bin/python
# One worker for each core, four at most (each needs a gigabyte); the tests of a file share one.
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile
PACKAGES := quantarena.bench quantarena.methods quantarena.leaderboard

.DEFAULT_GOAL := help
.PHONY: help install lint format type test long fast fuzz bench bench-kernels gpu docs clean

help:  ## list the verbs
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

install:  ## make .venv and install the package with everything that developing needs
	@./run_all.sh --install '[dev,metrics]'

lint: install type  ## ruff check, ruff format, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: install  ## let ruff rewrite
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

type: install  ## mypy, on an installed copy: it cannot follow the mapped folders of an editable one
	@rm -rf .typecheck && mkdir -p .typecheck/quantarena && touch .typecheck/quantarena/py.typed
	@cp bench/_root/__init__.py .typecheck/quantarena/
	@cp -R bench methods leaderboard .typecheck/quantarena/
	@rm -rf .typecheck/quantarena/bench/_root
	cd .typecheck && ../$(PY) -m mypy --config-file ../pyproject.toml \
	  --cache-dir ../.mypy_cache $(addprefix -p ,$(PACKAGES))

test: install  ## all tests that this machine can run; skipped ones say why
	$(PYTEST)

long: install  ## the tests of minutes: kills over a cluster, machines, whole examples
	$(PY) -m pytest --long -m long -v

fast: install  ## tests of a minute: what needs no network of torch and no long run
	$(PYTEST) --fast

FUZZ := 3000
fuzz: install  ## random layers on every unit: 3000 each under ASan, UBSan and against the oracle
	$(PY) -m quantarena.methods.core.kernels.sanitize --sanitizer address --layers $(FUZZ)
	$(PY) -m quantarena.methods.core.kernels.sanitize --sanitizer undefined --layers $(FUZZ)
	$(PY) -m quantarena.methods.core.kernels.sanitize --sanitizer thread --layers 300 --callers 3
	$(PY) -m pytest tests/methods/core/kernels/test_fuzz.py -s

bench: install  ## time the methods and the kernels: tests/benchmarks
	$(PY) -m pytest tests/benchmarks --benchmark-only

bench-kernels: install  ## packed layers against fp32 and other int8, with rooflines; results/kernels.json
	@mkdir -p results
	$(PY) -m quantarena.methods.timing.kernels --json results/kernels.json

gpu: install  ## on a CUDA device: its tests, preset smoke, kernels; docs/results/gpu-<card>.md
	$(PY) -m pytest -m gpu
	$(PY) -m pytest tests/methods/core/cuda  # without a GPU Triton's interpreter runs these
	.venv/bin/quantarena run smoke --device cuda
	$(PY) -m quantarena.methods.timing.cuda --json results/cuda.json
	$(PY) docs/experiments/gpu_page.py results/smoke-cuda results/cuda.json

docs:  ## the documentation site, in site/; a broken link is an error
	@./run_all.sh --install '[docs]'
	.venv/bin/mkdocs build --strict

clean:  ## forget builds and caches, keep results
	rm -rf build site .typecheck .mypy_cache .ruff_cache .pytest_cache *.egg-info
