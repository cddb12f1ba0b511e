//! A clone mounted through FUSE keeps what a file system on it made durable, through a kill of the appliance.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::site::{Site, skipped};
use tidemark_tests::synthetic::Synthetic;

const VM: &str = "synthetic";
/// 32 MiB.
const DISK_SECTORS: u64 = 65_536;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

/// An ext4 file system in a file that lies in a mount.
struct Ext4 {
    mounted: Mounted,
    _disk: LoopDisk,
}

impl Ext4 {
    fn mount(file: &Path, at: &Path) -> Self {
        let disk = LoopDisk::attach(file, &[]).unwrap();
        let mounted = Mounted::mount(disk.device(), at, "rw").unwrap();
        Self { mounted, _disk: disk }
    }

    fn write_durably(&self, name: &str, bytes: &[u8]) {
        let path = self.mounted.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
    }
}

#[test]
fn ext4_on_a_mounted_clone_survives_a_kill_of_the_appliance() {
    if skipped("mounting a clone") {
        return;
    }
    let mut site = Site::start("clones").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut splitter = Synthetic::enrol(&site, VM, DISK_SECTORS, 5).await.unwrap();
        let mut stream = splitter.connect().await.unwrap();
        splitter.run(&mut stream, 300).await.unwrap();
    });
    let made = site.cli_json(&["clone", "create", VM, "--at", "lsn:100", "--name", "copy"]).unwrap();
    assert_eq!((made["parent"].as_str(), made["lsn"].as_u64()), (Some(VM), Some(100)));
    let point = site.image("copy", 0, "latest").unwrap();
    assert!(point == site.image(VM, 0, "lsn:100").unwrap());

    let (dir, files) = (site.path().join("mounted"), site.path().join("files"));
    fs::create_dir(&dir).unwrap();
    let durable = content(3 << 20, 1);
    {
        let _view = site.mount("copy", "latest", &dir).unwrap();
        let refused = site.cli_refused(&["clone", "remove", "copy"]).unwrap();
        assert!(refused.contains("unmount"), "{refused}");
        let file = dir.join("disk-1.raw");
        run("mkfs.ext4", &["-qF", "-E", "lazy_itable_init=0", &file.to_string_lossy()]);
        let ext4 = Ext4::mount(&file, &files);
        ext4.write_durably("durable", &durable);
        fs::write(ext4.mounted.path().join("lost"), "perhaps").unwrap();
        site.kill_appliance().unwrap();
        // Nothing goes on as if nothing had happened.
        let after = fs::File::create(ext4.mounted.path().join("after")).and_then(|file| file.sync_all());
        assert!(after.is_err(), "a lost clone takes nothing");
    }
    site.start_appliance().unwrap();

    // Mounted again: the journal is replayed, and what was durable is there.
    let (dir, files) = (site.path().join("again"), site.path().join("files-again"));
    fs::create_dir(&dir).unwrap();
    {
        let _view = site.mount("copy", "latest", &dir).unwrap();
        let ext4 = Ext4::mount(&dir.join("disk-1.raw"), &files);
        assert!(fs::read(ext4.mounted.path().join("durable")).unwrap() == durable);
        ext4.write_durably("second", b"round");
    }
    let check = site.path().join("check.raw");
    fs::write(&check, site.image("copy", 0, "latest").unwrap()).unwrap();
    run("e2fsck", &["-fn", &check.to_string_lossy()]);
    // The clone's first point and its parent are what they were.
    assert!(site.image("copy", 0, "lsn:100").unwrap() == point);
    assert!(site.image(VM, 0, "lsn:100").unwrap() == point);
    let points = site.cli_json(&["point", "list", "copy"]).unwrap();
    assert_eq!(points["windows"][0]["from_lsn"].as_u64(), Some(100));
    assert!(points["windows"][0]["to_lsn"].as_u64().unwrap() > 200, "each write is a point: {points}");
    assert!(site.cli_refused(&["vm", "remove", VM, "--yes"]).unwrap().contains("copy"));
    site.cli(&["clone", "remove", "copy"]).unwrap();
    assert_eq!(site.cli_json(&["clone", "list"]).unwrap().as_array().unwrap().len(), 0);
    site.finish(&["journal", "recover", "torn", "cut"]).unwrap();
}
