# shellcheck shell=sh
# What the package managers run, in one place for .deb and .rpm: packaging/build puts this file and a call into each
# script. Nothing here may fail an installation for want of a running systemd: packages are installed in images, too.

units="tidemark-splitter.service tidemark-splitter-initramfs.path"
state=/var/lib/tidemark-splitter

running_systemd() { [ -d /run/systemd/system ]; }

reload() { ! running_systemd || systemctl daemon-reload || true; }

# Enrolment enables and starts the service; until then only a change of the protected disks is waited for.
installed() {
    reload
    ! command -v systemctl >/dev/null || systemctl enable --quiet tidemark-splitter-initramfs.path || true
    ! running_systemd || systemctl start tidemark-splitter-initramfs.path || true
}

# The tap stays in the kernel and captures on; the new process goes on where the old one's acknowledgements end.
upgraded() {
    reload
    if running_systemd; then
        systemctl try-restart tidemark-splitter-initramfs.path tidemark-splitter.service || true
    fi
    # The tap in there should be the one that the service knows.
    [ ! -e "$state/initramfs.list" ] || rebuild_initramfs
}

# Before the files go: the tap leaves the kernel, and with it everything pinned.
removing() {
    # shellcheck disable=SC2086 # Two words.
    if running_systemd; then
        systemctl disable --now --quiet $units || true
        systemctl stop tidemark-splitter-initramfs.service || true
    elif command -v systemctl >/dev/null; then
        systemctl disable --quiet $units || true
    fi
    [ ! -d "$state" ] || /usr/bin/tidemark-splitter unload || true
}

# After the files went.
removed() {
    reload
    ! running_systemd || systemctl reset-failed tidemark-splitter.service tidemark-splitter-initramfs.service 2>/dev/null || true
    rm -rf /run/tidemark-splitter
    if [ -e "$state/initramfs.list" ]; then
        rm -f "$state/initramfs.list"
        rebuild_initramfs
    fi
}

# Nothing stays: the certificate ends with its key.
purged() { rm -rf "$state"; }

rebuild_initramfs() {
    if command -v dpkg-trigger >/dev/null && [ -n "${DPKG_MAINTSCRIPT_NAME:-}" ] &&
        dpkg-trigger --check-supported 2>/dev/null && command -v update-initramfs >/dev/null; then
        # Once, at the end of all that is being installed.
        dpkg-trigger --no-await update-initramfs || true
    elif command -v update-initramfs >/dev/null; then
        update-initramfs -u || true
    elif command -v dracut >/dev/null; then
        dracut --force --kver "$(uname -r)" || true
    fi
}
