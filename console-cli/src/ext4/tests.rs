//! Images made by e2fsprogs, replays by e2fsprogs, and images with flipped bytes. No root, no mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow};
use proptest::prelude::*;

use super::*;
use crate::files::{Ranges, compare, content_hash, walk};

mod changes;

/// An image in memory that counts reads, and refuses them beyond a number.
struct Image {
    bytes: Vec<u8>,
    reads: AtomicU64,
}

const READS_MAX: u64 = 300_000;

impl Image {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes, reads: AtomicU64::new(0) })
    }
}

impl Source for Image {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if self.reads.fetch_add(1, Ordering::Relaxed) > READS_MAX {
            return Err(anyhow!("too many reads"));
        }
        let at = usize::try_from(offset)?;
        let part = at.checked_add(buffer.len()).and_then(|end| self.bytes.get(at..end));
        buffer.copy_from_slice(part.ok_or_else(|| anyhow!("a read outside"))?);
        Ok(())
    }
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    // Where e2fsprogs lies, which the path of people other than root leaves out.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// A folder with one of everything.
fn populate(folder: &Path, many: usize) {
    let file = |name: &str, content: &[u8]| fs::write(folder.join(name), content).unwrap();
    fs::create_dir_all(folder.join("deep/er/still")).unwrap();
    fs::create_dir(folder.join("many")).unwrap();
    file("empty", b"");
    file("tiny", b"a few bytes");
    file("large", &(0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    file("deep/er/still/here", &[7; 5000]);
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 1_500_000).unwrap();
    fs::hard_link(folder.join("tiny"), folder.join("deep/linked")).unwrap();
    std::os::unix::fs::symlink("tiny", folder.join("short-link")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(100), folder.join("long-link")).unwrap();
    for number in 0..many {
        file(&format!("many/a-file-with-a-longer-name-{number}"), &number.to_le_bytes());
    }
}

fn make(folder: &Path, options: &[&str], many: usize) -> Vec<u8> {
    let (tree, image) = (folder.join("tree"), folder.join("image"));
    if !tree.exists() {
        fs::create_dir(&tree).unwrap();
        populate(&tree, many);
    }
    let _ = fs::remove_file(&image);
    let (tree, image) = (tree.to_string_lossy(), image.to_string_lossy());
    run("mke2fs", &[&["-q", "-F", "-d", &tree], options, &[&image, "12M"]].concat());
    fs::read(&*image).unwrap()
}

type Seen = BTreeMap<Vec<u8>, (Kind, u64, Option<[u8; 32]>, u16)>;

fn seen(filesystem: &FileSystem) -> Result<Seen> {
    let mut all = Seen::new();
    walk(filesystem, &filesystem.root()?, b"/", true, &mut |item| {
        let has_content =
            matches!(item.inode.kind, Kind::File | Kind::Symlink) && item.inode.size_bytes < 16 << 20;
        let hash = has_content.then(|| content_hash(filesystem, item.inode)).transpose()?;
        let size = if item.inode.kind == Kind::Directory { 0 } else { item.inode.size_bytes };
        all.insert(item.path.to_vec(), (item.inode.kind, size, hash, item.inode.links));
        Ok(())
    })?;
    Ok(all)
}

/// The same of a folder of this machine.
fn expected(root: &Path, folder: &Path, all: &mut Seen) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            _ => Kind::File,
        };
        let content = match kind {
            Kind::Directory => None,
            Kind::Symlink => Some(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()),
            _ => Some(fs::read(&path).unwrap()),
        };
        let size = content.as_ref().map_or(0, |content| content.len() as u64);
        let hash = content.map(|content| *blake3::hash(&content).as_bytes());
        let name = [b"/", path.strip_prefix(root).unwrap().as_os_str().as_bytes()].concat();
        all.insert(name, (kind, size, hash, u16::try_from(metadata.nlink()).unwrap()));
        if kind == Kind::Directory {
            expected(root, &path, all);
        }
    }
}

fn open(bytes: Vec<u8>) -> Result<FileSystem> {
    FileSystem::open(Image::new(bytes), Replay::Committed)
}

#[test]
fn every_layout_shows_the_tree_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let layouts: [&[&str]; 9] = [
        &["-t", "ext4", "-b", "4096"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-b", "2048", "-O", "^64bit,^flex_bg", "-g", "2048"],
        &["-t", "ext4", "-O", "^metadata_csum,uninit_bg", "-I", "128"],
        &["-t", "ext4", "-O", "inline_data,metadata_csum_seed"],
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,sparse_super2", "-g", "1024"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-b", "1024", "-r", "1"],
        &["-t", "ext4", "-O", "bigalloc,large_dir,quota,ea_inode", "-C", "16384"],
    ];
    for options in layouts {
        let image = make(folder.path(), options, 400);
        let mut found = seen(&open(image).unwrap()).unwrap();
        let mut right = Seen::new();
        expected(&folder.path().join("tree"), &folder.path().join("tree"), &mut right);
        found.remove(b"/lost+found".as_slice()).unwrap();
        if options.iter().any(|option| option.starts_with("inline_data")) {
            // With inline data mke2fs 1.47.0 makes a sparse file too short; the kernel shows it so, too.
            let sparse = b"/sparse".as_slice();
            assert_eq!(found.remove(sparse).map(|found| found.0), right.remove(sparse).map(|right| right.0));
        }
        assert!(found == right, "{options:?}");
        // The oracle sees one byte and one name.
        *found.get_mut(b"/empty".as_slice()).unwrap() = found[b"/tiny".as_slice()];
        assert!(found != right);
    }
}

/// Transactions that nobody replayed are read as e2fsprogs replays them: later copies over earlier ones, revoked ones not
/// at all, those that look like the journal's own blocks, and nothing of a transaction without a commit.
#[test]
fn the_journal_is_read_as_a_replay_leaves_the_disk() {
    for (features, checksums) in
        [("64bit,metadata_csum", "-v 3"), ("64bit,metadata_csum", "-v 2"), ("^64bit,^metadata_csum", "")]
    {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        make(folder.path(), &["-t", "ext4", "-b", "1024", "-O", features, "-J", "size=1"], 0);
        let block = |name: &str, content: &[u8], blocks: usize| {
            let path = folder.path().join(name);
            let mut bytes = content.to_vec();
            bytes.resize(1024 * blocks, 0x5a);
            fs::write(&path, bytes).unwrap();
            path.to_string_lossy().into_owned()
        };
        let (one, two) = (block("one", b"first", 3), block("two", b"second", 2));
        let magic = block("magic", &0xC03B_3998_u32.to_be_bytes(), 1);
        let script = folder.path().join("script");
        let opening = if checksums.is_empty() { "jo".to_owned() } else { format!("jo -c {checksums}") };
        let lines = [
            opening,
            format!("jw -b 9000,9001,9002 {one}"),
            format!("jw -b 9001,9003 {two}"),
            // The first copy of 9002 is taken back, and 9000 twice with one in between.
            "jw -r 9000,9002".to_owned(),
            format!("jw -b 9000 {magic}"),
            format!("jw -b 9004 {magic}"),
            format!("jw -b 9005 -c {magic}"),
            "jc".to_owned(),
        ];
        fs::write(&script, lines.join("\n")).unwrap();
        let shown = image.to_string_lossy().into_owned();
        let said = run("debugfs", &["-w", "-f", &script.to_string_lossy(), &shown]);
        let dirty = fs::read(&image).unwrap();
        run("debugfs", &["-w", "-R", "jr", &shown]);
        let replayed = fs::read(&image).unwrap();
        let filesystem = open(dirty.clone()).unwrap();
        let raw = FileSystem::open(Image::new(dirty), Replay::Ignored).unwrap();
        let (mut differs, mut bytes) = (0, vec![0; 1024]);
        for number in 9000..9006_u64 {
            let at = usize::try_from(number).unwrap() * 1024;
            filesystem.read_block(number, &mut bytes).unwrap();
            assert!(bytes == replayed[at..at + 1024], "block {number}, {features} {checksums}: {said}");
            raw.read_block(number, &mut bytes).unwrap();
            differs += u64::from(bytes != replayed[at..at + 1024]);
        }
        // Without the journal most of these are wrong: the comparison can fail.
        assert!(differs >= 4, "{differs} blocks differ without the journal: {said}");
        assert!(seen(&filesystem).is_ok());
    }
}

#[test]
fn paths_do_not_follow_links_or_leave_the_top() {
    let folder = tempfile::tempdir().unwrap();
    let filesystem = open(make(folder.path(), &["-t", "ext4"], 0)).unwrap();
    let look = |path: &[u8]| filesystem.look(&components(path).unwrap()).unwrap();
    assert!(matches!(look(b"/deep/er//./still/here"), Looked::Found(inode) if inode.size_bytes == 5000));
    assert!(matches!(look(b"short-link"), Looked::Found(inode) if inode.kind == Kind::Symlink));
    assert!(matches!(look(b"short-link/x"), Looked::Link { component: 0, target } if target == b"tiny"));
    assert!(matches!(look(b"tiny/x"), Looked::Missing { .. }));
    assert!(
        matches!(look(b"deep/nothing/x"), Looked::Missing { deepest } if deepest.kind == Kind::Directory)
    );
    assert!(components(b"/a/../b").is_err());
    assert!(components(&b"a/".repeat(3000)).is_err());
}

/// Data that was written in place, whose inode says nothing of it, is found with all names of its file; what nobody
/// uses is not reported.
#[test]
fn data_written_in_place_has_an_owner_whatever_times_say() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = make(folder.path(), &["-t", "ext4", "-b", "1024"], 40);
    let clean = open(bytes.clone()).unwrap();
    let place = |path: &[u8], at: u64| match clean.look(&components(path).unwrap()).unwrap() {
        Looked::Found(inode) => {
            let runs = clean.mapping(&inode).unwrap().runs;
            let run = runs.iter().find(|run| (run.logical..run.logical + run.blocks).contains(&at)).unwrap();
            (run.physical + at - run.logical) * 1024
        }
        other => panic!("{other:?}"),
    };
    let free = (bytes.len() - 2048) as u64;
    let changes = |at: u64| {
        let mut other = bytes.clone();
        other[usize::try_from(at).unwrap()] ^= 0xff;
        let compared = compare(&clean, &open(other).unwrap(), &Ranges::of(vec![(at, at + 1)]), &[]).unwrap();
        let told = compared.changes.iter().map(|change| (change.path.clone(), change.what.clone()));
        (told.collect::<Vec<_>>(), compared.searched_groups)
    };
    let content = |path: &[u8]| (path.to_vec(), vec!["content"]);
    let (told, searched) = changes(place(b"large", 700));
    assert_eq!((told, searched > 0), (vec![content(b"/large")], true));
    assert_eq!(changes(place(b"tiny", 0)).0, [content(b"/deep/linked"), content(b"/tiny")]);
    assert_eq!(changes(place(b"deep/er/still/here", 2)).0, [content(b"/deep/er/still/here")]);
    assert_eq!(changes(free), (Vec::new(), 0));
    // The bytes of a file that the appliance does not name as changed are not looked at: the claim is its own.
    let unnamed = compare(&clean, &clean, &Ranges::default(), &[]).unwrap();
    assert!(unnamed.changes.is_empty() && unnamed.read_directories == 0);
}

/// A directory that holds itself, by another name, is walked once.
#[test]
fn a_ring_of_directories_ends() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = make(folder.path(), &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"], 0);
    let clean = open(bytes.clone()).unwrap();
    let inode = |path: &[u8]| match clean.look(&components(path).unwrap()).unwrap() {
        Looked::Found(inode) => inode.number,
        other => panic!("{other:?}"),
    };
    let (deep, still) = (inode(b"deep"), inode(b"deep/er/still"));
    let entry = [&still.to_le_bytes()[..]].concat();
    let mut ring = bytes.clone();
    let named = |at: &usize| bytes[*at..*at + 4] == entry[..] && bytes[*at + 8..*at + 13] == *b"still";
    let at = (0..bytes.len() - 16).step_by(4).find(named).unwrap();
    ring[at..at + 4].copy_from_slice(&deep.to_le_bytes());
    let ring = open(ring).unwrap();
    let found = seen(&ring).unwrap();
    assert!(
        found.contains_key(b"/deep/er/still/er".as_slice())
            || found.contains_key(b"/deep/er/still".as_slice())
    );
    assert!(found.len() < 40, "{} names", found.len());
    let all = Ranges::of(vec![(0, bytes.len() as u64)]);
    let _ = (compare(&clean, &ring, &all, &[]), compare(&ring, &clean, &all, &[]));
}

/// Everything that the commands do with an image; errors are fine, panics and endless work are not.
fn exercise(bytes: Vec<u8>, original: &FileSystem) {
    let image = Image::new(bytes);
    let source: Arc<dyn Source> = Arc::<Image>::clone(&image);
    let Ok(filesystem) = FileSystem::open(source, Replay::Committed) else { return };
    let _ = seen(&filesystem);
    for number in 1..64 {
        if let Ok(inode) = filesystem.inode(number) {
            let _ = (filesystem.mapping(&inode), filesystem.target(&inode), filesystem.parent(&inode));
        }
    }
    let _ = filesystem.look(&components(b"deep/er/still/here").unwrap());
    let all = Ranges::of(vec![(0, image.size_bytes())]);
    let _ = compare(original, &filesystem, &all, &[]);
    let _ = compare(&filesystem, original, &all, &[]);
    let reads = image.reads.load(Ordering::Relaxed);
    assert!(reads <= READS_MAX, "{reads} reads of a damaged image");
}

/// Images with and without checksums and with a journal to replay, made once.
fn seeds() -> &'static Vec<Vec<u8>> {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut seeds = Vec::new();
        let layouts: [&[&str]; 3] = [
            &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"],
            &["-t", "ext4", "-b", "1024", "-J", "size=1"],
            &["-t", "ext3", "-b", "1024", "-J", "size=1"],
        ];
        for options in layouts {
            seeds.push(make(folder.path(), options, 40));
            let image = folder.path().join("image").to_string_lossy().into_owned();
            let script = folder.path().join("script");
            let block = folder.path().join("block");
            fs::write(&block, [3; 4096]).unwrap();
            let block = block.to_string_lossy();
            let lines = format!("jo\njw -b 9000,9001,9002,9003 {block}\njw -r 9001\njw -b 9001 {block}\njc");
            fs::write(&script, lines).unwrap();
            run("debugfs", &["-w", "-f", &script.to_string_lossy(), &image]);
            seeds.push(fs::read(&image).unwrap());
        }
        seeds
    })
}

/// Bytes that a structure in use lies in: what is not zero.
fn places(bytes: &[u8]) -> Vec<usize> {
    let used =
        |(block, content): (usize, &[u8])| content.iter().any(|byte| *byte != 0).then_some(block * 256);
    bytes.chunks(256).enumerate().filter_map(used).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn flipped_bytes_neither_panic_nor_loop(
        seed in 0_usize..6,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..256, any::<u8>()), 1..40),
    ) {
        let clean = &seeds()[seed];
        let original = open(clean.clone()).unwrap();
        let mut bytes = clean.clone();
        // Where metadata lies: the first quarter of these images.
        let mut places = places(&clean[..clean.len() / 4]);
        // The superblock and the groups are a small part, and what everything stands on.
        places.extend([1024, 1280, 2048, 2304].repeat(40));
        for (place, within, value) in flips {
            let at = places[place.index(places.len())] + within;
            bytes[at] = value;
        }
        exercise(bytes, &original);
    }
}
