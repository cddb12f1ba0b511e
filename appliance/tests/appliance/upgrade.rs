//! A data folder of an earlier version: it opens, keeps every point, and goes on.
//!
//! `fixtures/first-light.tar.xz` was written by the first version that worked from end to end: one VM with a disk of
//! 8 MiB, a bookmark, and no retention, chunk store, encryption or signatures yet. The keys in it are of no use elsewhere.

use std::path::Path;
use std::process::Command;

use tidemark_appliance::server::Appliance;
use tidemark_appliance::settings::Settings;
use tidemark_proto::ids::{DiskId, Lsn};

const DISK_BYTES: usize = 8 << 20;

/// What the disk held after so many of the writes that the guest made: block `37 n` of 2,048 is of the SHA-256 of `w<n>`.
fn image(writes: usize) -> Vec<u8> {
    let fill = |image: &mut [u8], text: &str| {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        image.chunks_mut(32).for_each(|piece| piece.copy_from_slice(hash.as_ref()));
    };
    let mut image = vec![0; DISK_BYTES];
    for block in 0..32 {
        fill(&mut image[block * 131_072..][..4096], &block.to_string());
    }
    for write in 0..writes {
        fill(&mut image[write * 37 % 2048 * 4096..][..4096], &format!("w{write}"));
    }
    image
}

fn content(appliance: &Appliance, lsn: u64) -> Vec<u8> {
    let vms = appliance.core().fleet.all();
    let view = vms.first().unwrap().log.journal().unwrap().view(Lsn(lsn)).unwrap();
    let mut image = vec![0xee; DISK_BYTES];
    view.read_at(DiskId(1), 0, &mut image).unwrap();
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_the_first_version_keeps_every_point() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/first-light.tar.xz");
    let unpacked = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(dir.path()).status().unwrap();
    assert!(unpacked.success());
    let settings = Settings::local(&dir.path().join("data"));
    // Twice: the first start may convert, the second must find that good.
    for start in 0..2 {
        let appliance = Appliance::start(&settings).await.unwrap();
        let vms = appliance.core().fleet.all();
        let [vm] = &vms[..] else { panic!("{} VMs", vms.len()) };
        assert_eq!(vm.name, "web-1");
        let bookmarks = appliance.core().catalog.bookmarks(vm.id).await.unwrap();
        let [bookmark] = &bookmarks[..] else { panic!("{bookmarks:?}") };
        assert_eq!((bookmark.name.as_str(), bookmark.lsn()), ("before-upgrade", Lsn(43)));
        let journal = vm.log.journal().unwrap();
        assert_eq!(journal.timeline().horizon().unwrap().lsn, Lsn(63));
        assert!(journal.view(Lsn(1)).is_err(), "inside the first copy");
        // The line took LSNs 1 and 2, the marker none of the writes before it.
        for (lsn, writes) in [(2, 0), (20, 18), (42, 40), (43, 40), (44, 41), (63, 60)] {
            assert!(content(&appliance, lsn) == image(writes), "start {start}, lsn:{lsn}");
        }
        // Negative control: the neighbour is another point.
        assert!(content(&appliance, 42) != image(39));
        drop((journal, vms));
        appliance.shutdown().await;
    }
}
