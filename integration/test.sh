#!/bin/bash
# Builds, runs every test, and ends with a summary. `make test` runs it after setup.sh.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
summary=()
failed=0

# step NAME COMMAND…: runs it, streams what it says, and notes the time, the number of tests and whether it failed.
step() {
  local name=$1 start=$SECONDS result=ok counts
  shift
  printf '\n== %s\n' "$name"
  "$@" 2>&1 | tee "$log" || { result=FAILED; failed=1; }
  counts=$(awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1) } n = 1 }
                END { if (n) printf "%d passed, %d failed", p, f }' "$log")
  summary+=("$(printf '%-12s %-7s %5d s  %s' "$name" "$result" $((SECONDS - start)) "$counts")")
  [ "$result" = ok ]
}

# The tests of IPVS requests: on this kernel or, where it has no IPVS, in a guest.
ipvs_requests() {
  local test
  test=$(cargo test --package flannel-netlink --features generic --test ipvs --locked --no-run --message-format=json 2>/dev/null \
    | jq -r 'select(.executable != null) | .executable')
  modprobe -q ip_vs 2>/dev/null || true
  if [ -e /proc/net/ip_vs ]; then "$test" --ignored; else integration/guest/run.sh -- "$test" --ignored; fi
}

if step build cargo build --workspace --bins --locked && step "build tests" cargo test --workspace --no-run --locked; then
  step "unit tests" cargo test --workspace --exclude flannel-lab --locked --no-fail-fast
  step "ipvs requests" ipvs_requests
  step lab cargo test --package flannel-lab --locked --no-fail-fast
fi

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
[ $failed = 0 ] && echo "test: ok" || echo "test: FAILED (above)"
exit $failed
