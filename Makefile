# make        editable install into .venv, with everything for development
# make demo   set up and run the main job on this machine's own two ranks: tables, file, picture
# make test   set up and pass the tests
# make test-rdma  the tests that need RDMA devices, in a virtual machine (make test does it, too)
# make lint   ruff, mypy
# make native-strict  our C and C++ with -Werror; make sanitize: the native tests under ASan, UBSan
# make package        wheel and sdist, installed and tried in a clean environment
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard native/* native/broker/* native/grpc/* native/kafka/* \
	native/rdma/* native/verbs/*)
LIBRARIES := $(VENV)/libraries
# pyverbs comes from the distribution and is built for its Python
RDMA_PYTHON ?= /usr/bin/python3
RDMA_VENV ?= .venv-rdma

.PHONY: all demo test test-rdma rdma-venv lint system-packages native-strict sanitize package clean
.DELETE_ON_ERROR:
# `test` installs system packages first, and what is built depends on them.
.NOTPARALLEL:

all: $(VENV)/dev.stamp

$(BIN)/python:
	"$$(scripts/find-python)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Changes only when an optional library comes, goes or changes: then the native code is built anew.
$(LIBRARIES): $(BIN)/python FORCE
	@pkg-config --modversion grpc++ protobuf > $@.new 2>/dev/null || echo none > $@.new
	@command -v protoc >> $@.new || true
	@pkg-config --modversion libibverbs librdmacm >> $@.new 2>/dev/null || true
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@
FORCE:

# The extras of each job: the demo needs less than the tests.
$(VENV)/all.stamp: $(BIN)/python $(SOURCES) $(LIBRARIES)
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/dev.stamp: $(BIN)/python $(SOURCES) $(LIBRARIES)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/all.stamp

demo: $(VENV)/all.stamp
	scripts/move-aside results/demo.jsonl results/demo.png
	$(BIN)/commbench run jobs/demo.toml --output results/demo.jsonl
	$(BIN)/commbench report results/demo.jsonl --png results/demo.png > /dev/null
	@echo "# results/demo.jsonl: every number; results/demo.png: percentile latency by size"

system-packages:
	scripts/system-packages

test: system-packages $(VENV)/dev.stamp
	@$(BIN)/commbench kafka fetch > /dev/null || echo "# the tests of a real Kafka are skipped"
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,scripts/rdma-ready $(BIN) $(RDMA_PYTHON) || exit 0; $(MAKE) test-rdma)

# One editable build for each environment, or one would build into the other's folder.
$(RDMA_VENV)/dev.stamp: $(SOURCES) $(LIBRARIES)
	$(RDMA_PYTHON) -m venv --system-site-packages $(RDMA_VENV)
	$(RDMA_VENV)/bin/python -m pip install --quiet \
		--config-settings build-dir='build/rdma-{wheel_tag}' --editable '.[test]'
	touch $@

rdma-venv: $(RDMA_VENV)/dev.stamp

test-rdma: system-packages rdma-venv
	scripts/test-rdma $(RDMA_VENV)/bin $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p commbench

native-strict: $(VENV)/dev.stamp
	scripts/native-strict $(BIN)/python

sanitize: $(VENV)/dev.stamp
	scripts/sanitize $(BIN)/python

package: $(VENV)/dev.stamp
	scripts/package $(BIN)/python

clean:
	rm -rf $(VENV) $(RDMA_VENV) build dist .mypy_cache .pytest_cache .ruff_cache
