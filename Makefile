# make demo: trains and evaluates on a generated sample set.   make test: runs the tests.
# Both set everything up themselves, and repeat nothing that is done already.
PYTHON ?= python3
RUN := .venv/bin/python
SAMPLE := checkpoint/action/sample_mbert

.PHONY: demo test
demo: .venv/runs data/action/sample_hrnet.pkl
	$(RUN) train_action_mbert.py --config configs/sample/mbert.yaml --checkpoint $(SAMPLE)
	$(RUN) train_action_mbert.py --evaluate $(SAMPLE)/best_epoch.bin

test: .venv/tests
	$(RUN) -m pytest -q

data/action/sample_hrnet.pkl: lib/data/sample.py | .venv/runs
	$(RUN) -m lib.data.sample --out data/action

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
