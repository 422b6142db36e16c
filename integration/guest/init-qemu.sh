# The first process of a QEMU guest, run by busybox from the initramfs.
b=/bin/busybox
$b mount -t devtmpfs devtmpfs /dev
$b mount -t proc proc /proc
. /furnish.sh
for module in /modules/*; do $b insmod $module || $b echo "guest: insmod $module failed"; done
for word in $($b cat /proc/cmdline); do
  case $word in
    lab_job=*) job=${word#lab_job=} ;;
    lab_kernel=*) kernel=${word#lab_kernel=} ;;
  esac
done
$b mount -t virtiofs -o ro machine /machine || give_up "cannot mount the machine's files"
$b mount -t tmpfs -o mode=755,size=90% tmpfs /space || give_up "no tmpfs"
furnish /machine /space /root
$b mount --move /dev /root/dev
devices /root
version=$($b uname -r)
$b mkdir -p "/root/lib/modules/$version"
$b mount --bind "/machine$kernel/lib/modules/$version" "/root/lib/modules/$version"
for try in 0 1 2 3 4 5 6 7 8 9; do
  set -- /root/dev/vport*p3
  [ -e "$1" ] && break
  $b sleep 0.1
done
port=${1%3}
lab_out=${port#/root}1 lab_err=${port#/root}2 lab_status=${port#/root}3 lab_job=$job
export lab_out lab_err lab_status lab_job
exec $b switch_root /root /bin/busybox sh "$job/stage2.sh"
