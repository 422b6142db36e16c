# Each target is one step; as root, on Debian or Ubuntu. integration/setup.sh installs what is missing, and says what and why.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Where rustup puts cargo, for shells that have not been told.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help demo test bench fuzz lint setup build

help:
	@echo "make demo    three nodes, pods and a Service on this machine, shown step by step"
	@echo "make test    every test"
	@echo "make bench   how fast it is beside others, in one run; SUITE=cni for one suite"
	@echo "make fuzz    the packet code of the udp backend beside its slow reference, 10.4 million times; FUZZ_TARGET and FUZZ_CHANGES for others"
	@echo "make build   the programs as they are installed"
	@echo "make lint    formatting, clippy, the layers of the crates, licences of what they depend on"

demo: setup
	@cargo build --workspace --bins
	@target=$${CARGO_TARGET_DIR:-target}; exec "$$target/debug/demo"

test: setup
	@integration/test.sh

# Leases on a disk are measured in the build's folder: everything else of a run is in its sandbox's memory.
bench: build
	@target=$${CARGO_TARGET_DIR:-target}; BENCH_DISK=$$(realpath "$$target")/bench exec "$$target/release/bench" $(SUITE)

# Four targets of udp, 2.6 million inputs each: about eight minutes, most of them of udp_cut.
fuzz: setup
	@FUZZ_TARGET=$${FUZZ_TARGET:-udp_} FUZZ_CHANGES=$${FUZZ_CHANGES:-2600000} cargo test --release -p flannel-fuzz --test replay changed_inputs -- --nocapture

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@integration/check-layers.sh
	@command -v cargo-deny >/dev/null || { echo 'lint: building cargo-deny, which checks licences and sources; once, some minutes'; cargo install --quiet --locked cargo-deny; }
	cargo deny --log-level error check bans licenses sources

build: setup
	@integration/build.sh

setup:
	@integration/setup.sh
