#!/bin/bash
# Builds the programs as they are installed, into target/release. `make build` runs it after setup.sh.
#
# A runtime starts the CNI plugin for every pod, so its start counts: it is linked statically with musl (docs/adr tells what that saves).
# Where Rust does not come from rustup, there may be no musl target; then the plugin is linked statically with the system's own C library.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
target=${CARGO_TARGET_DIR:-target}

host=$(rustc --version --verbose | sed -n 's/^host: //p')
musl=${host%-gnu}-musl

has_target() { [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ]; }

# Optimised as a whole, because what a call costs is mostly pages and code that it touches for the first time: 63 page faults an ADD
# where 73 were, a tenth less processor time.
build_plugin() {    # build_plugin TRIPLE
  CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 cargo build --package flannel-cni --bins --release --locked --target "$1"
  # By renaming: the old one may be running.
  cp "$target/$1/release/flannel" "$target/release/flannel.new"
  mv "$target/release/flannel.new" "$target/release/flannel"
}

cargo build --workspace --exclude flannel-cni --bins --release --locked
if ! has_target "$musl" && command -v rustup >/dev/null; then
  echo "build: rustup target add $musl"
  rustup target add "$musl" || true
fi
if has_target "$musl"; then
  build_plugin "$musl"
else
  echo "build: Rust has no target $musl here, so the plugin is linked with the system's C library; it starts a little slower" >&2
  RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" build_plugin "$host"
fi
