#!/bin/bash
# fuzz/search.sh TARGET [SECONDS]: a search by libFuzzer, guided by what of the code an input reaches, with the stable compiler. It is what
# `cargo fuzz run --sanitizer none` does; for memory that unsafe code may spoil, take cargo-fuzz and a nightly compiler instead.
# What it finds is in target/fuzz: new inputs in corpus, failures in failures. An input that failed belongs into fuzz/corpus/TARGET.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
if [ ! -e "fuzz_targets/${1:-}.rs" ]; then
  targets=$(basename -s .rs fuzz_targets/*.rs)
  echo "usage: fuzz/search.sh TARGET [SECONDS]; targets:" $targets >&2
  exit 2
fi
name=$1
seconds=${2:-600}
out=$(realpath -m "${CARGO_TARGET_DIR:-../target}/fuzz")
host=$(rustc --version --verbose | sed -n 's/^host: //p')

# Counters at every edge, their places, and the values that are compared.
flags='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters'
flags+=' -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1'
# With --target, the flags are not those of build scripts and macros.
CARGO_TARGET_DIR=$out RUSTFLAGS="$flags -Cdebug-assertions" cargo build --release --target "$host" --bin "$name"

mkdir -p "$out/corpus/$name" "$out/failures"
"$out/$host/release/$name" "$out/corpus/$name" "corpus/$name" -artifact_prefix="$out/failures/$name-" \
  -max_total_time="$seconds" -timeout=20 -max_len=8192 -print_final_stats=1
