# The jobs of this repository; `make help` lists them. Everything they need is installed into .venv and target/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
FUZZ_SECONDS ?= 10
BIN := .venv/bin
PY := $(BIN)/python
RUST := $(shell find shm/ring workers/engine ops/load/swarm ops/profile/flame -name '*.rs' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock
CONFIG ?=

.PHONY: help build run demo test lint format rust-test loom fuzz py-test engines soak bench million clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(PY):
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --upgrade pip

# What `pip install tidegate[...]` takes for each job; the tests run the demonstration, the benchmarks and
# the profiler too.
EXTRAS_demo := [demo]
EXTRAS_test := [test,demo,bench,profile]

# An editable install compiles both extension modules in release mode. The warnings that are switched
# off are about packages at the root of a repository, which is where ours are meant to be.
.venv/.run .venv/.demo .venv/.test: .venv/.%: $(PY) pyproject.toml constraints.txt $(RUST)
	@echo "Installing into .venv and compiling the data plane; the first time takes some minutes."
	@PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --constraint constraints.txt \
		--editable '.$(EXTRAS_$*)'
	@touch $@

build: .venv/.run  ## Install the gateway into .venv, extension modules included

run: build  ## Start a gateway in the foreground (CONFIG=FILE for a configuration)
	$(BIN)/tidegate run $(if $(CONFIG),-c $(CONFIG))

demo: .venv/.demo  ## Replay a day of flights to thousands of subscribers, with a reload half-way
	$(PY) -m ops.demo

test: .venv/.test lint rust-test loom fuzz py-test  ## Install what the tests need and run all of them

lint: .venv/.test  ## Check style, types and stubs; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PY) -m mypy.stubtest shm._ring workers._engine --ignore-missing-stub \
		--allowlist .mypy-stubtest-allowlist
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

format: .venv/.test  ## Rewrite all sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	cargo fmt

rust-test:  ## Unit, property, model and kill tests of the crates
	cargo test --workspace --locked
	TIDEGATE_TEST_ENGINE=io_uring cargo test --package tidegate-engine --test serving --test handoff --locked

# A target directory of its own: --cfg loom would otherwise rebuild everything twice.
loom:  ## Check the lock-free code against every interleaving
	RUSTFLAGS="--cfg loom" cargo test --package tidegate-ring --lib --test loom --test loom_channels --test loom_heap --release --locked --target-dir target/loom

fuzz:  ## Fuzz each parser for FUZZ_SECONDS
	fuzz/run $(FUZZ_SECONDS)

# A file of tests stays in one process: its tests share a gateway.
py-test: .venv/.test  ## Python unit tests and system tests with real processes
	$(BIN)/pytest -m 'not soak' --numprocesses 3 --dist loadfile
	$(BIN)/pytest -m 'sending and not soak' --engine io_uring --numprocesses 3 --dist loadfile

engines: .venv/.test  ## The whole of the system tests with each engine (workers.engine)
	$(BIN)/pytest -m 'not soak' --engine epoll --numprocesses 3 --dist loadfile tests/system
	$(BIN)/pytest -m 'not soak' --engine io_uring --numprocesses 3 --dist loadfile tests/system

soak: .venv/.test  ## The long runs that `make test` leaves out
	$(BIN)/pytest -m soak --timeout 3600

bench: .venv/.test  ## Run all benchmarks but the million; beside other servers, where they are installed
	$(BIN)/tidegate bench all

million: .venv/.test  ## Hold a million connections on this machine, and reload under them (as root)
	$(BIN)/tidegate bench million

clean:  ## Remove everything that was built or installed
	rm -rf .venv target fuzz/target build *.egg-info shm/*.so workers/*.so
