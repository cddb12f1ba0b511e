//! The command line of qemu.

use std::path::Path;
use std::process::Command;

use super::builder::Builder;

/// qemu for a machine whose files lie in `folder`: sockets `control` and `qmp`, the log `console`.
pub(super) fn command(machine: &Builder, image: &Path, initramfs: &Path, folder: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // The kernel's check whether the timer ticks fails where the emulator is short of processor time, and panics.
    let append = format!(
        "console=ttyS0 loglevel=6 panic=-1 no_timer_check random.trust_cpu=on nokaslr=0{}",
        machine.command_line
    );
    let socket = |name: &str| format!("unix:{},server=on,wait=off", folder.join(name).display());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg"])
        .args(["-machine", "pc", "-cpu", "max", "-smp", "2", "-uuid", &machine.uuid])
        .args(["-m", &machine.memory_mib.to_string()])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &append])
        .args(["-chardev", &format!("file,id=console,append=on,path={}", folder.join("console").display())])
        .args(["-serial", "chardev:console"])
        .args(["-serial", &socket("control")])
        .args(["-qmp", &socket("qmp")]);
    if machine.scsi {
        qemu.args(["-device", "virtio-scsi-pci,id=scsi"]);
    }
    for disk in &machine.disks {
        qemu.args(["-blockdev", &disk.block_device(folder).to_string()]);
        qemu.args(["-device", &disk.device().to_string()]);
    }
    if machine.network {
        qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    }
    qemu
}
