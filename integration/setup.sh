#!/bin/bash
# Finds out which programs the build, the lab and the guest kernel need and this machine lacks, says why, and installs those
# with apt-get. Changes nothing, and says nothing, when all is there.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$here/.."

fail() { echo "setup: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "the lab makes network namespaces and this script installs packages: run it as root (sudo)"

# --- what is missing
packages=() reasons=()
need() {    # need PACKAGE REASON
  packages+=("$1") reasons+=("$2")
}
program() {    # program NAME PACKAGE REASON
  command -v "$1" >/dev/null || need "$2" "$3"
}
file() {    # file PATH PACKAGE REASON
  [ -e "$1" ] || need "$2" "$3"
}

build_needs() {
  program make make "runs the steps"
  program cc gcc "compiles and links"
  file /usr/include/stdlib.h libc6-dev "what gcc links against"
  program protoc protobuf-compiler "generates the etcd client's messages during the build"
  file /usr/include/google/protobuf/descriptor.proto libprotobuf-dev "message types that the etcd client builds on"
  file /etc/ssl/certs/ca-certificates.crt ca-certificates "lets cargo check whom it downloads from"
  program jq jq "reads the crates' dependencies in 'make lint'"
  program openssl openssl "makes the certificates with which access to etcd is tested"
}

lab_needs() {
  program etcd etcd-server "the store that nodes share; the lab runs its own"
  program etcdctl etcd-client "looks into that store"
  program nft nftables "flanneld's masquerade rules"
  program ip iproute2 "makes the lab's namespaces and cables"
  program ipvsadm ipvsadm "shows Services as operators look at them"
  program iperf3 iperf3 "measures TCP between pods"
  program ping iputils-ping "pings between pods"
  program unshare util-linux "puts the lab into namespaces of its own"
  program setpriv util-linux "ends the lab with the program that started it"
  program kubectl kubernetes-client "asks the lab's API server as an independent client"
  program modprobe kmod "loads IPVS where the kernel has it as a module"
  program tcpdump tcpdump "looks for packets of pods in the clear between nodes"
  program socat socat "moves bytes between pods, and speaks SCTP"
  program ethtool ethtool "turns a lab cable's offloads off, so that what it carries can be looked at packet by packet"
  program wg wireguard-tools "takes a peer away from a WireGuard device, which flanneld must notice"
  program faketime faketime "makes the wall clock of a daemon jump"
  program conntrack conntrack "looks for flows that a Service left behind, and ends some"
  program strace strace "counts what a call of a CNI plugin asks of the kernel"
}

bench_needs() {
  file /usr/lib/cni/host-local containernetworking-plugins "the CNI plugins that ours is measured against, and those that are chained behind it"
}

# Runtimes that call the plugin in the lab. None of them is started on the machine.
runtime_needs() {
  program containerd containerd "runs pods and containers in the lab, as Kubernetes' nodes do"
  program podman podman "runs containers in the lab by its CNI backend"
  program conmon conmon "watches podman's containers"
  program crun crun "starts containers, without cgroups of the machine"
  program iptables iptables "what the chained portmap plugin maps ports with"
  program busybox busybox-static "all that is in the lab's container image"
}

# A kernel without IPVS, IPIP or WireGuard: the tests that need them run in a guest kernel.
guest_needs() {
  command -v modprobe >/dev/null && modprobe -q ip_vs 2>/dev/null || true
  local devices='ip link add a type ipip local 192.0.2.1 && ip link add b type wireguard'
  if [ -e /proc/net/ip_vs ] && unshare --net sh -c "$devices" 2>/dev/null; then return 0; fi
  program busybox busybox-static "the first steps inside the guest kernel (this kernel lacks IPVS, IPIP or WireGuard, so a guest runs what needs them)"
  [ -z "${GUEST_KERNEL:-}" ] || return 0
  program qemu-system-x86_64 qemu-system-x86 "runs the guest kernel"
  if [ ! -x /usr/libexec/virtiofsd ] && [ ! -x /usr/lib/qemu/virtiofsd ]; then
    need "$(virtiofsd_package)" "shows this machine's files to the guest"
  fi
  program xz xz-utils "unpacks kernel modules"
  program zstd zstd "unpacks kernel modules"
}

# It came with QEMU until 7.2 and has a package of its own since.
virtiofsd_package() {
  if apt-cache show virtiofsd 2>/dev/null | grep -q '^Package:'; then echo virtiofsd; else echo qemu-system-common; fi
}

# --- installing
log=
guard=/usr/sbin/policy-rc.d
guarded=
clean_up() {
  [ -z "$guarded" ] || rm -f "$guard"
  [ -z "$log" ] || rm -f "$log"
}
trap clean_up EXIT

# Debian starts services as it installs them. The lab's etcd runs in the lab; none shall run on the machine.
# Exit status 101 of this file means "not allowed" to invoke-rc.d(8).
forbid_services() {
  [ ! -e "$guard" ] || return 0
  printf '#!/bin/sh\nexit 101\n' > "$guard"
  chmod 755 "$guard"
  guarded=1
}

apt() {    # what it says is kept for the case that it fails
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" 2>&1 | tee -a "$log" |
    { grep --line-buffered -E '^Setting up ' | sed -u 's/^/  /' || true; }
}

install_packages() {
  echo "setup: installing with apt-get:"
  local i
  for i in "${!packages[@]}"; do printf '  %-20s %s\n' "${packages[$i]}" "${reasons[$i]}"; done
  log=$(mktemp)
  echo "setup: reading package lists"
  apt update || { cat "$log" >&2; fail "apt-get update failed (above)"; }
  # It may be known only now that a package of its own exists.
  local wanted=("${packages[@]/%qemu-system-common/$(virtiofsd_package)}")
  forbid_services
  echo "setup: installing ${#wanted[@]} packages and what they need"
  apt install --no-install-recommends "${wanted[@]}" ||
    { cat "$log" >&2; fail "apt-get install failed (above); on Ubuntu, etcd-server needs the 'universe' archive"; }
  clean_up
  guarded='' log=''
  # The guard held it back for now; this keeps it from starting with the machine.
  if [[ " ${wanted[*]} " == *" etcd-server "* ]] && command -v systemctl >/dev/null; then
    systemctl disable -q etcd.service 2>/dev/null || true
  fi
}

# --- Rust
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

rust_is_enough() {
  local version
  version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || return 1
  [ -n "$version" ] && [ "$(printf '%s\n' "$rust_needed" "$version" | sort -V | head -n 1)" = "$rust_needed" ]
}

ensure_rust() {
  ! rust_is_enough || return 0
  if command -v rustup >/dev/null || [ -n "$(apt-cache policy rustup 2>/dev/null | grep -E 'Candidate: [0-9]' || true)" ]; then
    command -v rustup >/dev/null || { packages=(rustup) reasons=("gets Rust $rust_needed or newer"); install_packages; }
    echo "setup: rustup default stable"
    rustup default stable || true
  fi
  rust_is_enough ||
    fail "Rust $rust_needed or newer is needed, and there is $(cargo --version 2>/dev/null || echo none): install it from https://rustup.rs as root, then run this again"
}

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
build_needs
lab_needs
bench_needs
runtime_needs
guest_needs
# Several programs may come from one package.
[ ${#packages[@]} = 0 ] || install_packages
ensure_rust
