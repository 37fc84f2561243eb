# make demo: trains and evaluates all three models on a generated sample set.
# make test: runs the quick tests (5 minutes on two cores).   make test-all: the slow ones too (25 minutes).
# Each installs what is missing; finished steps are not repeated.
PYTHON ?= python3
RUN := .venv/bin/python
SAMPLE := checkpoint/action/sample

.PHONY: demo test test-all
demo: .venv/runs data/action/sample_hrnet.pkl
	$(RUN) train_action_mbert.py --config configs/sample/mbert.yaml --checkpoint $(SAMPLE)_mbert
	$(RUN) train_action_mbert.py --evaluate $(SAMPLE)_mbert/best_epoch.bin
	$(RUN) train_action_vanilla.py --config configs/sample/vanilla.yaml --checkpoint $(SAMPLE)_vanilla
	$(RUN) train_action_vanilla.py --evaluate $(SAMPLE)_vanilla/best_epoch.bin
	$(RUN) train_action_vivit.py --config configs/sample/vivit.yaml --checkpoint $(SAMPLE)_vivit
	$(RUN) train_action_vivit.py --evaluate $(SAMPLE)_vivit/best_epoch.npz
	$(RUN) -m lib.tools.compare $(SAMPLE)_mbert $(SAMPLE)_vanilla $(SAMPLE)_vivit

test: .venv/tests
	$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# The slow tests start processes and watch time and memory, so they run one by one.
test-all: test
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -q -m 'slow or hypothesis'

data/action/sample_hrnet.pkl: lib/tools/sample/dataset.py | .venv/runs
	$(RUN) -m lib.tools.sample --out data/action --files data/action/sample_files

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/runs: requirements.txt .venv/bin/pip
	@echo 'installing requirements.txt: a few minutes, 7.5 GB'
	.venv/bin/pip install -q -r requirements.txt
	touch $@

.venv/tests: tests/requirements.txt .venv/runs
	.venv/bin/pip install -q -r tests/requirements.txt
	touch $@
