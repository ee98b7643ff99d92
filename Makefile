# Everything from a fresh clone. Needs Python 3.11+; GNU make 3.81, which macOS has, is enough.

PY := .venv/bin/python
DEMO_READY := .venv/.demo-ready
DEV_READY := .venv/.dev-ready
TEST_MODELS := smollm2-135m qwen2.5-coder-0.5b qwen2.5-coder-1.5b
# On two cores: a test file stays on one worker, which loads its model once.
PYTEST_ARGS := -n 2 --dist loadfile -m ''

# Several llama.cpp processes share the cores: waiting threads must not spin.
export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-small test soak lint audit native clean

help:
	@echo 'make demo        one server, three devices and a pair of real models (pulls 1.6 GB)'
	@echo 'make demo-small  the same with the small model alone (pulls 98 MB)'
	@echo 'make native      build llama.cpp for this processor, 7 to 12 minutes on two cores'
	@echo 'make test        linters, types and all tests (pulls 1.7 GB of models)'
	@echo 'make soak        the long forms of fault and fuzz tests, about 35 minutes (docs/robustness.md)'
	@echo 'make lint        linters and types alone'
	@echo 'make audit       known vulnerabilities in what the lock files name (needs the network)'
	@echo 'make clean       remove .venv and caches here; pulled models stay'
	@echo 'PYTHON=/path/to/python3.12 chooses the interpreter for .venv.'

demo: $(DEMO_READY)
	@echo '==> multispin demo'
	@$(PY) -m multispin demo

demo-small: $(DEMO_READY)
	@echo '==> multispin demo --small'
	@$(PY) -m multispin demo --small

lint: $(DEV_READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy scripts
	.venv/bin/lint-imports

test: lint
	@echo '==> models for the tests'
	@$(PY) -m multispin models pull $(TEST_MODELS)
	$(PY) -m pytest $(PYTEST_ARGS)

audit: $(DEV_READY)
	$(PY) scripts/audit.py

soak: $(DEV_READY)
	$(PY) -m tests.soak

native: $(DEMO_READY)
	@$(PY) scripts/build_native.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(DEMO_READY): pyproject.toml scripts/set_up.sh requirements-demo.lock
	@bash scripts/set_up.sh demo $@

# The development dependencies include those of the demo.
$(DEV_READY): pyproject.toml scripts/set_up.sh requirements-dev.lock
	@bash scripts/set_up.sh dev $@ $(DEMO_READY)
