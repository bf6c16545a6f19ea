# make demo         installs jdiff and runs the demo: prepare, train both models, sample, evaluate
# make test         installs jdiff and runs the tests; PYTHON=python3.12 uses another Python, in a separate environment
# make test-all     runs the slow tests, too
# make test-slurm   tests launch/slurm.sbatch on a real SLURM of two nodes; installs SLURM as root, so use a container
# make parity       compares networks and samplers with transformers and diffusers, on random weights
# make docs         builds the documentation, as a website in build/site
# make gpu-check    trains and samples at full size on the local GPU: images/s, memory, agreement with the CPU

PYTHON ?= python3
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
JDIFF := $(VENV)/bin/jdiff
EXTRAS ?= test
TESTS := $(VENV)/bin/python -m pytest --quiet --numprocesses=2 --dist=loadfile --no-loadscope-reorder --ignore=tests/parity --ignore=tests/launch/test_slurm.py

.PHONY: demo test test-all test-slurm parity docs gpu-check setup

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: setup
	$(JDIFF) prepare --config=demo_clip
	$(JDIFF) train --config=demo_clip --workdir=runs/shapes_clip
	$(JDIFF) evaluate --workdir=runs/shapes_clip
	$(JDIFF) train --config=demo_t2i --workdir=runs/shapes
	$(JDIFF) sample --workdir=runs/shapes --trajectory "a small red circle at the top left" \
		"a large blue star at the bottom right" "a large green ring in the centre" "a small black cross at the top"
	$(JDIFF) evaluate --workdir=runs/shapes --num=64

test: setup
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --quiet --check .
	$(TESTS) -m "not slow"

test-all: setup
	$(TESTS)

test-slurm: setup
	apt-get -qq update && apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null
	$(VENV)/bin/python -m pytest --quiet tests/launch/test_slurm.py

parity: setup
	$(VENV)/bin/python -m pip install --quiet --editable ".[test,parity]"
	$(VENV)/bin/python -m pip install --quiet --no-deps open_clip_torch  # only for CLIP's vocabulary
	$(VENV)/bin/python -m pytest --quiet -m "not slow" tests/parity

docs: setup
	$(VENV)/bin/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

gpu-check: setup
	$(VENV)/bin/python -m benchmarks gpu_check
