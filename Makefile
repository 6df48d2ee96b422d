# `make help` lists the targets. PG_CONFIG=/path/to/pg_config chooses the Postgres, PG=18 one of that major that is fetched if
# it is missing, CARGO_TARGET_DIR another target/.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
ifdef PG
override PG_CONFIG := $(shell scripts/postgres $(PG))
export PG_CONFIG
ifeq ($(PG_CONFIG),)
$(error no Postgres $(PG))
endif
endif
# Asked only where a recipe needs it: `make help` and `make setup` work without a Postgres.
# (Variables that are exported here are not yet seen by $(shell) in make 4.3.)
PG_CONFIG_PATH = $(shell PG_CONFIG=$(PG_CONFIG) scripts/pg-config)
PG_MAJOR = $(shell PG_CONFIG=$(PG_CONFIG) scripts/pg-config --major)
# The extension is built for one Postgres major, named by a cargo feature.
PG_FEATURE = --no-default-features --features pg$(PG_MAJOR)
# With no right to write into Postgres's own directories, cargo-pgrx asks sudo.
INSTALL_SUDO = $(shell test -w "$$($(PG_CONFIG_PATH) --pkglibdir)" || echo --sudo)
# cargo-pgrx prints colours wherever that goes.
PLAIN = $(shell test -t 2 || echo "2>&1 | sed 's/\x1b\[[0-9;]*m//g'")
PURE_CRATES = -p ext_registry_core -p ext-bridge -p ext_registry_tests
# Workspaces of their own.
BENCH_CRATES = bench/instructions bench/peers
# The majors beside the one that everything is built for. The newest has the tests of what lies inside Postgres, and pg_upgrade
# goes to it from the other.
MAJORS = 16 18
NEWEST = 18
NEWEST_TESTS = regress update transactions transactions_live_state hostile_functions restart standby promotion worker dump adopt
# Arguments of the benchmark, such as BENCH="--figures 1,3 --rounds 3".
BENCH ?=


# How long `make soak` lasts, and each of its fuzz targets.
SOAK_SECONDS ?= 600

.PHONY: help setup install bridge services run demo test majors fuzz soak bench deb lint fmt clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing (Postgres 15 with headers, libclang, nats-server, cargo-pgrx, Prometheus); silent when all is there
	@scripts/setup.sh

install: setup ## build the extension and install it into the Postgres of PG_CONFIG
	$(CARGO) pgrx install --release --package ext_registry --pg-config $(PG_CONFIG_PATH) $(PG_FEATURE) $(INSTALL_SUDO) $(PLAIN)
	$(patsubst --%,%,$(INSTALL_SUDO)) install -m 644 sql/upgrade/*.sql "$$($(PG_CONFIG_PATH) --sharedir)/extension/"

bridge: ## build target/release/ext-bridge
	$(CARGO) build --release -p ext-bridge --bin ext-bridge

services: ## build the reference services of the four example extensions
	$(CARGO) build --release -p ext-bridge --example reference_services

run: install bridge services ## everything on free ports, with a tour of it; stays until Ctrl-C
	@scripts/demo.sh --stay

demo: install bridge services ## the same tour, checked step by step; ends by itself
	@scripts/demo.sh

test: setup install majors bridge services ## every test: core, bridge, and the whole system against real servers; part of it on the newest Postgres, too
	$(CARGO) test --no-fail-fast $(PURE_CRATES)
ifndef PG_CONFIG
	@echo "Once more on Postgres $(NEWEST):"
	PG_CONFIG=$$(scripts/postgres $(NEWEST)) $(CARGO) test --no-fail-fast -p ext_registry_tests $(addprefix --test ,$(NEWEST_TESTS))
endif

# Each in a target directory of its own: the bindings to Postgres are made anew whenever one directory changes its major.
majors: setup # the extension for the other majors
	@for major in $(MAJORS); do \
		CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}/pg$$major" $(MAKE) PG=$$major install; \
	done

fuzz: ## random input for core and bridge, FUZZ_SECONDS (60) for each target; installs cargo-fuzz if it is missing
	@scripts/fuzz.sh

soak: install bridge services ## mixed load, random faults and an account of every call for SOAK_SECONDS (600), then fuzzing for as long per target
	SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test -p ext_registry_tests --test soak -- --nocapture
	@FUZZ_SECONDS=$(SOAK_SECONDS) scripts/fuzz.sh

bench: install bridge ## the figures of speed, side by side with what they are compared to
	@bench/run $(BENCH)

deb: install bridge ## Debian packages of the extension (for the Postgres of PG_CONFIG) and the bridge, into target/deb
	@scripts/deb.sh

lint: install ## formatting, clippy with warnings as errors, shell, licences of dependencies, safety of the SQL
	$(CARGO) fmt --all --check
	for crate in $(BENCH_CRATES); do $(CARGO) fmt --check --manifest-path $$crate/Cargo.toml; done
	$(CARGO) clippy $(PURE_CRATES) -p ext_registry_bench --all-targets -- -D warnings
	$(CARGO) clippy -p ext_registry $(PG_FEATURE) -- -D warnings
	@scripts/lint-scripts.sh
	@scripts/lint-dependencies.sh
	@scripts/lint-sql.sh

fmt: ## format the Rust sources
	$(CARGO) fmt --all
	for crate in $(BENCH_CRATES); do $(CARGO) fmt --manifest-path $$crate/Cargo.toml; done

clean: ## remove everything that was built, the tools of `make setup` under target/ too
	$(CARGO) clean
	@# Copies of scripts/postgres, where there are any.
	@if [[ -w /var/cache/ext_registry ]]; then rm -rf /var/cache/ext_registry; fi
