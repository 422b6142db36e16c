#!/bin/bash
# run.sh [-t SECONDS] [-v] -- COMMAND [ARGUMENT…]
#
# Boots a guest kernel, runs COMMAND in it as root, streams what it says and ends with its status.
# The guest sees this machine's files under an overlay: it may write anywhere, and nothing of that reaches the machine.
#
#   -t SECONDS  hard limit; the status is 124 when it passes (default 1800)
#   -v          the guest kernel's log goes to standard error
#
# GUEST_KERNEL=FILE  boot this user-mode Linux kernel: under a second. A folder with its modules.* files may be beside it.
# Otherwise          QEMU, emulating the processor, boots the distribution's own kernel: a few seconds, and several times slower.
#                    Its package is fetched with apt-get and unpacked under target/guest; it is not installed.
#
# The command sees LAB_GUEST=uml or qemu, and LAB_SLOW, by which it should multiply its time limits.
# Status 125: the guest ended without one; its log is shown.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
target=${CARGO_TARGET_DIR:-$(readlink -f "$here/../..")/target}
seconds=1800 verbose=

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
fail() { echo "guest: $*" >&2; exit 125; }

while getopts t:v option; do
  case $option in
    t) seconds=$OPTARG ;;
    v) verbose=1 ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
[ "$(id -u)" = 0 ] || fail "needs root: run it as root (sudo)"
for program in busybox flock setpriv timeout taskset; do
  command -v $program >/dev/null || fail "$program is missing; integration/setup.sh installs what is needed"
done

# --- the job's folder. Its path must be short: it holds sockets, whose paths end at 107 bytes (unix(7)).
# The folder stays locked for as long as its owner lives, who may be in another PID namespace.
in_use=''
is_left_over() { { exec {in_use}<"$1"; } 2>/dev/null && flock -n "$in_use"; }
for old in /tmp/flannel-guest.*; do              # of a run that was killed
  if [ -O "$old" ] && is_left_over "$old"; then rm -rf "$old"; fi
done
for _ in 1 2 3; do                               # somebody may take it for one of those before it is locked
  job=$(mktemp -d /tmp/flannel-guest.XXXXXX)
  if is_left_over "$job" && [ -d "$job" ]; then break; fi
done
emulator='' readers=() servers=()
clean_up() {
  for process in $emulator "${servers[@]}"; do kill -KILL "$process" 2>/dev/null || true; done
  rm -rf "$job"
}
trap clean_up EXIT
trap 'exit 129' HUP; trap 'exit 130' INT; trap 'exit 143' TERM

# --- what the guest runs
write_command() {
  export -p | grep -E '^declare -x (PATH|LANG|LC_[A-Z]+|RUST_[A-Z_]+|(LAB|FLANNEL|BENCH)_[A-Z_]+)=' | sed 's/^declare -x/export/' || true
  echo "export LAB_GUEST=$1 LAB_SLOW=${LAB_SLOW:-$2} HOME=/root TERM=dumb"
  printf 'cd %q || exit 125\nexec' "$PWD"
  printf ' %q' "${@:3}"
  echo
}

# Three channels come out of the guest: output, errors, and a status.
open_channels() {
  mkfifo "$job/out" "$job/err"
  cat "$job/out" & readers+=($!)
  cat "$job/err" >&2 & readers+=($!)
  : > "$job/status"
  : > "$job/console"
  : > "$job/emulator.log"
  if [ -n "$verbose" ]; then tail -q -F "$job/console" >&2 2>/dev/null & servers+=($!); fi
}

# The emulator ends with this script, even when that gets SIGKILL.
bounded() { exec setpriv --pdeathsig KILL timeout --foreground -s KILL "$seconds" setpriv --pdeathsig KILL "$@"; }

if [ -n "${GUEST_KERNEL:-}" ]; then . "$here/uml.sh"; else . "$here/qemu.sh"; fi
cp "$here/furnish.sh" "$here/stage2.sh" "$job/"
write_command "$way" "$slow" "$@" > "$job/command"
prepare
open_channels
boot & emulator=$!
result=0; wait "$emulator" || result=$?
emulator=''
# The readers end when the last writer has closed; a guest that was killed has closed too.
wait "${readers[@]}" 2>/dev/null || true

status=$(tr -d '\r\n' < "$job/status")
if [[ $status =~ ^[0-9]+$ ]]; then exit "$status"; fi
if [ "$result" = 137 ]; then echo "guest: killed after $seconds s" >&2; tail -n 20 "$job/console" >&2; exit 124; fi
echo "guest: it ended without a status (the emulator's: $result); the end of its log:" >&2
tail -n 60 "$job/console" "$job"/*.log >&2 || true
exit 125
