# `make demo` and `make test` need git, make and python3 (3.11 or newer); everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
MSRCNN := $(BIN)/msrcnn
DEMO ?= demo
TRACKING := sqlite:///$(DEMO)/mlflow.db

.PHONY: setup demo test test-fast test-slow lint lock clean

setup: $(INSTALLED)

# Bytecode at once: where Python is told to write none, each process of Ray's would compile all that it imports.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; run make with PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# The whole job on a laptop. Each step is skipped where its result is there already; `make clean` removes all of it.
demo: $(DEMO)/report.html
	@echo "what came of it, with pictures: $(DEMO)/report.html"
	@echo "numbers: $(DEMO)/evaluation/summary.json   detections: $(DEMO)/evaluation/detections"
	@echo "curves, settings and the model: $(BIN)/mlflow ui --backend-store-uri $(TRACKING)"

$(DEMO)/images/annotations/instances_val.json: | $(INSTALLED)
	$(MSRCNN) shapes --out $(DEMO)/images --train 600 --val 150

$(DEMO)/shards/%/manifest.json: | $(DEMO)/images/annotations/instances_val.json
	$(MSRCNN) shard --annotations $(DEMO)/images/annotations/instances_$*.json --images $(DEMO)/images/$* \
		--out $(DEMO)/shards/$* --name shapes-$* --row-group 16

$(DEMO)/run/model.pt: | $(DEMO)/shards/train/manifest.json
	$(MSRCNN) train --preset demo --shards $(DEMO)/shards/train --run $(DEMO)/run --workers 2 --tracking $(TRACKING)

$(DEMO)/evaluation/summary.json: | $(DEMO)/run/model.pt $(DEMO)/shards/val/manifest.json
	$(MSRCNN) evaluate --model $(DEMO)/run --shards $(DEMO)/shards/val --out $(DEMO)/evaluation --tracking $(TRACKING)

$(DEMO)/report.html: | $(DEMO)/evaluation/summary.json
	$(MSRCNN) report $(DEMO)/evaluation --out $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not ray"

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# After a change of dependencies in pyproject.toml: for development, and with the same versions for the image.
lock: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra optuna --extra serve --extra launcher \
		--extra video pyproject.toml --constraints requirements.lock -o cluster/requirements.lock

clean:
	rm -rf $(DEMO)
