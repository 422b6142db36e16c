#!/bin/bash
# Checks the layers of docs/architecture.md: pure crates depend on a few named crates and each other, IO crates never on each other,
# and the CNI plugin has no async runtime. Tests may use what they like.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

found=$(mktemp)
trap 'rm -f "$found"' EXIT
cargo metadata --format-version 1 --no-deps | jq -r '
  ["flannel-model", "flannel-lease", "flannel-plan"] as $pure
  | ["flannel-store", "flannel-kube", "flannel-netlink", "flannel-nft", "flannel-telemetry", "flannel-tun"] as $io
  | ($pure + ["serde", "serde_json", "ipnetwork", "regex", "thiserror", "base64"]) as $pure_may_use
  | .packages as $packages
  | ($packages | map(.name)) as $names
  | ($pure + $io + ["flannel-cni"] | map(select(. as $n | $names | index($n) | not)) | .[] | "no crate is called \(.): correct check-layers.sh or the crate"),
    ($packages[] | .name as $name | .dependencies[] | select(.kind != "dev") | .name as $used
      | if ($pure | index($name)) and ($pure_may_use | index($used) | not) then "\($name) is pure and must not use \($used)"
        elif ($io | index($name)) and ($io | index($used)) then "\($name) and \($used) both do I/O: neither may use the other"
        elif $name == "flannel-cni" and (["tokio", "etcd-client", "flannel-store"] | index($used)) then "\($name) stands alone and must not use \($used)"
        else empty end)
' > "$found" || { echo "check-layers: cargo metadata failed" >&2; exit 1; }

if [ -s "$found" ]; then
  sed 's/^/check-layers: /' "$found" >&2
  exit 1
fi
echo "layers: ok"
