//! What happened to the files of a directory between two points.
//!
//! Names come from the blocks of touched directories that differ; a name that went and one that came with the same inode,
//! of the same generation, are a rename. Names of other touched files are searched from the top, directories that lie
//! near them first, and only until all are found.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;

use anyhow::{Result, bail};

use super::ranges::Ranges;
use super::touched::{Comparison, Facts, Touched};
use super::walk::join;
use crate::ext4::{Damaged, Entry, FileSystem, Kind, Looked, Mapping, Run};

/// Names that came and went at most: some 150 MiB. Beyond it a comparison ends with an error.
const NAMES_MAX: usize = 1 << 20;
/// Directories whose place is known at most, 100 MiB. Beyond it a comparison ends with an error.
const DIRECTORIES_MAX: usize = 1 << 20;
/// Bytes of the paths of changes at most: 256 bytes for each of [`NAMES_MAX`]. Beyond it a comparison ends with an error.
const PATHS_MAX_BYTES: usize = 256 << 20;
/// Levels of directories at most: as many as a path has parts. Beyond it the directories are a ring.
pub(super) const LEVELS_MAX: usize = 2048;
const ROOT: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChangeKind {
    Removed,
    Renamed,
    Added,
    Changed,
}

impl ChangeKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Renamed => "renamed",
            Self::Added => "added",
            Self::Changed => "changed",
        }
    }
}

/// What happened to one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    /// At the later point; of what was removed, at the earlier one.
    pub(crate) path: Vec<u8>,
    /// Of what was renamed.
    pub(crate) from_path: Option<Vec<u8>>,
    pub(crate) before: Option<Facts>,
    pub(crate) after: Option<Facts>,
    /// What differs: `content`, `mode`, `owner`, `mtime`, `links`, `attributes`, `replaced`.
    pub(crate) what: Vec<&'static str>,
}

/// All changes, and what finding them took.
#[derive(Debug)]
pub(crate) struct Compared {
    /// By path, then by kind.
    pub(crate) changes: Vec<Change>,
    /// Files without a place in the tree that may have changed: a damaged file system has them.
    pub(crate) nameless: u64,
    pub(crate) touched_inodes: u64,
    pub(crate) searched_groups: u64,
    pub(crate) read_directories: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    parent: u32,
    name: Vec<u8>,
    inode: u32,
}

/// Compares what lies at or below `parts`; `raw` are the bytes of the partition that differ between the points.
///
/// # Errors
/// When the file system was made anew between the points, is damaged or cannot be read, or when too much changed.
pub(crate) fn compare(
    before: &FileSystem,
    after: &FileSystem,
    raw: &Ranges,
    parts: &[&[u8]],
) -> Result<Compared> {
    let comparison = Comparison::new(before, after, raw)?;
    let mut names = Names::collect(&comparison)?;
    let mut places = (Places::new(before), Places::new(after));
    let mut changes = Changes::default();
    let (mut wanted, mut lost) = (HashMap::new(), 0);
    names.pair(&comparison, &mut places, &mut changes)?;
    for (number, touched) in &comparison.touched {
        let (Some(was), Some(is)) = (touched.before, touched.after) else { continue };
        let what = what_differs(touched, &was, &is);
        if !is.has_name || what.is_empty() {
            continue;
        }
        if is.kind == Kind::Directory {
            let renamed = names.came.get(number).is_some_and(|count| *count > 0);
            if renamed {
                continue;
            }
            match places.1.path(*number) {
                Ok(path) => changes.push(changed(path, touched, what))?,
                Err(error) if error.is::<Damaged>() => lost += 1,
                Err(error) => return Err(error),
            }
        } else {
            let known = names.came.get(number).copied().unwrap_or(0);
            wanted.insert(*number, u64::from(is.links).saturating_sub(known));
        }
    }
    wanted.retain(|_, left| *left > 0);
    let start = match after.look(parts)? {
        Looked::Found(inode) if inode.kind == Kind::Directory => Some(inode.number),
        _ => parts.split_last().map_or(Ok(None), |(_, above)| match after.look(above)? {
            Looked::Found(inode) if inode.kind == Kind::Directory => {
                Ok::<_, anyhow::Error>(Some(inode.number))
            }
            _ => Ok(None),
        })?,
    };
    let mut search = Search { after, wanted, found: Vec::new(), read: 0, came: &names.came_names };
    if let Some(start) = start {
        search.run(start, &mut places.1)?;
    }
    let nameless = if parts.is_empty() { search.wanted.len() as u64 + lost } else { 0 };
    let (found, read_directories) = (std::mem::take(&mut search.found), search.read);
    for name in found {
        let Some(touched) = comparison.touched.get(&name.inode) else { continue };
        let (Some(was), Some(is)) = (touched.before, touched.after) else { continue };
        let path = join(&places.1.path(name.parent)?, &name.name);
        changes.push(changed(path, touched, what_differs(touched, &was, &is)))?;
    }
    Ok(Compared {
        changes: tidy(changes.all, parts),
        nameless,
        touched_inodes: comparison.touched.len() as u64,
        searched_groups: comparison.searched_groups,
        read_directories,
    })
}

/// Changes as they are found.
#[derive(Default)]
struct Changes {
    all: Vec<Change>,
    path_bytes: usize,
}

impl Changes {
    fn push(&mut self, change: Change) -> Result<()> {
        let from = change.from_path.as_ref().map_or(0, Vec::len);
        self.path_bytes = self.path_bytes.saturating_add(change.path.len()).saturating_add(from);
        if self.path_bytes > PATHS_MAX_BYTES {
            bail!(
                "the paths of what changed take more than {PATHS_MAX_BYTES} bytes: name points that lie nearer to each other"
            );
        }
        self.all.push(change);
        Ok(())
    }
}

fn changed(path: Vec<u8>, touched: &Touched, what: Vec<&'static str>) -> Change {
    let (before, after) = (touched.before, touched.after);
    Change { kind: ChangeKind::Changed, path, from_path: None, before, after, what }
}

/// What differs of a name that stayed.
fn what_differs(touched: &Touched, was: &Facts, is: &Facts) -> Vec<&'static str> {
    if is.kind != Kind::Directory && !touched.same_file() {
        // Its inode was given up and taken again.
        return vec!["replaced"];
    }
    differences(was, is, touched)
}

/// What differs between two states of one file. A directory's times and size follow from its names.
fn differences(was: &Facts, is: &Facts, touched: &Touched) -> Vec<&'static str> {
    let mut what = Vec::new();
    let mut note = |differs: bool, word| what.extend(differs.then_some(word));
    let directory = is.kind == Kind::Directory;
    note(!directory && touched.content, "content");
    note(was.mode != is.mode, "mode");
    note((was.uid, was.gid) != (is.uid, is.gid), "owner");
    note(!directory && was.modified != is.modified, "mtime");
    note(!directory && was.links != is.links, "links");
    if touched.attributes || (what.is_empty() && !directory && was.changed != is.changed) {
        what.push("attributes");
    }
    what
}

/// Joins what concerns one path, drops what lies elsewhere, and sorts. A renamed directory that the path leads through
/// concerns it: what lies below is not told of one by one.
fn tidy(mut changes: Vec<Change>, parts: &[&[u8]]) -> Vec<Change> {
    let top: Vec<u8> = parts.iter().flat_map(|part| [b"/".as_slice(), part].concat()).collect();
    let below = |path: &[u8]| {
        path.strip_prefix(top.as_slice()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    let above = |path: &[u8]| top.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
    changes.retain(|change| {
        let concerns = |path: &[u8]| below(path) || (change.from_path.is_some() && above(path));
        concerns(&change.path) || change.from_path.as_deref().is_some_and(concerns)
    });
    changes.sort_by(|one, other| (&one.path, one.kind).cmp(&(&other.path, other.kind)));
    changes.dedup();
    // A name that went and came again: an editor that writes a new file and renames it over the old one.
    let mut joined: Vec<Change> = Vec::with_capacity(changes.len());
    for change in changes {
        let replaced = joined.last_mut().filter(|last| {
            last.kind == ChangeKind::Removed
                && change.kind == ChangeKind::Added
                && last.path == change.path
                && last.before.map(|facts| facts.kind) == change.after.map(|facts| facts.kind)
                && change.after.is_some_and(|facts| facts.kind != Kind::Directory)
        });
        match replaced {
            Some(last) => {
                last.kind = ChangeKind::Changed;
                last.after = change.after;
                last.what = vec!["replaced"];
            }
            None => joined.push(change),
        }
    }
    joined
}

/// Names that went and came.
struct Names {
    removed: Vec<Name>,
    added: Vec<Name>,
    /// How many names came, by inode.
    came: HashMap<u32, u64>,
    came_names: HashSet<(u32, Vec<u8>)>,
}

impl Names {
    fn collect(comparison: &Comparison<'_>) -> Result<Self> {
        let mut names =
            Self { removed: Vec::new(), added: Vec::new(), came: HashMap::new(), came_names: HashSet::new() };
        for (number, touched) in &comparison.touched {
            let directory = |facts: Option<Facts>| facts.is_some_and(|facts| facts.kind == Kind::Directory);
            let (was, is) = (directory(touched.before), directory(touched.after));
            if was && is && touched.same_file() {
                if touched.content {
                    names.directory(comparison, *number)?;
                }
                continue;
            }
            if was {
                all_names(comparison.before, *number, &mut names.removed)?;
            }
            if is {
                all_names(comparison.after, *number, &mut names.added)?;
            }
            if names.removed.len() + names.added.len() > NAMES_MAX {
                return too_many();
            }
        }
        for name in &names.added {
            *names.came.entry(name.inode).or_default() += 1;
            names.came_names.insert((name.parent, name.name.clone()));
        }
        Ok(names)
    }

    /// The names of one directory in the blocks that differ.
    fn directory(&mut self, comparison: &Comparison<'_>, number: u32) -> Result<()> {
        let (before, after) = (comparison.before.inode(number)?, comparison.after.inode(number)?);
        let (mut was, mut is) = (Vec::new(), Vec::new());
        if before.own_content().is_some() || after.own_content().is_some() {
            all_names(comparison.before, number, &mut was)?;
            all_names(comparison.after, number, &mut is)?;
        } else {
            let old = comparison.before.directory_mapping(&before)?;
            let new = comparison.after.directory_mapping(&after)?;
            let blocks = |mapping: &Mapping| {
                Ranges::of(mapping.runs.iter().map(|run| (run.physical, run.physical + run.blocks)).collect())
            };
            let (old, new) = (blocks(&old), blocks(&new));
            let differ = |own: &Ranges, others: &Ranges| {
                let same = others.minus(&comparison.changed);
                own.minus(&same)
            };
            block_names(comparison.before, number, &differ(&old, &new), &mut was)?;
            block_names(comparison.after, number, &differ(&new, &old), &mut is)?;
        }
        let (old, new): (HashSet<&Name>, HashSet<&Name>) = (was.iter().collect(), is.iter().collect());
        let another = |name: &&Name| {
            // The same name and inode number, and another file.
            comparison.touched.get(&name.inode).is_some_and(|touched| !touched.same_file())
        };
        self.removed.extend(was.iter().filter(|name| !new.contains(name) || another(name)).cloned());
        self.added.extend(is.iter().filter(|name| !old.contains(name) || another(name)).cloned());
        if self.removed.len() + self.added.len() > NAMES_MAX { too_many() } else { Ok(()) }
    }

    /// Makes changes of the names: renames where one file lost a name and got another, else removals and additions.
    fn pair(
        &mut self,
        comparison: &Comparison<'_>,
        (old, new): &mut (Places<'_>, Places<'_>),
        changes: &mut Changes,
    ) -> Result<()> {
        self.removed.sort_unstable();
        self.added.sort_unstable();
        let mut gone: HashMap<u32, VecDeque<&Name>> = HashMap::new();
        for name in &self.removed {
            gone.entry(name.inode).or_default().push_back(name);
        }
        let state = |number: u32| -> Result<Touched> {
            if let Some(touched) = comparison.touched.get(&number) {
                return Ok(*touched);
            }
            let facts = Some(Facts::of(&comparison.after.inode(number)?));
            Ok(Touched { before: facts, after: facts, ..Touched::default() })
        };
        for name in &self.added {
            let touched = state(name.inode)?;
            let path = join(&new.path(name.parent)?, &name.name);
            let from = touched.same_file().then(|| gone.get_mut(&name.inode)).flatten();
            let from = from.and_then(VecDeque::pop_front);
            let Some(from) = from else {
                let (kind, after) = (ChangeKind::Added, touched.after);
                changes.push(Change {
                    kind,
                    path,
                    from_path: None,
                    before: None,
                    after,
                    what: Vec::new(),
                })?;
                continue;
            };
            let what = touched.before.zip(touched.after);
            let what = what.map_or_else(Vec::new, |(was, is)| differences(&was, &is, &touched));
            changes.push(Change {
                kind: ChangeKind::Renamed,
                path,
                from_path: Some(join(&old.path(from.parent)?, &from.name)),
                before: touched.before,
                after: touched.after,
                // A rename itself changes the inode's time.
                what: what.into_iter().filter(|word| *word != "attributes" || touched.attributes).collect(),
            })?;
        }
        for name in gone.into_values().flatten() {
            let path = join(&old.path(name.parent)?, &name.name);
            let (kind, before) = (ChangeKind::Removed, state(name.inode).ok().and_then(|state| state.before));
            changes.push(Change { kind, path, from_path: None, before, after: None, what: Vec::new() })?;
        }
        Ok(())
    }
}

fn too_many<T>() -> Result<T> {
    bail!("more than {NAMES_MAX} names came or went: name points that lie nearer to each other")
}

fn keep(names: &mut Vec<Name>, parent: u32, entry: &Entry<'_>) -> Result<ControlFlow<()>> {
    if names.len() > NAMES_MAX {
        return too_many();
    }
    if entry.name != b"." && entry.name != b".." {
        names.push(Name { parent, name: entry.name.to_vec(), inode: entry.inode });
    }
    Ok(ControlFlow::Continue(()))
}

fn all_names(filesystem: &FileSystem, number: u32, names: &mut Vec<Name>) -> Result<()> {
    let directory = filesystem.inode(number)?;
    filesystem.directory(&directory, &mut |entry| keep(names, number, &entry))
}

fn block_names(filesystem: &FileSystem, number: u32, blocks: &Ranges, names: &mut Vec<Name>) -> Result<()> {
    for (start, end) in blocks.iter() {
        let run = Run { logical: 0, physical: start, blocks: end - start, written: true };
        let _ = filesystem.directory_run(number, &run, &mut |entry| keep(names, number, &entry))?;
    }
    Ok(())
}

/// Where directories lie, found upwards through `..`.
struct Places<'a> {
    filesystem: &'a FileSystem,
    known: HashMap<u32, (u32, Vec<u8>)>,
}

impl<'a> Places<'a> {
    fn new(filesystem: &'a FileSystem) -> Self {
        Self { filesystem, known: HashMap::new() }
    }

    /// The path of a directory.
    fn path(&mut self, number: u32) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = number;
        while at != ROOT {
            if names.len() > LEVELS_MAX {
                return Err(Damaged("directories form a ring".to_owned()).into());
            }
            let (parent, name) = match self.known.get(&at) {
                Some(known) => known.clone(),
                None => self.find(at)?,
            };
            names.push(name);
            at = parent;
        }
        if names.is_empty() {
            return Ok(b"/".to_vec());
        }
        Ok(names.iter().rev().flat_map(|name| [b"/".as_slice(), name].concat()).collect())
    }

    fn find(&mut self, number: u32) -> Result<(u32, Vec<u8>)> {
        let parent = self.filesystem.parent(&self.filesystem.inode(number)?)?;
        let mut found = None;
        self.filesystem.directory(&self.filesystem.inode(parent)?, &mut |entry| {
            if entry.inode != number {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(entry.name.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        let name = found.ok_or_else(|| Damaged(format!("directory {number} has no name")))?;
        self.learn(number, parent, name.clone())?;
        Ok((parent, name))
    }

    fn learn(&mut self, number: u32, parent: u32, name: Vec<u8>) -> Result<()> {
        if self.known.len() >= DIRECTORIES_MAX {
            bail!("there are more than {DIRECTORIES_MAX} directories: name one of them");
        }
        self.known.insert(number, (parent, name));
        Ok(())
    }
}

/// Looks for the names of touched files.
struct Search<'a> {
    after: &'a FileSystem,
    /// How many names of each are not found yet.
    wanted: HashMap<u32, u64>,
    found: Vec<Name>,
    /// Directories that were read.
    read: u64,
    /// Names that are told of already.
    came: &'a HashSet<(u32, Vec<u8>)>,
}

impl Search<'_> {
    fn run(&mut self, start: u32, places: &mut Places<'_>) -> Result<()> {
        // A file's inode usually lies in the group of its directory's.
        let groups: HashSet<u64> =
            self.wanted.keys().map(|number| self.after.group_of_inode(*number)).collect();
        let (mut near, mut far) = (vec![start], Vec::new());
        let mut seen = HashSet::from([start]);
        while let Some(number) = near.pop().or_else(|| far.pop()) {
            if self.wanted.is_empty() {
                return Ok(());
            }
            self.read += 1;
            let directory = self.after.inode(number)?;
            self.after.directory(&directory, &mut |entry| {
                self.entry(number, &entry)?;
                let kind = match entry.kind {
                    Some(kind) => kind,
                    None => self.after.inode(entry.inode)?.kind,
                };
                if kind == Kind::Directory && seen.insert(entry.inode) {
                    places.learn(entry.inode, number, entry.name.to_vec())?;
                    let queue = if groups.contains(&self.after.group_of_inode(entry.inode)) {
                        &mut near
                    } else {
                        &mut far
                    };
                    queue.push(entry.inode);
                }
                let done = self.wanted.is_empty();
                Ok(if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(())
    }

    fn entry(&mut self, parent: u32, entry: &Entry<'_>) -> Result<()> {
        let Some(left) = self.wanted.get_mut(&entry.inode) else { return Ok(()) };
        if self.came.contains(&(parent, entry.name.to_vec())) {
            return Ok(());
        }
        *left -= 1;
        if *left == 0 {
            self.wanted.remove(&entry.inode);
        }
        if self.found.len() >= NAMES_MAX {
            return too_many();
        }
        self.found.push(Name { parent, name: entry.name.to_vec(), inode: entry.inode });
        Ok(())
    }
}
