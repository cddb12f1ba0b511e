# shellcheck shell=sh
# What the package managers run, in one place for .deb and .rpm: packaging/build puts this file and a call into each
# script.

running_systemd() { [ -d /run/systemd/system ]; }

reload() { ! running_systemd || systemctl daemon-reload || true; }

installed() {
    systemd-sysusers /usr/lib/sysusers.d/tidemark.conf
    reload
    # It listens on the loopback interface only, until /etc/tidemark/appliance.toml says otherwise.
    ! command -v systemctl >/dev/null || systemctl enable --quiet tidemark-appliance.service || true
    ! running_systemd || systemctl start tidemark-appliance.service || true
}

upgraded() {
    systemd-sysusers /usr/lib/sysusers.d/tidemark.conf
    reload
    ! running_systemd || systemctl try-restart tidemark-appliance.service || true
}

removing() {
    if running_systemd; then
        systemctl disable --now --quiet tidemark-appliance.service || true
    elif command -v systemctl >/dev/null; then
        systemctl disable --quiet tidemark-appliance.service || true
    fi
}

removed() { reload; }

# What is kept here may be someone's last copy: no package manager deletes it.
purged() {
    if [ -d /var/lib/tidemark ]; then
        echo "the journals stay in /var/lib/tidemark, and the user 'tidemark' who owns them; delete both when nobody needs them" >&2
    elif getent passwd tidemark >/dev/null; then
        userdel tidemark || true
    fi
}
