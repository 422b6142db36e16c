# The first process of a user-mode Linux guest, run by busybox. /dev/root is the machine's /, read only.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox
$b mount -t proc proc /proc
for word in $($b cat /proc/cmdline); do case $word in lab_job=*) job=${word#lab_job=} ;; esac; done
. "$job/furnish.sh"
$b mount -t tmpfs -o mode=755,size=90% tmpfs /mnt || give_up "no tmpfs"
$b mkdir /mnt/root
furnish / /mnt /mnt/root
$b mount -t devtmpfs devtmpfs /mnt/root/dev
devices /mnt/root
# What modprobe needs to know that everything is built in.
version=$($b uname -r)
modules=$($b cat "$job/modules")
if [ ! -d "/mnt/root/lib/modules/$version" ] && [ -f "$modules/modules.builtin" ]; then
  $b mkdir -p "/mnt/root/lib/modules/$version"
  $b cp "$modules"/modules.* "/mnt/root/lib/modules/$version/"
fi
$b mkdir /mnt/root/.old
cd /mnt/root && $b pivot_root . .old || give_up "no pivot_root"
$b umount -l /.old
$b rmdir /.old
for tty in 1 2 3; do $b stty -F /dev/tty$tty raw -echo; done
lab_out=/dev/tty1 lab_err=/dev/tty2 lab_status=/dev/tty3 lab_job=$job
export lab_out lab_err lab_status lab_job
exec $b sh "$job/stage2.sh" </dev/null
