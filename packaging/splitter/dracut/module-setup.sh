#!/bin/bash
# dracut: puts the tap and the list of protected disks into the initramfs, once there are any.

tidemark_state=/var/lib/tidemark-splitter

# Whether the module belongs into this initramfs.
check() {
    [[ -s $tidemark_state/disks.toml ]] || return 255
    require_binaries /usr/bin/tidemark-splitter || return 1
    return 0
}

depends() {
    return 0
}

# For the self-test, and for finding page memory where the kernel hides it.
installkernel() {
    instmods loop ext4
}

install() {
    inst_binary /usr/bin/tidemark-splitter
    # No credentials: what names the disks is all that is needed.
    inst_simple "$tidemark_state/disks.toml"
    if [[ -e /etc/tidemark/splitter.env ]]; then
        inst_simple /etc/tidemark/splitter.env
    fi
    # Whenever devices have come up, and at last before the root file system is mounted. dracut sets moddir.
    # shellcheck disable=SC2154
    inst_hook initqueue/settled 05 "$moddir/tidemark-attach.sh"
    inst_hook pre-mount 05 "$moddir/tidemark-attach.sh"
}
