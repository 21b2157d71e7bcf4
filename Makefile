# `make demo` and `make test` need Python 3.10 or newer and a package index, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH_DATA ?= $(or $(LACONIC_DATA),../shared/data)
RIVALS := documents,langchain-embeddings-filter,llamaindex-sentence-optimizer
BASELINES := truncate,random,lead

.PHONY: demo test check docs notebooks package bench clean

demo: $(VENV)/installed
	$(BIN)/laconic demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

# Build the site, without the network; its pages are then under site/.
docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict

# Run the notebooks again, without the network, and save what they print.
notebooks: $(VENV)/installed
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

# Build both packages, install the wheel where nothing else is, and use it.
package: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build -q .
	$(PYTHON) -m zipfile -l dist/*.whl | grep -q laconic/core/weights/pruner/adapter.safetensors
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install -q dist/*.whl
	cd / && echo "The sky is blue. Paris is the capital of France. Fish swim." \
		| $(abspath $(VENV)-wheel)/bin/laconic compress -q "capital of France" -t 8 \
		| grep -qx "Paris is the capital of France."

bench: $(VENV)/installed
	$(BIN)/laconic bench --methods extractive,lexical,$(RIVALS),$(BASELINES) --out bench-results \
		--data $(foreach f,nq20 squad multihop covidqa,$(BENCH_DATA)/$(f).jsonl.gz)
	$(BIN)/laconic bench speed --methods lexical,extractive --rates .25 --limit 600 \
		--data $(BENCH_DATA)/nq20.jsonl.gz

# torch is installed first and alone: its pinned release has a CPU build, the newest may not.
$(VENV)/installed: pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-wheel .editable build dist site
