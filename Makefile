# The commands of the course. `make` alone lists them.
#   make lab TORCH=cpu     take PyTorch's CPU build (some 200 MB instead of gigabytes of CUDA libraries)
#   make lab PYTHON=...    use this Python (3.11 or newer);   VENV=... keeps the environment elsewhere
#   make lab LAB_ARGS="--no-browser --port=9000"

VENV ?= .venv
TORCH ?=
LAB_ARGS ?=
NB ?=
WORKERS ?= 2
PYTHON ?= $(firstword $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done))

BIN := $(VENV)/bin
RUN := $(BIN)/python
STAMP := $(VENV)/.installed
NOTE := $(VENV)-installing.tmp
INSTALL := $(RUN) -m pip install --disable-pip-version-check -c constraints.txt
# PyTorch for Linux comes with CUDA unless TORCH=cpu; elsewhere it does not.
NEEDED_GB := $(if $(filter cpu,$(TORCH)),3,$(if $(filter Linux,$(shell uname -s)),8,3))
# Notebooks and tests run on two threads, as the course's times say, and without the hub, as it promises.
OFFLINE := OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 DPO_TUTORIAL_MONITOR=plain

.PHONY: help lab install model test unit notebooks-check lint notebooks records bench site
.DEFAULT_GOAL := help

help:
	@echo "make lab         install once, fetch the model once, open the course in JupyterLab"
	@echo "make test        unit tests, then every notebook run again and compared with its stored output"
	@echo "make notebooks   execute the notebooks and store their output (NB=04 for one)"
	@echo "make records     run the long experiments whose record is missing"
	@echo "make bench       speed against TRL; the audit and the filters at 100,000 pairs"
	@echo "make site        the static site"
	@echo "make lint        ruff, notebooks included"

lab: $(STAMP)
	@$(RUN) -m dpo_tutorial lab $(LAB_ARGS)

install: $(STAMP)

model: $(STAMP)
	@$(RUN) -m dpo_tutorial fetch

test: unit notebooks-check

unit: $(STAMP) model
	@echo "Unit tests (some minutes) ..."
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile -m "not alone" tests dpo_tutorial
	@echo "Those that measure time, and the browser, one by one ..."
	@$(OFFLINE) $(RUN) -m pytest -m alone tests

NBVAL := -m pytest --nbval --nbval-current-env --nbval-cell-timeout=1800 notebooks
notebooks-check: $(STAMP) model unit
	@echo "Every notebook, run again and compared with its stored output (some 20 minutes) ..."
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) $(NBVAL) -n $(WORKERS) --dist loadfile -m "not alone"
	@echo "Those that measure time, or train for minutes on both cores, one by one ..."
	@$(OFFLINE) $(RUN) $(NBVAL) -m alone

lint: $(STAMP)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

notebooks: $(STAMP) model
	@$(OFFLINE) $(RUN) tools/execute_notebooks.py $(NB)

# $(call built,FILE,COMMAND): run COMMAND, or say that FILE is still to come.
built = @if [ -e $(1) ]; then $(2); else echo "$(1) is not built yet."; exit 1; fi

records: $(STAMP) model
	$(call built,tools/make_records.py,$(OFFLINE) $(RUN) tools/make_records.py)

bench: $(STAMP) model
	$(call built,benchmarks/dpo_step.py,$(OFFLINE) $(RUN) benchmarks/dpo_step.py && $(OFFLINE) $(RUN) benchmarks/data_scale.py)

site: $(STAMP)
	$(call built,docs/conf.py,$(RUN) -m sphinx -W --keep-going -q -b html docs docs/_build/html && echo "Open docs/_build/html/index.html")

# The installation. The stamp is written last, so that an interrupted one is taken up again by the next command;
# pip keeps what it has downloaded.
# A second installation into the same environment stops at the first one's note, which holds the number of its make.
$(STAMP): pyproject.toml constraints.txt
	@( set -C; echo $$PPID > $(NOTE) ) 2>/dev/null || { other=$$(cat $(NOTE)); \
		if [ "$$other" != $$PPID ] && kill -0 "$$other" 2>/dev/null; then \
		echo "Another installation is at work in $(VENV) (process $$other). When it has finished, run the same command" \
		"again; if there is none, remove $(NOTE)."; exit 1; fi; echo $$PPID > $(NOTE); }
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed (found: $$($(or $(PYTHON),python3) --version 2>/dev/null || echo none))." \
		"Install it, then name it, for example: make lab PYTHON=python3.12"; exit 1; }
	@ls -d $(VENV)/lib/python*/site-packages/torch >/dev/null 2>&1 || { \
		free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1000000) }'); [ "$$free" -ge $(NEEDED_GB) ] || { \
		echo "The disk is short: $$free GB are free here, about $(NEEDED_GB) GB are needed" \
		"(3 GB with make lab TORCH=cpu); make room and run the same command again."; exit 1; }; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || { \
		echo "Making the environment $(VENV) with $(PYTHON) (10 seconds) ..."; \
		clear=; [ ! -e $(VENV)/pyvenv.cfg ] || clear=--clear; $(PYTHON) -m venv $$clear $(VENV) || { \
		echo "The environment could not be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; }; }
	@$(RUN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The environment $(VENV) has a Python older than 3.11: remove that folder, then run the same command."; exit 1; }
	@if [ "$(TORCH)" = cpu ]; then echo "Installing PyTorch's CPU build (about 200 MB) ..."; \
		$(INSTALL) --no-deps --index-url https://download.pytorch.org/whl/cpu torch || { \
		echo "PyTorch's CPU build could not be installed: if the download failed, run the same command again."; exit 1; }; fi
	@echo "Installing the course and its packages (2 to 4 minutes; several more where CUDA is downloaded) ..."
	@$(INSTALL) -e '.[test]' || { echo "The installation did not finish. If a download failed, run the same command" \
		"again: what has been downloaded is kept."; exit 1; }
	@touch $(STAMP); rm -f $(NOTE)
	@echo "Installed."
