# fxtrace: `make demo` shows the main job, `make test` checks everything. Both set themselves up on a bare Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.demo-ready
NODE_READY := examples/node/node_modules/.ready
BUF_READY := $(VENV)/buf/.ready

.PHONY: demo test lint types stubs stubs-check pytest bench coverage goldens clean

demo: $(DEMO_READY)
	$(BIN)/fxtrace demo --out out

test: lint types stubs-check pytest

# One environment: the demo installs what it needs, everything else adds the rest. An install is redone only when what is
# installed changes, and two at once wait for each other.
$(DEMO_READY): pyproject.toml constraints.txt
	@$(PYTHON) .ci/install server,images $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) .ci/install dev $@ $(DEMO_READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

pytest: $(READY) $(NODE_READY) $(BUF_READY)
	$(BIN)/pytest

# The Node example is tested where Node is installed; its test says so where it is not.
$(NODE_READY): examples/node/package-lock.json
	@if command -v npm >/dev/null; then cd examples/node && npm ci --silent --ignore-scripts --no-audit --no-fund; \
	else echo "npm is not installed: the Node example will be skipped"; fi
	@mkdir -p $(@D) && touch $@

# Where Node is installed, buf itself lints the protos; everywhere, tests/protos has the same rules in Python.
$(BUF_READY): $(READY)
	@if command -v npm >/dev/null; then \
	npm install --prefix $(@D) --silent --ignore-scripts --no-audit --no-fund --no-package-lock @bufbuild/buf@1.75.0 || \
	echo "buf cannot be installed: its test will be skipped"; fi
	@mkdir -p $(@D) && touch $@

STUBGEN = $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --mypy_out=readable_stubs:$(1) \
	$$(ls protos/fxtrace/v1/*.proto | sed 's,protos/,,') && \
	$(BIN)/python -m grpc_tools.protoc -I protos --grpc_python_out=$(1) --mypy_grpc_out=$(1) fxtrace/v1/trace_service.proto

# Regenerate the checked-in stubs from protos/.
stubs: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH"; $(call STUBGEN,.)

# The checked-in stubs are what protos/ gives, or this fails.
stubs-check: $(READY)
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && PATH="$(CURDIR)/$(BIN):$$PATH" && $(call STUBGEN,"$$tmp") && \
	diff -r -x __init__.py -x __pycache__ "$$tmp/fxtrace/v1" fxtrace/v1 && echo "stubs: up to date"

# Measurements; the README's table is made of what this prints.
bench: $(READY)
	$(BIN)/python -m tests.benchmarks

# Traces every model of tests/benchmarks/coverage and writes table.md there and the README's part. Takes half an hour.
coverage: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[coverage]'
	$(BIN)/python -m tests.benchmarks.coverage

# Refresh the golden DOT sources after a wanted change of the pictures.
goldens: $(READY)
	$(BIN)/pytest tests/render --refresh-goldens

clean:
	rm -rf $(VENV) out examples/node/node_modules
