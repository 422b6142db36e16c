# Sourced by run.sh: boots the user-mode Linux kernel that GUEST_KERNEL names. Its root is the machine's /, read only (hostfs).
way=uml slow=3

# Pages are taken from this file system as the guest uses them.
memory_folder() {
  local free
  free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
  if [ "${free:-0}" -ge 2300000 ]; then echo /dev/shm; else echo /var/tmp; fi
}

prepare() {
  GUEST_KERNEL=$(readlink -f "$GUEST_KERNEL")
  [ -x "$GUEST_KERNEL" ] || fail "GUEST_KERNEL=$GUEST_KERNEL is not an executable file; unset it to boot the distribution's kernel in QEMU"
  { echo '#!/bin/busybox sh'; cat "$here/init-uml.sh"; } > "$job/init"
  chmod 755 "$job/init"
  dirname "$GUEST_KERNEL" > "$job/modules"
}

boot() {
  exec 5> "$job/out" 6> "$job/err" 7> "$job/status" 8> "$job/console"
  # On one processor: the kernel and its processes hand over to each other all the time, and across two each hand-over costs a wake-up.
  local processors
  processors=($(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | awk -F- '{ for (i = $1; i <= ($2 == "" ? $1 : $2); i++) print i }'))
  export TMPDIR HOME=$job
  TMPDIR=$(memory_folder)
  bounded taskset -c "${processors[$$ % ${#processors[@]}]}" setsid "$GUEST_KERNEL" umid=g uml_dir="$job/" mem=2G seccomp=auto \
    root=/dev/root rootfstype=hostfs rootflags=/ ro init="$job/init" lab_job="$job" \
    con0=null,fd:8 con1=null,fd:5 con2=null,fd:6 con3=null,fd:7 con=null ssl=null console=tty0 loglevel=4 \
    dummy.numdummies=0 ifb.numifbs=0 </dev/null >&8 2>&8
}
