# Sourced by the guest's first process (busybox sh, $b): makes the new root.
give_up() { $b echo "guest: $*"; $b poweroff -f; }

# furnish MACHINE SPACE ROOT: ROOT becomes MACHINE's files under an overlay whose writes go to the tmpfs SPACE.
furnish() {
  $b mkdir -p $2/upper $2/work
  $b mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay $3 || give_up "no overlay"
  $b mkdir -p $3/proc $3/sys $3/dev $3/run $3/tmp
  $b mount -t proc proc $3/proc
  $b mount -t sysfs sysfs $3/sys
  $b mount -t tmpfs -o mode=755 tmpfs $3/run
  $b mkdir -p $3/run/netns $3/run/lock
  $b mount -t cgroup2 cgroup2 $3/sys/fs/cgroup
}

# devices ROOT: what programs expect in /dev besides the kernel's nodes.
devices() {
  $b mkdir -p $1/dev/pts $1/dev/shm $1/dev/net
  $b mount -t devpts -o mode=620,ptmxmode=666 devpts $1/dev/pts
  $b mount -t tmpfs -o mode=1777 tmpfs $1/dev/shm
  [ -e $1/dev/net/tun ] || $b mknod $1/dev/net/tun c 10 200
  for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e $1/dev/${link%%:*} ] || $b ln -s ${link#*:} $1/dev/${link%%:*}
  done
}
