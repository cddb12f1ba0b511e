//! What two states of a file system differ in, made with debugfs; and what is refused of crafted journals and groups.

use super::*;
use crate::files::{Change, ChangeKind, Compared, Located, Moves, Search, find_versions};

const PLAIN: [&str; 8] = ["-t", "ext4", "-b", "1024", "-O", "64bit,^metadata_csum", "-J", "size=1"];

/// An image after some requests to debugfs.
fn altered(folder: &Path, image: &[u8], requests: &[&str]) -> Vec<u8> {
    let (path, script) = (folder.join("altered"), folder.join("requests"));
    fs::write(&path, image).unwrap();
    fs::write(&script, requests.join("\n")).unwrap();
    let said = run("debugfs", &["-w", "-f", &script.to_string_lossy(), &path.to_string_lossy()]);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes != image, "{requests:?} changed nothing: {said}");
    bytes
}

fn compared(before: &[u8], after: &[u8], path: &str) -> Result<Compared> {
    let blocks = before.chunks(1024).zip(after.chunks(1024)).enumerate();
    let differ = blocks.filter(|(_, (one, other))| one != other).map(|(block, _)| {
        let start = block as u64 * 1024;
        (start, start + 1024)
    });
    let raw = Ranges::of(differ.collect());
    let (before, after) = (open(before.to_vec())?, open(after.to_vec())?);
    compare(&before, &after, &raw, &components(path.as_bytes())?)
}

fn told(changes: &[Change]) -> Vec<(String, ChangeKind, Vec<&'static str>)> {
    let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
    changes.iter().map(|change| (text(&change.path), change.kind, change.what.clone())).collect()
}

fn number_of(image: &[u8], path: &str) -> u32 {
    match open(image.to_vec()).unwrap().look(&components(path.as_bytes()).unwrap()).unwrap() {
        Looked::Found(inode) => inode.number,
        other => panic!("{path}: {other:?}"),
    }
}

/// Where block `logical` of the journal begins in an image.
fn journal_byte(image: &[u8], logical: u64) -> usize {
    let filesystem = open(image.to_vec()).unwrap();
    let runs = filesystem.mapping(&filesystem.inode(8).unwrap()).unwrap().runs;
    let run = runs.iter().find(|run| (run.logical..run.logical + run.blocks).contains(&logical)).unwrap();
    usize::try_from((run.physical + logical - run.logical) * 1024).unwrap()
}

/// An image with transactions that nobody replayed, of block 9000.
fn dirty(folder: &Path, options: &[&str]) -> Vec<u8> {
    let image = make(folder, options, 0);
    let block = folder.join("block");
    fs::write(&block, [3; 1024]).unwrap();
    let write = format!("jw -b 9000 {}", block.display());
    altered(folder, &image, &["jo", &write, &write, "jc"])
}

fn refusal(image: Vec<u8>) -> Option<String> {
    open(image).err().map(|error| error.to_string())
}

#[test]
fn fast_commits_that_a_replay_would_apply_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,fast_commit", "-J", "size=4"];
    let mut image = dirty(folder.path(), &options);
    let at = journal_byte(&image, 0);
    let number = |image: &[u8], field: usize| {
        u32::from_be_bytes(image[at + field..at + field + 4].try_into().unwrap())
    };
    // The kernel sets the feature when it mounts.
    image[at + 0x2b] |= 0x20;
    let fast_blocks = if number(&image, 0x54) == 0 { 256 } else { number(&image, 0x54) };
    let (end, sequence) = (u64::from(number(&image, 0x10) - fast_blocks), number(&image, 0x18));
    assert!(end >= 1024, "a ring of {end} blocks");
    let with_head = |block: u64, transaction: u32| {
        let mut image = image.clone();
        let at = journal_byte(&image, block);
        image[at..at + 4].copy_from_slice(&[9, 0, 8, 0]);
        image[at + 8..at + 12].copy_from_slice(&transaction.to_le_bytes());
        refusal(image)
    };
    let refused: Vec<u32> = (0..8).filter(|more| with_head(end + 1, sequence + more).is_some()).collect();
    assert!(matches!(refused[..], [next] if next > 0), "{refused:?}");
    let said = with_head(end + 1, sequence + refused[0]).unwrap();
    assert!(said.contains("fast commits"), "{said}");
    // Neither the block before the area nor an old transaction counts, nor an area that is empty.
    assert_eq!(with_head(end, sequence + refused[0]), None);
    assert_eq!(refusal(image), None);
}

#[test]
fn commits_that_may_come_before_what_they_commit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = dirty(folder.path(), &PLAIN);
    assert_eq!(refusal(image.clone()), None);
    let at = journal_byte(&image, 0);
    image[at + 0x2b] |= 0x4;
    let said = refusal(image).unwrap();
    assert!(said.contains("asynchronous commits"), "{said}");
}

/// The superblock on the disk still has the old size; the journal has copies of blocks behind it.
#[test]
fn a_journal_may_reach_beyond_a_file_system_that_grew() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = dirty(folder.path(), &PLAIN);
    image[1028..1032].copy_from_slice(&9000_u32.to_le_bytes());
    assert_eq!(refusal(image.clone()), None);
    // Behind the end of the partition nothing can lie.
    image.truncate(9000 * 1024);
    assert!(refusal(image).unwrap().contains("outside"));
}

#[test]
fn a_renamed_folder_above_a_path_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let before = make(folder.path(), &PLAIN, 3);
    let after = altered(folder.path(), &before, &["ln /deep /moved", "unlink /deep"]);
    for path in ["/deep/er/still", "/moved/er", "/deep", "/"] {
        let changes = compared(&before, &after, path).unwrap().changes;
        let expected = [("/moved".to_owned(), ChangeKind::Renamed, vec![])];
        assert_eq!(told(&changes), expected, "{path}");
        assert_eq!(changes[0].from_path.as_deref(), Some(b"/deep".as_slice()));
    }
    for path in ["/many", "/deepest"] {
        assert!(compared(&before, &after, path).unwrap().changes.is_empty(), "{path}");
    }
}

/// Flags, projects and extended attributes, of files and folders, without a new time.
#[test]
fn attributes_are_compared_whatever_times_say() {
    let folder = tempfile::tempdir().unwrap();
    let before = make(folder.path(), &PLAIN, 3);
    let large = folder.path().join("value");
    let set = |content: &[u8]| {
        fs::write(&large, content).unwrap();
        format!("ea_set -f {} /large user.large", large.display())
    };
    let in_block = set(&[b'a'; 600]);
    let kept = ["sif /large ctime 20200101", "sif /tiny ctime 20200101"];
    let before = altered(folder.path(), &before, &kept);
    let requests = [
        "ea_set /tiny user.note short",
        "ea_set /many user.note short",
        "sif /deep flags 0x80040",
        "sif /empty projid 7",
        &in_block,
        // Names that came to a folder hash it; that is no change of its attributes.
        "sif /deep/er flags 0x81000",
        kept[0],
        kept[1],
    ];
    let after = altered(folder.path(), &before, &requests);
    let attributes = |path: &str| (path.to_owned(), ChangeKind::Changed, vec!["attributes"]);
    let expected = ["/deep", "/deep/linked", "/empty", "/large", "/many", "/tiny"].map(attributes);
    assert_eq!(told(&compared(&before, &after, "/").unwrap().changes), expected);
    // Another value in the same block.
    let again = altered(folder.path(), &after, &[&set(&[b'b'; 600]), kept[0]]);
    assert_eq!(told(&compared(&after, &again, "/").unwrap().changes), [attributes("/large")]);
    // The number of files that share a block of attributes is none of their own.
    let number = number_of(&after, "/large");
    let block = open(after.clone()).unwrap().inode(number).unwrap().attributes_block;
    let mut shared = after.clone();
    shared[usize::try_from(block).unwrap() * 1024 + 4] += 1;
    assert!(block > 0 && compared(&after, &shared, "/").unwrap().changes.is_empty());
}

/// A file that was removed and is open still is written to: nothing is told of it, and no table is searched for it.
#[test]
fn files_that_are_open_and_have_no_name_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path(), &PLAIN, 3);
    let number = number_of(&image, "/large");
    let place = {
        let filesystem = open(image.clone()).unwrap();
        let run = filesystem.mapping(&filesystem.inode(number).unwrap()).unwrap().runs[0];
        usize::try_from(run.physical * 1024).unwrap()
    };
    let (links, time) = (format!("sif <{number}> links_count 0"), format!("sif <{number}> mtime 20300101"));
    let before = altered(folder.path(), &image, &["unlink /large", &links]);
    let mut after = altered(folder.path(), &before, &[&time]);
    after[place] ^= 0xff;
    let found = compared(&before, &after, "/").unwrap();
    assert_eq!((told(&found.changes), found.searched_groups, found.nameless), (vec![], 0, 0));
    // One that nobody has open is not believed to own anything: its blocks may be another's.
    let freed = altered(folder.path(), &after, &[&format!("freei <{number}>")]);
    let mut again = altered(folder.path(), &freed, &[&format!("sif <{number}> mtime 20310101")]);
    again[place] ^= 0xff;
    assert!(compared(&freed, &again, "/").unwrap().searched_groups > 0);
    // Its extents may be damaged.
    let damaged = altered(folder.path(), &after, &[&format!("sif <{number}> block[0] 0")]);
    assert!(compared(&before, &damaged, "/").unwrap().changes.is_empty());
}

#[test]
fn changed_folders_without_a_place_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let before = make(folder.path(), &PLAIN, 3);
    let changed = format!("sif <{}> mode 040700", number_of(&before, "/deep/er/still"));
    let after = altered(folder.path(), &before, &["unlink /deep/er", &changed]);
    assert_eq!(compared(&before, &after, "/").unwrap().nameless, 1);
    let after = altered(folder.path(), &before, &[&changed]);
    assert_eq!(compared(&before, &after, "/").unwrap().nameless, 0);
}

#[test]
fn a_top_that_is_no_folder_and_bitmaps_outside_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = make(folder.path(), &PLAIN, 0);
    let link = open(altered(folder.path(), &image, &["sif / mode 0120777"])).unwrap();
    assert!(link.look(&[b"tiny"]).unwrap_err().is::<Damaged>());
    for at in [0x0, 0x4] {
        let mut outside = image.clone();
        for half in [2048 + at, 2048 + at + 0x20] {
            outside[half..half + 4].fill(0xff);
        }
        assert!(open(outside).unwrap().group(0).unwrap_err().is::<Damaged>());
    }
}

/// Images one after another, as many points as each has.
struct Timeline {
    images: Vec<(u64, Arc<Image>)>,
    at: u64,
}

impl Moves for Timeline {
    fn move_to(&mut self, lsn: u64) -> Result<u64> {
        self.at = lsn;
        Ok(lsn * 1000)
    }

    fn disk(&self) -> Option<Arc<dyn Source>> {
        let (_, image) = self.images.iter().rev().find(|(from, _)| *from <= self.at)?;
        let source: Arc<dyn Source> = Arc::<Image>::clone(image);
        Some(source)
    }
}

/// A folder was moved away and back between two looks at which the file itself is the same.
#[test]
fn history_sees_that_a_folder_above_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let first = make(folder.path(), &PLAIN, 3);
    let away = altered(folder.path(), &first, &["ln /deep /moved", "unlink /deep"]);
    let back = altered(folder.path(), &first, &["sif /deep ctime 20300101"]);
    let find = |images: [(u64, &[u8]); 3], path: &str| {
        let images = images.map(|(from, image)| (from, Image::new(image.to_vec()))).to_vec();
        let (parts, windows) = (components(path.as_bytes()).unwrap(), vec![(0, 64)]);
        let search = Search { parts, partition: None, windows, points: Vec::new(), looks_max: 100 };
        let found = find_versions(&mut Timeline { images, at: 0 }, &search).unwrap();
        found.versions.into_iter().map(|version| (version.from.0, version.located)).collect::<Vec<_>>()
    };
    let found = find([(0, &first), (31, &away), (33, &back)], "/deep/er/still/here");
    let here = |located: &Located| matches!(located, Located::Present { .. });
    let places: Vec<(u64, bool)> = found.iter().map(|(from, located)| (*from, here(located))).collect();
    assert_eq!(places, [(0, true), (31, false), (33, true)]);
    let same = find([(0, &first), (31, &first), (33, &back)], "/deep/er/still/here");
    assert_eq!(same.len(), 1);
    let link = find([(0, &first), (31, &first), (33, &first)], "/short-link/x");
    assert!(matches!(&link[..], [(0, Located::Link { component: 0, target })] if target == b"tiny"));
}
