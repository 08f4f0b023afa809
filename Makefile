# Each target sets up what it needs; a fresh clone wants Python 3.11 or 3.12 and make, nothing else.
#   make demo [SLIDE=path QUERY="…"] · make serve [ARGS=…] · make test [TESTS=…] · make lint · make bench · make train [ARGS=…]

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
TESTS ?=
ARGS ?=

export SLIDE QUERY VENV PYTHON
export HF_HUB_OFFLINE ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo serve test faults lint bench train manifests lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

demo: $(READY)
	@$(BIN)/slidereason demo $${SLIDE:+--slide "$$SLIDE"} $${QUERY:+--query "$$QUERY"} $(ARGS)

serve: $(READY)
	@$(BIN)/slidereason serve $(ARGS)

# All tests with the coverage floor; `make test TESTS=tests/model` runs a part without it.
test: $(READY)
	@rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile \
	    $(if $(TESTS),$(TESTS),--cov=service --cov=worker --cov=model --cov-report=term --cov-fail-under=85)

# The long fault tests: 200 jobs under fire for 5 minutes on each storage; about half an hour on 2 cores.
faults: $(READY)
	SLIDEREASON_FAULT_JOBS=200 SLIDEREASON_FAULT_SECONDS=300 SLIDEREASON_FAULT_PERIOD_S=5 SLIDEREASON_FAULT_WORKERS=4 \
	    SLIDEREASON_FAULT_STORAGE=s3,local SLIDEREASON_FAULT_STORAGE_AWAY_S=20 \
	    $(BIN)/python -m pytest -q -s tests/faults $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pip check

bench: $(READY)
	$(BIN)/python -m benchmarks.run $(ARGS)

# The stages of the shipped model into runs/, each resumed where it stopped, then the stains it saw; or a stage by ARGS.
train: $(READY)
ifeq ($(ARGS),)
	$(BIN)/slidereason train lm --out runs/lm
	$(BIN)/slidereason train pretrain --out runs/pretrain
	$(BIN)/slidereason train sft --out runs/sft --init runs/lm --init runs/pretrain
	$(BIN)/slidereason train sft --config model/training/oneshot.json --out runs/oneshot --init runs/sft
	$(BIN)/python -m model.training.trained_stain runs/oneshot/checkpoint
else
	$(BIN)/slidereason train $(ARGS)
endif

# Evaluation manifests from the data folders, into a folder git ignores.
manifests: $(READY)
	$(BIN)/slidereason dataset manifest --out runs/manifests $(ARGS)

lock: $(READY)
	@scripts/lock.sh

clean:
	rm -rf build dist demo demo-slide *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* \
	    coverage.xml
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
