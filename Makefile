# Everything a newcomer needs; each target makes its own environment.
#   make serve   the reference service on http://127.0.0.1:8080, with a PostgreSQL of its own
#   make test    the test suite
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FLAGS  ?=
CONTRACT ?= long

.DEFAULT_GOAL := help
.PHONY: help serve test lint types imports check tls attack prove reloads chaos contract fuzz bench bench-check bench-compare bench-serve bench-overload bench-kill smoke load spike stress backup restore clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# A stamp for each set of extras, so that `make serve` does not install what only tests need.
$(VENV)/.serve: EXTRAS = embedded
$(VENV)/.test: EXTRAS = test,lint,types,imports
$(VENV)/.contract: EXTRAS = test,contract
$(VENV)/.fuzz: EXTRAS = test,fuzz
$(VENV)/.bench: EXTRAS = bench
$(VENV)/.peers: EXTRAS = bench,peers
$(VENV)/.load: EXTRAS = embedded,loadtest

$(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fluxor-fast needs Python 3.11 or later")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

# The database: DATABASE_URL if it is set, else an embedded server whose data stays in .data/.
# Development mode makes a token secret for this start unless JWT_SECRET is set.
serve: $(VENV)/.serve ## run the reference service on http://127.0.0.1:8080
	@exec $(BIN)/fluxor-fast serve --dev --database-embedded .data/postgres $(FLAGS)

test: $(VENV)/.test ## run the test suite
	$(BIN)/python -m pytest $(FLAGS)

lint: $(VENV)/.test ## check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test ## check types with mypy --strict
	$(BIN)/mypy
	@for each in examples/*/app.py; do $(BIN)/mypy $$each || exit 1; done  # all of one name

imports: $(VENV)/.test ## check who imports whom
	$(BIN)/lint-imports --no-cache

check: lint types imports test ## all of lint, types, imports and test

tls: $(VENV)/.test ## what openssl s_client sees: versions, ciphers, ALPN, client certificates, as a table
	$(BIN)/python -m tests.support.matrix

attack: $(VENV)/.test ## slowhttptest with 4,000 connections, 10^5 dropped ones (4 minutes; see bench/install-debian.sh)
	$(BIN)/python -m tests.attack.run $(FLAGS)

prove: $(VENV)/.test ## the long proofs of admission: 1,000 SIGKILLs, 10 million acquires (6 minutes)
	PROVE=long $(BIN)/python -m pytest tests/faults tests/property -s --timeout=900 $(FLAGS)

reloads: $(VENV)/.test $(VENV)/.load ## 100 reloads and 3 upgrades under wrk, k6 and a strict client (a minute, needs wrk)
	PROVE=long $(BIN)/python -m pytest tests/process/test_rolling_load.py -s --timeout=900 $(FLAGS)

chaos: $(VENV)/.test ## faults under load for SECONDS=900; KILLS=1000: as many SIGKILLs of workers (8 minutes)
	$(BIN)/python -m tests.faults.chaos.run --seconds $(or $(SECONDS),900) $(if $(KILLS),--kills $(KILLS)) $(FLAGS)

contract: $(VENV)/.contract ## schemathesis against the service and its /openapi.json (2 minutes; CONTRACT=short: 20 s)
	CONTRACT=$(CONTRACT) $(BIN)/python -m pytest tests/contract -s $(FLAGS)

# Coverage-guided where atheris has a wheel, else blind (it says so); goes on where the last run ended.
fuzz: $(VENV)/.fuzz ## fuzz the HTTP protocol for SECONDS=60, or RUNS=… executions; FLAGS=--report for totals
	$(BIN)/python -m tests.fuzz.run $(if $(RUNS),--runs $(RUNS)) $(if $(SECONDS),--seconds $(SECONDS)) $(FLAGS)

bench: $(VENV)/.bench ## micro-benchmarks, then the server beside its peers (needs wrk)
	$(BIN)/python -m pytest bench --timeout=0 --benchmark-only --benchmark-columns=min,median,iqr,ops
	$(BIN)/python bench/serve.py $(FLAGS)

bench-check: $(VENV)/.bench ## hold the speed to its budgets, as ratios of one run (4 minutes, needs wrk)
	$(BIN)/python bench/check.py $(FLAGS)

bench-compare: $(VENV)/.peers ## beside 15 others on 9 workloads (17 minutes; wrk, nginx and Go where there)
	$(BIN)/python bench/compare.py --rounds 3 --plots docs/img $(FLAGS)

bench-serve: $(VENV)/.bench ## only the server beside its peers
	$(BIN)/python bench/serve.py $(FLAGS)

bench-overload: $(VENV)/.bench ## at, below and above capacity, beside other servers (10 minutes)
	$(BIN)/python bench/overload.py --routes cpu --servers all --plots docs/img $(FLAGS)

bench-kill: $(VENV)/.bench ## what SIGKILL of a worker costs, request by request
	$(BIN)/python bench/kill.py $(FLAGS)

smoke load spike stress: $(VENV)/.load ## k6 scenarios against a service of their own
	$(BIN)/python loadtest/run.py $@ $(FLAGS)

# DATABASE_URL if it is set, else the data of `make serve`, which may run meanwhile.
backup: FILE ?= backups/$(shell date -u +%Y%m%dT%H%M%SZ).dump
backup: $(VENV)/.serve ## write the database to FILE=backups/TIME.dump and its manifest
	@mkdir -p $(dir $(FILE))
	@$(BIN)/fluxor-fast backup $(FILE) --database-embedded .data/postgres $(FLAGS)

restore: $(VENV)/.serve ## bring FILE=… into an empty database; FLAGS=--clean: in place of its tables
	@test -n "$(FILE)" || { echo "make restore FILE=backups/…"; exit 2; }
	@$(BIN)/fluxor-fast restore $(FILE) --database-embedded .data/postgres $(FLAGS)

clean: ## remove environment, data and results
	rm -rf $(VENV) .data bench/results loadtest/results
