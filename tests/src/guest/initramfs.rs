//! The guest's root: busybox, modules, the programs under test with the libraries they need, and `/init`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::KernelFiles;
use crate::process::output_of;

/// The console takes kernel messages; commands come over the second serial line: `ID BASE64-OF-SCRIPT`, answered by
/// the output in base64 between `@begin ID` and `@end ID STATUS`. Scripts in `/etc/boot.d` run first, those in
/// `/etc/shutdown.d` when the machine is switched off in order.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
for module in /modules/*; do insmod "$module" || echo "insmod $module failed"; done
ifconfig lo 127.0.0.1 up
[ -e /sys/class/net/eth0 ] && ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
stty -F /dev/ttyS1 raw -echo
ready=@ready
for script in /etc/boot.d/*; do
    [ -e "$script" ] || continue
    ( set -e; . "$script" ) </dev/null >/dev/console 2>&1 || { echo "$script failed" >/dev/console; ready=@failed; }
done
exec </dev/ttyS1 >/dev/ttyS1 2>/dev/console
echo "$ready"
while read -r id script; do
    echo "$script" | base64 -d >/tmp/script
    ( . /tmp/script ) </dev/null >/tmp/output 2>&1
    status=$?
    echo "@begin $id"
    base64 /tmp/output
    echo "@end $id $status"
done
poweroff -f
"#;

/// Sourced with the word `poweroff` or `reboot` in `$1`: what a service manager does before the kernel stops.
const SHUTDOWN: &str = r#"
for script in /etc/shutdown.d/*; do
    [ -e "$script" ] && ( . "$script" ) </dev/null >/dev/console 2>&1
done
grep '^/dev' /proc/mounts | cut -d ' ' -f 2 | sort -r | while read -r folder; do umount "$folder"; done
sync
"#;

/// A root under construction.
#[derive(Debug)]
pub struct Initramfs {
    root: PathBuf,
    modules: Vec<PathBuf>,
}

impl Initramfs {
    /// Lays out busybox and the folders below `root`, an empty folder.
    ///
    /// # Errors
    /// When busybox is missing or the folder cannot be written.
    pub fn new(root: &Path) -> Result<Self> {
        for folder in [
            "bin",
            "sbin",
            "usr/bin",
            "usr/sbin",
            "proc",
            "sys",
            "dev",
            "tmp",
            "run",
            "modules",
            "root",
            "etc/boot.d",
            "etc/shutdown.d",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        let busybox = Path::new("/bin/busybox");
        ensure!(busybox.exists(), "/bin/busybox is missing: install busybox-static");
        fs::copy(busybox, root.join("bin/busybox"))?;
        for applet in output_of(Command::new(busybox).arg("--list"))?.split_whitespace() {
            if applet != "busybox" {
                symlink("busybox", root.join("bin").join(applet))?;
            }
        }
        fs::write(root.join("init"), INIT)?;
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
        fs::write(root.join("etc/shutdown"), SHUTDOWN)?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")?;
        Ok(Self { root: root.to_owned(), modules: Vec::new() })
    }

    /// Adds a file of the host as `path` (absolute) in the guest, with its permissions.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn file(&mut self, host: &Path, path: &str) -> Result<()> {
        let target = self.root.join(path.trim_start_matches('/'));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        if target.is_symlink() {
            fs::remove_file(&target)?;
        }
        fs::copy(host, &target).with_context(|| format!("copy {} into the guest", host.display()))?;
        Ok(())
    }

    /// Writes a file of the guest, `path` absolute; in `/bin` it is a program.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text(&mut self, path: &str, content: &str) -> Result<()> {
        let target = self.root.join(path.trim_start_matches('/'));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&target, content).with_context(|| format!("write {path} of the guest"))?;
        let mode = if path.starts_with("/bin/") { 0o755 } else { 0o644 };
        Ok(fs::set_permissions(&target, fs::Permissions::from_mode(mode))?)
    }

    /// Adds a program as `/bin/NAME`, with the shared libraries it needs and without what only debuggers need: unpacking
    /// that in emulation would take longer than the boot.
    ///
    /// # Errors
    /// When it cannot be copied or `ldd` cannot tell its libraries.
    pub fn program(&mut self, host: &Path) -> Result<()> {
        let name = host.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        self.file(host, &format!("/bin/{name}"))?;
        let copy = self.root.join("bin").join(&name);
        // Without `strip`, or for a script, the copy stays as it is.
        let _ = Command::new("strip").arg("--strip-debug").arg(&copy).stderr(Stdio::null()).status();
        for library in libraries(host)? {
            self.file(&library, &library.to_string_lossy())?;
        }
        Ok(())
    }

    /// Makes `path` (absolute) another name of `target`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn link(&mut self, target: &str, path: &str) -> Result<()> {
        let link = self.root.join(path.trim_start_matches('/'));
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink(target, &link).with_context(|| format!("link {path} in the guest"))
    }

    /// Adds a module and what it needs; they are loaded at boot.
    ///
    /// # Errors
    /// When the kernel has no such module.
    pub fn module(&mut self, kernel: &KernelFiles, name: &str) -> Result<()> {
        for file in kernel.module(name)? {
            if !self.modules.contains(&file) {
                self.modules.push(file);
            }
        }
        Ok(())
    }

    /// Packs everything into `archive`.
    ///
    /// # Errors
    /// When a module cannot be unpacked or `cpio` fails.
    pub fn pack(self, archive: &Path) -> Result<()> {
        for (number, module) in self.modules.iter().enumerate() {
            let name = module.file_name().context("a module has a name")?.to_string_lossy().into_owned();
            let target =
                self.root.join("modules").join(format!("{number:03}-{}", name.trim_end_matches(".xz")));
            if name.ends_with(".xz") {
                let unpacked = Command::new("xz").arg("-dc").arg(module).output().context("start xz")?;
                ensure!(unpacked.status.success(), "xz cannot unpack {}", module.display());
                fs::write(target, unpacked.stdout)?;
            } else {
                fs::copy(module, target)?;
            }
        }
        let mut find =
            Command::new("find").arg(".").current_dir(&self.root).stdout(Stdio::piped()).spawn()?;
        let names = find.stdout.take().context("find has an output")?;
        let status = Command::new("cpio")
            .args(["-o", "-H", "newc", "--quiet", "-R", "0:0"])
            .current_dir(&self.root)
            .stdin(names)
            .stdout(File::create(archive)?)
            .status()
            .context("start cpio")?;
        ensure!(status.success() && find.wait()?.success(), "cpio failed");
        Ok(())
    }
}

fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A static program: ldd fails and says so.
    Ok(text
        .lines()
        .flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}
