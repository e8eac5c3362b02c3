# hivemind: everything a developer or a user of the checkout runs. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
CODE := core p2p proto dht compression averaging optim scripts tools tests benchmarks examples setup.py

.PHONY: types
types: ## mypy --strict on the package
	@MYPYPATH=$$($(PY) tools/link_tree.py) $(PY) -m mypy -p hivemind
