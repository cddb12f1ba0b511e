# shellcheck shell=sh
# What the package managers run, in one place for .deb and .rpm: packaging/build puts this file and a call into each
# script. Nothing here may fail an installation for want of a running systemd: packages are installed in images, too.

units="tidemark-splitter.service tidemark-splitter-initramfs.path"
state=/var/lib/tidemark-splitter

running_systemd() { [ -d /run/systemd/system ]; }

reload() { ! running_systemd || systemctl daemon-reload || true; }

# Enrolment enables and starts the service; until then only a change of the protected disks is waited for. A machine that
# was enrolled before the package was removed is protected again.
installed() {
    rm -f "$state/removed"
    reload
    wanted=tidemark-splitter-initramfs.path
    [ ! -e "$state/identity.toml" ] || wanted=$units
    # shellcheck disable=SC2086 # Two words.
    ! command -v systemctl >/dev/null || systemctl enable --quiet $wanted || true
    # shellcheck disable=SC2086
    ! running_systemd || systemctl start $wanted || true
}

# The tap stays in the kernel and captures on; the new process goes on where the old one's acknowledgements end.
upgraded() {
    # dpkg calls it an upgrade, too, when the package had been removed and its state had stayed.
    [ ! -e "$state/removed" ] || installed
    reload
    if running_systemd; then
        systemctl try-restart tidemark-splitter-initramfs.path tidemark-splitter.service || true
    fi
    # The tap in there should be the one that the service knows.
    [ ! -e "$state/initramfs.list" ] || rebuild_initramfs
}

# Before the files go: volumes in synchronous mode get their own tables back, the tap leaves the kernel, and with it
# everything pinned. Where a gate cannot be taken out the package stays: without it nobody would start another when the
# gate's process dies, and the volume would hang.
removing() {
    if [ -d "$state" ] && ! /usr/bin/tidemark-splitter ungate; then
        echo "tidemark-splitter is not removed, and goes on" >&2
        return 1
    fi
    # shellcheck disable=SC2086 # Two words.
    if running_systemd; then
        systemctl disable --now --quiet $units || true
        systemctl stop tidemark-splitter-initramfs.service || true
    elif command -v systemctl >/dev/null; then
        systemctl disable --quiet $units || true
    fi
    [ -d "$state" ] || return 0
    /usr/bin/tidemark-splitter unload ||
        echo "the tap stays in the kernel until the machine is started again: see /sys/fs/bpf" >&2
    : >"$state/removed"
}

# After the files went.
removed() {
    rm -rf /run/tidemark-splitter /run/tidemark-hooks /run/tidemark-gate
    # What the service was allowed for volumes in synchronous mode.
    rm -rf /run/systemd/system.control/tidemark-splitter.service.d
    reload
    ! running_systemd || systemctl reset-failed tidemark-splitter.service tidemark-splitter-initramfs.service 2>/dev/null || true
    if [ -e "$state/initramfs.list" ]; then
        rm -f "$state/initramfs.list"
        rebuild_initramfs
    fi
}

# Nothing stays: the certificate ends with its key.
purged() { rm -rf "$state"; }

rebuild_initramfs() {
    # Not by dpkg's trigger: that does the newest kernel only, and any of them may be booted.
    if command -v update-initramfs >/dev/null; then
        update-initramfs -u -k all || true
    elif command -v dracut >/dev/null; then
        dracut --force --regenerate-all || true
    fi
}
