#!/usr/bin/env bash
# A host of its own for systemd, in the namespaces that the test has made: a root file system in
# memory. Of the real one only /usr is there, read-only, and the real root is gone before systemd
# begins: nothing in here can change it. What systemd starts is in $UNITS and nothing else, so
# nothing that a distribution does at boot (temporary files removed, above all) is done.
#
#   root.sh MIGRATE UNITS      the program to test; a directory of units, default.target among them
set -euo pipefail

# The first process of a namespace of processes. Elsewhere this would unmake the host.
if (($$ != 1)) || [[ $(readlink /proc/self/ns/mnt) == "$HOST_MNT" ]]; then
    echo 'root.sh: not in namespaces of its own' >&2
    exit 1
fi
migrate=$1 units=$2

mount --make-rprivate /
root=$(dirname "$units")/root
mkdir "$root"
mount -t tmpfs -o mode=755 none "$root"
cd "$root"
mkdir -p dev etc/systemd old proc root run sys tmp usr var/lib var/log
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done

read_only() {
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

read_only /usr usr
mount -t tmpfs -o mode=755 none usr/local
mkdir usr/local/bin
: >usr/local/bin/migrate
read_only "$migrate" usr/local/bin/migrate
mkdir -p root/.cargo/bin
ln -s /usr/local/bin/migrate root/.cargo/bin/migrate
mount -t tmpfs none usr/lib/systemd/system-generators
cp -r "$units" etc/systemd/system

mount -t tmpfs -o mode=755 none dev
mkdir dev/net dev/pts dev/shm
for name in null zero full random urandom tty kvm net/tun; do
    : >"dev/$name"
    read_only "/dev/$name" "dev/$name"
done
mount -t devpts -o newinstance,ptmxmode=666 none dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs none dev/shm
mount -t proc none proc
read_only proc/sys proc/sys
mount -t tmpfs none sys
mkdir -p sys/fs/cgroup
mount -t cgroup2 none sys/fs/cgroup

echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo ID=test >etc/os-release
printf 'passwd: files\ngroup: files\n' >etc/nsswitch.conf
printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'messagebus:x:100:101::/:/bin/false' >etc/passwd
printf '%s\n' 'root:x:0:' 'messagebus:x:101:' 'migrate:x:102:' >etc/group

pivot_root . old
cd /
umount -l /old
rmdir /old
# Everything that can be written is in memory, or is not a file system of files.
while read -r _ where type options _; do
    case $type:,$options, in
    tmpfs:* | proc:* | devpts:* | cgroup2:* | *,ro,*) ;;
    *)
        echo "root.sh: $where ($type) could be written" >&2
        exit 1
        ;;
    esac
done </proc/self/mounts

ip link set lo up
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_boot,-sys_rawio,-mknod,-syslog \
    env -i container=test SYSTEMD_UNIT_PATH=/etc/systemd/system PATH=/usr/sbin:/usr/bin \
    /usr/lib/systemd/systemd --system --log-target=journal --log-level=notice --show-status=no
