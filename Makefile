# Gamekeeper: `make` alone prints what there is. Needs Python 3.11+, make and a C compiler.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
TOOL := .tool
UV := $(TOOL)/bin/uv
BIN := .venv/bin
PROTO_SOURCES := $(shell find protos/gaming -name '*.proto')
MEMBERS := protos libs/servicekit libs/fleetsim libs/messaging libs/gamekeeper \
	services/gpu_metrics services/autoscaler services/ai_router services/knowledge_base deploy/local
SERVICES := gpu_metrics autoscaler ai_router knowledge_base
OWN := gamekeeper-protos gamekeeper-servicekit gamekeeper-fleetsim gamekeeper-messaging gamekeeper gamekeeper-gpu-metrics \
	gamekeeper-autoscaler gamekeeper-ai-router gamekeeper-knowledge-base gamekeeper-localsuite
RIVALS := benchmarks/knowledge_base/rivals
GPU_RIVALS := benchmarks/gpu_metrics/rivals
PYTEST_ARGS ?=
ARGS ?=

.PHONY: help
help: ## print this help
	@echo "Gamekeeper. Start here: make run"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  e.g.           make run ARGS=\"--once --players 200 --seed 7\"   (all options: make run ARGS=--help)"

# --- environment -------------------------------------------------------------------------------

$(UV): requirements/tool.txt
	@$(PYTHON) -c 'import sys; sys.exit("Gamekeeper needs Python 3.11 or newer; this is %s. Set PYTHON=/path/to/python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setup: uv into $(TOOL)"
	@$(PYTHON) -m venv --clear $(TOOL)
	@$(TOOL)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tool.txt
	@touch $(UV)

.venv/.requirements: requirements/dev.txt $(UV)
	@echo "setup: dependencies into .venv (about 900 MB; the first time takes a minute or two)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) pip sync --quiet --system-certs --require-hashes --python $(BIN)/python requirements/dev.txt
	@rm -f .venv/.members
	@touch $@

protos/gen/.stamp: $(PROTO_SOURCES) protos/generate.py .venv/.requirements
	@echo "setup: protocol code into protos/gen"
	@$(BIN)/python protos/generate.py >/dev/null 2>&1 || $(BIN)/python protos/generate.py
	@touch $@

.venv/.members: $(addsuffix /pyproject.toml,$(MEMBERS)) .venv/.requirements protos/gen/.stamp
	@echo "setup: the suite's own packages, editable"
	@$(UV) pip install --quiet --system-certs --no-deps --no-build-isolation --python $(BIN)/python \
		$(addprefix --editable ,$(MEMBERS))
	@touch $@

.PHONY: setup
setup: .venv/.members ## make .venv with everything, and the protocol code

.PHONY: protos
protos: .venv/.requirements ## generate the protocol code anew
	@rm -f protos/gen/.stamp
	@$(MAKE) protos/gen/.stamp

.PHONY: requirements
requirements: $(UV) ## compile the hashed requirements files from the pyproject.toml files
	@compile() { $(UV) pip compile --quiet --system-certs --python-version 3.11 --universal --generate-hashes \
		--no-header $(addprefix --no-emit-package ,$(OWN)) "$$@"; }; \
	compile --group dev pyproject.toml deploy/local/pyproject.toml -o requirements/dev.txt; \
	for service in $(SERVICES); do \
		compile -c requirements/dev.txt services/$$service/pyproject.toml -o requirements/$$service.txt; \
	done; \
	compile -c requirements/dev.txt libs/gamekeeper/pyproject.toml -o requirements/gamekeeper.txt; \
	compile -c requirements/dev.txt --group build pyproject.toml -o requirements/build.txt; \
	compile --excludes $(RIVALS)/without.txt $(RIVALS)/requirements.in $(GPU_RIVALS)/requirements.in -o requirements/rivals.txt

# --- the suite ---------------------------------------------------------------------------------

.PHONY: run
run: setup ## start the whole suite here and play an evening (ARGS="--once --players 200 --seed 7")
	@exec $(BIN)/python -m localsuite $(ARGS)

# --- proof -------------------------------------------------------------------------------------

.PHONY: test
test: setup grpcurl ## run all tests; prints what was skipped and why
	@# Two at a time: most of them wait for processes of their own. Files stay whole, so that what
	@# a file's tests share is made once.
	@$(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

.PHONY: endurance
endurance: setup ## run the long fault, attack, simulation and fuzz tests, one at a time
	@$(BIN)/pytest -m endurance $(PYTEST_ARGS)

.PHONY: isolated
isolated: setup ## run each service's unit tests with that service's own dependencies only
	@$(BIN)/python tests/isolated.py

.PHONY: contract
contract: setup grpcurl ## check the protocol: lint, breaking changes, vectors, baseline client, grpcurl
	@$(BIN)/pytest tests/contract $(PYTEST_ARGS)

.PHONY: baseline
baseline: setup ## accept the present protocol as the baseline (until release 0.1.0 only)
	@$(BIN)/python protos/generate.py --image tests/contract/baseline.binpb
	@echo "baseline written; say in CHANGELOG.md what changed"

.PHONY: grpcurl
grpcurl: ## install grpcurl into .tool with Go, where Go is; tests use it
	@if command -v go >/dev/null && ! test -x $(TOOL)/bin/grpcurl; then \
		echo "setup: grpcurl into $(TOOL)"; \
		GOBIN="$$(pwd)/$(TOOL)/bin" GOFLAGS=-modcacherw go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3 \
			|| echo "grpcurl could not be built; the tests use buf curl instead"; \
	fi

.PHONY: compose-go
compose-go:
	@if command -v go >/dev/null && ! test -x $(TOOL)/bin/compose-go; then \
		mkdir -p .cache/go-bin; \
		GOBIN="$$(pwd)/.cache/go-bin" GOFLAGS=-modcacherw go install github.com/compose-spec/compose-go/v2/cmd@v2.16.2 2>/dev/null \
			&& mv .cache/go-bin/cmd $(TOOL)/bin/compose-go || echo "the compose file's reference loader could not be built"; \
	fi

.PHONY: lint
lint: setup compose-go ## ruff, formatting, import contracts, Dockerfile and compose file
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ."; exit 1; }
	@$(BIN)/lint-imports --cache-dir .cache/import-linter
	@$(BIN)/hadolint deploy/images/Dockerfile deploy/images/postgres/Dockerfile
	@$(BIN)/python deploy/images/check_compose.py deploy/compose.yaml

.PHONY: types
types: setup ## mypy --strict over everything
	@$(BIN)/mypy

.PHONY: proto-lint
proto-lint: setup ## buf lint, and buf breaking against the committed baseline
	@mkdir -p .cache && $(BIN)/python protos/generate.py --image .cache/image.binpb
	@$(BIN)/buf lint .cache/image.binpb --config protos/buf.yaml --path gaming
	@$(BIN)/buf breaking .cache/image.binpb --against tests/contract/baseline.binpb --config protos/buf.yaml --path gaming

.PHONY: check
check: lint types proto-lint ## everything that needs no running service

.PHONY: bench
bench: setup ## run the benchmarks; each prints ratios against a rival or a limit
	@$(BIN)/python benchmarks/run.py $(ARGS)

# Apart from .venv, so that what is compared with never decides what the suite runs on.
$(TOOL)/rivals/.requirements: requirements/rivals.txt $(UV)
	@echo "setup: what the suite is measured against, into $(TOOL)/rivals (about 150 MB)"
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(TOOL)/rivals
	@$(UV) pip sync --quiet --system-certs --require-hashes --python $(TOOL)/rivals/bin/python requirements/rivals.txt
	@touch $@

.PHONY: rivals
rivals: $(TOOL)/rivals/.requirements ## install what the benchmarks compare with (LangChain, txtai, nvitop, gpustat), apart from .venv

.PHONY: eval
eval: setup rivals ## measure what the knowledge base finds, against baselines; gated (ARGS="--set PATH")
	@$(BIN)/python benchmarks/knowledge_base/evaluate.py $(ARGS)

.PHONY: clean
clean: ## remove what was built here; the data of `make run` stays
	@rm -rf .venv .tool .cache protos/gen .mypy_cache .ruff_cache .pytest_cache
