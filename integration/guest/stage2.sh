# The guest's first process once its root is in place (busybox sh): runs the command, reports its status, switches off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox
$b hostname guest
$b echo "127.0.1.1 guest" >> /etc/hosts
# No name server is reachable: without one configured, programs do not wait for it.
$b rm -f /etc/resolv.conf
: > /etc/resolv.conf
$b ip link set lo up
# Built in or modules, depending on the kernel. What is missing shows where it is used. By its path: busybox has a modprobe of its
# own, which cannot read every compression.
for module in ip_vs ip_vs_rr br_netfilter vxlan veth bridge nf_tables nft_masq nft_chain_nat nf_conntrack tun ipip wireguard; do
  /sbin/modprobe -q $module 2>/dev/null
done
# Loaded tunnel drivers would put their fallback devices into every new network namespace (Documentation/admin-guide/sysctl/net.rst).
$b echo 2 > /proc/sys/net/core/fb_tunnels_only_for_init_net
# Packets that wait for the one processor, which a program's start takes for a while: as many as tests send meanwhile. It is of the machine
# and not of a network namespace, so nobody else can set it.
$b echo 20000 > /proc/sys/net/core/netdev_max_backlog

# Through pipes: what the command writes to is then no terminal, as outside.
$b mkfifo /run/.out /run/.err
$b cat /run/.out > $lab_out & out=$!
$b cat /run/.err > $lab_err & err=$!
$b setsid bash "$lab_job/command" </dev/null >/run/.out 2>/run/.err
status=$?
# A process that the command left behind may hold the pipes open: a second for what it had to say.
for i in 0 1 2 3 4 5 6 7 8 9; do
  $b kill -0 $out 2>/dev/null || $b kill -0 $err 2>/dev/null || break
  $b sleep 0.1
done
# TCSADRAIN of stty: returns when the terminal's output has left the guest. Not every channel is a terminal.
for channel in $lab_out $lab_err; do $b stty -F $channel sane 2>/dev/null; done
$b echo $status > $lab_status
$b stty -F $lab_status sane 2>/dev/null
$b poweroff -f
