# Sourced by run.sh: boots the distribution's own kernel in QEMU, which emulates the processor: no hardware virtualisation is needed.
# The guest reads the machine's / by virtiofs, read only.
way=qemu slow=5

. "$here/debian-kernel.sh"

# The old daemon came with QEMU (until 7.2), the newer one has a package of its own.
find_virtiofsd() {
  local candidate
  for candidate in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do
    if [ -x "$candidate" ]; then echo "$candidate"; return; fi
  done
  fail "virtiofsd is missing; integration/setup.sh installs what is needed"
}

prepare() {
  [ "$(uname -m)" = x86_64 ] || fail "the guest in QEMU is for x86_64 only; name a user-mode Linux kernel in GUEST_KERNEL"
  for program in qemu-system-x86_64 modprobe depmod dpkg; do
    command -v $program >/dev/null || fail "$program is missing; integration/setup.sh installs what is needed"
  done
  find_kernel
  make_initramfs
  start_virtiofsd
}

# A few megabytes: busybox, and the modules it takes to reach the machine's files.
make_initramfs() {
  local root=$job/initramfs number=100 line module name
  mkdir -p "$root"/{bin,modules,proc,sys,dev,machine,space,root}
  cp "$(command -v busybox)" "$root/bin/busybox"
  cp "$here/furnish.sh" "$root/"
  { echo '#!/bin/busybox sh'; cat "$here/init-qemu.sh"; } > "$root/init"
  chmod 755 "$root/init"
  for module in virtio_pci virtiofs virtio_console virtio-rng overlay; do
    modprobe -d "$kernel" -S "$version" --show-depends $module
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r line; do
    number=$((number + 1))
    name=$root/modules/$number-$(basename "$line")
    case $line in
      *.xz) xz -dc "$line" > "${name%.xz}" ;;
      *.zst) zstd -qdc "$line" > "${name%.zst}" ;;
      *) cp "$line" "$name" ;;
    esac
  done
  (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) > "$job/initramfs.cpio"
}

start_virtiofsd() {
  local daemon options help
  daemon=$(find_virtiofsd)
  help=$("$daemon" --help 2>&1 || true)
  if [[ $help == *--shared-dir* ]]; then
    options=(--shared-dir / --cache always --sandbox chroot --xattr)
    # Announced, the machine's own mounts become automounts in the guest, which an overlay refuses (EREMOTE).
    [[ $help != *--no-announce-submounts* ]] || options+=(--no-announce-submounts)
  else
    options=(-o source=/ -o cache=always -o sandbox=chroot -o xattr)
  fi
  setpriv --pdeathsig KILL "$daemon" --socket-path="$job/machine.sock" "${options[@]}" >"$job/virtiofsd.log" 2>&1 &
  servers+=($!)
  for _ in $(seq 200); do [ -S "$job/machine.sock" ] && return; sleep 0.05; done
  cat "$job/virtiofsd.log" >&2
  fail "virtiofsd did not start"
}

boot() {
  local processors
  processors=$(nproc)
  bounded qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -M q35,memory-backend=memory -object memory-backend-memfd,id=memory,size=2G,share=on -m 2G \
    -accel tcg,thread=multi -cpu max -smp "$((processors > 4 ? 4 : processors))" \
    -kernel "$image" -initrd "$job/initramfs.cpio" \
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on lab_job=$job lab_kernel=$kernel" \
    -serial file:"$job/console" -device virtio-rng-pci \
    -chardev socket,id=machine,path="$job/machine.sock" -device vhost-user-fs-pci,chardev=machine,tag=machine,queue-size=1024 \
    -device virtio-serial-pci \
    -chardev file,id=out,path="$job/out" -device virtserialport,chardev=out,nr=1 \
    -chardev file,id=err,path="$job/err" -device virtserialport,chardev=err,nr=2 \
    -chardev file,id=status,path="$job/status" -device virtserialport,chardev=status,nr=3 \
    </dev/null >"$job/emulator.log" 2>&1
}
