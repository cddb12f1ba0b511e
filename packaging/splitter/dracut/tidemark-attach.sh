#!/bin/sh
# dracut: attaches the tap to the protected disks before a file system is mounted, so that what the boot writes
# (journal replay, fsck, activation of volumes) is marked. dracut reads this file into its own shell; a failure never
# keeps the machine from booting.

tidemark_attach() {
    [ -s /var/lib/tidemark-splitter/disks.toml ] || return 0
    if [ -r /etc/tidemark/splitter.env ]; then
        set -a
        # shellcheck source=/dev/null
        . /etc/tidemark/splitter.env
        set +a
    fi
    modprobe -q loop
    # To the kernel's log, which is still there after the boot.
    /usr/bin/tidemark-splitter attach 2>&1 | while read -r line; do
        echo "<6>tidemark-splitter: ${line#tidemark-splitter: }" >/dev/kmsg
    done
}

# A disk that does not answer must not keep the machine from booting either: it goes on after half a minute.
(tidemark_attach) &
tidemark_pid=$!
tidemark_waited=0
while kill -0 "$tidemark_pid" 2>/dev/null && [ "$tidemark_waited" -lt 30 ]; do
    sleep 1
    tidemark_waited=$((tidemark_waited + 1))
done
