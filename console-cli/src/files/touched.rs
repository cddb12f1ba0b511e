//! Which inodes may be another between two points, from which blocks are, without looking at the rest.
//!
//! 1. A block differs when its content after a replay does: the appliance says which bytes of the disk differ, and blocks
//!    with a copy in either journal are compared.
//! 2. A changed block of an inode table is compared slot by slot: these inodes were touched, and their blocks are theirs.
//! 3. A changed block that is in use and belongs to none of them belongs to an inode that did not change: data written in
//!    place, whose time is not committed yet. Its owner is searched in the inode tables, the nearest groups first.
//!
//! So nothing depends on times. What cannot be proved to be the same counts as touched.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::ranges::{RANGES_MAX, Ranges};
use crate::ext4::{Damaged, FileSystem, Group, Inode, InodeTime, Kind, Mapping};

/// Inodes that are compared at most: 100 MiB. Beyond it a comparison ends with an error.
const TOUCHED_MAX: usize = 500_000;
/// Blocks of files' trees that are read at most: those of 4 TiB in pieces of a few blocks. Beyond it a comparison ends
/// with an error.
const NODES_MAX: usize = 4 << 20;
/// Blocks of inode tables that are read at once.
const BLOCKS_AT_ONCE: u64 = 16;
/// The first inode that is not the file system's own, and the one of `/`.
const FIRST_INODE: u32 = 11;
const ROOT: u32 = 2;

/// What is told about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) inode: u32,
    pub(crate) kind: Kind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size_bytes: u64,
    pub(crate) modified: InodeTime,
    pub(crate) changed: InodeTime,
    pub(crate) links: u16,
    pub(crate) generation: u32,
    created: Option<InodeTime>,
    pub(super) has_name: bool,
}

impl Facts {
    pub(crate) fn of(inode: &Inode) -> Self {
        Self {
            inode: inode.number,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size_bytes: inode.size_bytes,
            modified: inode.modified,
            changed: inode.changed,
            links: inode.links,
            generation: inode.generation,
            created: inode.created(),
            has_name: !inode.is_attribute() && (inode.number >= FIRST_INODE || inode.number == ROOT),
        }
    }

    /// Whether both are the same file, rather than two that had one inode after another.
    pub(super) fn same_file(&self, other: &Self) -> bool {
        let identity = |one: &Self| (one.inode, one.kind, one.generation, one.created);
        identity(self) == identity(other)
    }
}

/// One inode at both points; `None` where it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Touched {
    pub(super) before: Option<Facts>,
    pub(super) after: Option<Facts>,
    /// Its content lies elsewhere or was written.
    pub(super) content: bool,
    /// Flags, the project, extended attributes or ACLs differ.
    pub(super) attributes: bool,
}

impl Touched {
    pub(super) fn same_file(&self) -> bool {
        self.before.zip(self.after).is_some_and(|(before, after)| before.same_file(&after))
    }
}

/// What a comparison knows about blocks and inodes.
pub(super) struct Comparison<'a> {
    pub(super) before: &'a FileSystem,
    pub(super) after: &'a FileSystem,
    /// Blocks whose content differs.
    pub(super) changed: Ranges,
    pub(super) touched: BTreeMap<u32, Touched>,
    /// Changed blocks whose owner is known.
    owned: Vec<(u64, u64)>,
    /// Blocks of files' trees that were read.
    nodes: usize,
    /// Groups whose inode tables were searched for an owner.
    pub(super) searched_groups: u64,
}

impl<'a> Comparison<'a> {
    /// `raw` are the bytes that differ on the disk between the points, from the partition's start on.
    pub(super) fn new(before: &'a FileSystem, after: &'a FileSystem, raw: &Ranges) -> Result<Self> {
        if !before.superblock().same_layout(after.superblock()) {
            bail!(
                "the file system was made anew between these points: see what each has with `tidemark files list`"
            );
        }
        let changed = changed_blocks(before, after, raw)?;
        let (touched, owned) = (BTreeMap::new(), Vec::new());
        let mut comparison = Self { before, after, changed, touched, owned, nodes: 0, searched_groups: 0 };
        let groups: Vec<Group> =
            (0..after.superblock().groups()).map(|group| after.group(group)).collect::<Result<_>>()?;
        for group in &groups {
            comparison.inode_table(group)?;
        }
        let numbers: Vec<u32> = comparison.touched.keys().copied().collect();
        for number in numbers {
            comparison.content(number)?;
        }
        comparison.find_owners(&groups)?;
        Ok(comparison)
    }

    /// Compares the changed blocks of one group's inode table.
    fn inode_table(&mut self, group: &Group) -> Result<()> {
        let table_end = group.inode_table + self.after.inode_table_blocks();
        let parts: Vec<_> = self.changed.within(group.inode_table, table_end).collect();
        if parts.is_empty() {
            return Ok(());
        }
        let old = (group.number < self.before.superblock().groups())
            .then(|| self.before.group(group.number))
            .transpose()?;
        if old.is_some_and(|old| old.inode_table != group.inode_table) {
            bail!(
                "inode tables were moved between these points: see what each has with `tidemark files list`"
            );
        }
        let block_bytes = self.after.superblock().block_bytes;
        let inode_bytes = usize::from(self.after.superblock().inode_bytes);
        let per_block = block_bytes / u64::from(self.after.superblock().inode_bytes);
        for (start, end) in parts {
            let mut at = start;
            while at < end {
                let some = BLOCKS_AT_ONCE.min(end - at);
                let read = |filesystem: &FileSystem| -> Result<Vec<u8>> {
                    let mut bytes = vec![0; usize::try_from(some * block_bytes)?];
                    filesystem.read_blocks(at, &mut bytes)?;
                    Ok(bytes)
                };
                let new_bytes = read(self.after)?;
                let old_bytes = if old.is_some() { read(self.before)? } else { vec![0; new_bytes.len()] };
                let slots = old_bytes.chunks(inode_bytes).zip(new_bytes.chunks(inode_bytes));
                let first = (at - group.inode_table) * per_block;
                for (place, (old_slot, new_slot)) in (first..).zip(slots) {
                    let place = u32::try_from(place)?;
                    let was = old.is_some_and(|old| place < old.used_inodes).then_some(old_slot);
                    let is = (place < group.used_inodes).then_some(new_slot);
                    self.slot(group, place, was, is)?;
                }
                at += some;
            }
        }
        Ok(())
    }

    fn slot(&mut self, group: &Group, place: u32, was: Option<&[u8]>, is: Option<&[u8]>) -> Result<()> {
        if !Inode::slots_differ(was.unwrap_or_default(), is.unwrap_or_default()) {
            return Ok(());
        }
        let number =
            group.number * u64::from(self.after.superblock().inodes_per_group) + u64::from(place) + 1;
        let number = u32::try_from(number)?;
        self.own_unlinked(group, number, place, is.unwrap_or_default())?;
        let facts = |filesystem: &FileSystem, slot: Option<&[u8]>| -> Result<Option<Facts>> {
            let Some(slot) = slot.filter(|slot| Inode::slot_in_use(slot)) else { return Ok(None) };
            Ok(Some(Facts::of(&filesystem.parse_inode(number, slot.to_vec())?)))
        };
        let (before, after) = (facts(self.before, was)?, facts(self.after, is)?);
        let touched = Touched { before, after, ..Touched::default() };
        if touched.before.is_some() || touched.after.is_some() {
            self.touch(number, touched)?;
        }
        Ok(())
    }

    /// Notes the blocks of a file that has no name and is open still. Nothing is told of it, so what is wrong with it is
    /// nobody's concern.
    fn own_unlinked(&mut self, group: &Group, number: u32, place: u32, slot: &[u8]) -> Result<()> {
        if !Inode::slot_unlinked(slot) || !self.after.inode_allocated(group, place)? {
            return Ok(());
        }
        let read = self.after.parse_inode(number, slot.to_vec()).and_then(|inode| {
            let mapping = self.after.mapping(&inode)?;
            Ok((inode, mapping))
        });
        match read {
            Ok((inode, mapping)) => self.own(&inode, &mapping),
            Err(error) if error.is::<Damaged>() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn touch(&mut self, number: u32, touched: Touched) -> Result<()> {
        if self.touched.len() >= TOUCHED_MAX {
            bail!("more than {TOUCHED_MAX} files were changed: name points that lie nearer to each other");
        }
        self.touched.insert(number, touched);
        Ok(())
    }

    /// Finds out whether a touched inode's content may differ, and which changed blocks are its own.
    fn content(&mut self, number: u32) -> Result<()> {
        let Some(touched) = self.touched.get(&number).copied() else { return Ok(()) };
        let read = |filesystem: &FileSystem, facts: Option<Facts>| {
            let Some(_) = facts else { return Ok(None) };
            let inode = filesystem.inode(number)?;
            let mapping = filesystem.mapping(&inode)?;
            Ok::<_, anyhow::Error>(Some((inode, mapping)))
        };
        let before = read(self.before, touched.before)?;
        let after = read(self.after, touched.after)?;
        for (inode, mapping) in before.iter().chain(&after) {
            self.own(inode, mapping)?;
        }
        let content = match (&before, &after) {
            (Some((old, old_mapping)), Some((new, new_mapping))) => {
                old.size_bytes != new.size_bytes
                    || old.own_content() != new.own_content()
                    || self.visible(old, old_mapping) != self.visible(new, new_mapping)
                    || self
                        .visible(new, new_mapping)
                        .iter()
                        .any(|(_, place, blocks)| self.changed.intersects(*place, place + blocks))
            }
            _ => true,
        };
        let attributes = match (&before, &after) {
            (Some((old, _)), Some((new, _))) => self.before.attributes_differ(old, self.after, new)?,
            _ => false,
        };
        if let Some(touched) = self.touched.get_mut(&number) {
            (touched.content, touched.attributes) = (content, attributes);
        }
        Ok(())
    }

    /// The written runs up to the end of the file: (place in the file, block, blocks).
    fn visible(&self, inode: &Inode, mapping: &Mapping) -> Vec<(u64, u64, u64)> {
        let end = inode.size_bytes.div_ceil(self.after.superblock().block_bytes);
        let runs = mapping.runs.iter().filter(|run| run.written && run.logical < end);
        runs.map(|run| (run.logical, run.physical, run.blocks.min(end - run.logical))).collect()
    }

    /// Notes which changed blocks are an inode's.
    fn own(&mut self, inode: &Inode, mapping: &Mapping) -> Result<()> {
        let runs = mapping.runs.iter().map(|run| (run.physical, run.physical + run.blocks));
        let nodes = mapping.nodes.iter().map(|node| (*node, node + 1));
        let attributes =
            (inode.attributes_block > 0).then(|| (inode.attributes_block, inode.attributes_block + 1));
        for (start, end) in runs.chain(nodes).chain(attributes) {
            self.owned.extend(self.changed.within(start, end));
            if self.owned.len() >= RANGES_MAX {
                bail!("too much changed, in too small pieces: name points that lie nearer to each other");
            }
        }
        self.count_nodes(mapping)
    }

    fn count_nodes(&mut self, mapping: &Mapping) -> Result<()> {
        self.nodes += mapping.nodes.len();
        if self.nodes > NODES_MAX {
            bail!("files are in too many pieces to compare: recover the disk and run e2fsck on it");
        }
        Ok(())
    }

    /// Changed blocks in use that belong to no touched inode and are none of the file system's own.
    fn ownerless(&mut self, groups: &[Group]) -> Result<Ranges> {
        let mut own = Vec::new();
        for group in groups {
            own.extend(self.after.group_overhead(group));
            own.push((group.inode_table, group.inode_table + self.after.inode_table_blocks()));
        }
        let superblock = self.after.superblock();
        own.push((superblock.protection_block, superblock.protection_block.saturating_add(1)));
        for overlay in [self.before.overlay(), self.after.overlay()] {
            own.extend(overlay.own().runs.iter().map(|run| (run.physical, run.physical + run.blocks)));
        }
        let own_inodes = superblock.own_inodes.clone();
        for number in (1..FIRST_INODE).filter(|number| *number != ROOT).chain(own_inodes) {
            if number > superblock.inodes || !Inode::slot_in_use(&self.after.inode_slot(number)?) {
                continue;
            }
            let inode = self.after.inode(number)?;
            let mapping = self.after.mapping(&inode)?;
            self.own(&inode, &mapping)?;
        }
        let left = self.changed.minus(&Ranges::of(own)).minus(&Ranges::of(self.owned.clone()));
        self.in_use(groups, &left)
    }

    /// The blocks of `ranges` that a bitmap says are in use.
    fn in_use(&self, groups: &[Group], ranges: &Ranges) -> Result<Ranges> {
        let mut used = Ranges::default();
        for group in groups {
            let (start, end) = self.after.group_range(group.number);
            let parts: Vec<_> = ranges.within(start, end).collect();
            if parts.is_empty() {
                continue;
            }
            let Some(bitmap) = self.after.block_bitmap(group)? else {
                parts.into_iter().for_each(|(from, to)| used.push(from, to));
                continue;
            };
            for block in parts.into_iter().flat_map(|(from, to)| from..to) {
                let bit = block - start;
                let byte = usize::try_from(bit / 8)?;
                if bitmap.get(byte).is_none_or(|byte| byte >> (bit % 8) & 1 == 1) {
                    used.push(block, block + 1);
                }
            }
        }
        Ok(used)
    }

    fn find_owners(&mut self, groups: &[Group]) -> Result<()> {
        let mut left = self.ownerless(groups)?;
        let Some((first, _)) = left.iter().next() else { return Ok(()) };
        let near = self.after.group_of_block(first);
        let mut order: Vec<&Group> = groups.iter().filter(|group| group.used_inodes > 0).collect();
        order.sort_by_key(|group| {
            let (start, end) = self.after.group_range(group.number);
            (!left.intersects(start, end), group.number.abs_diff(near))
        });
        for group in order {
            self.searched_groups += 1;
            let known = self.owned.len();
            self.search_table(group, &left)?;
            let found = self.owned.get(known..).unwrap_or_default().to_vec();
            left = left.minus(&Ranges::of(found));
            if left.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Looks for owners of `wanted` in one group's inode table.
    fn search_table(&mut self, group: &Group, wanted: &Ranges) -> Result<()> {
        let superblock = self.after.superblock();
        let inode_bytes = u64::from(superblock.inode_bytes);
        let blocks = (u64::from(group.used_inodes) * inode_bytes).div_ceil(superblock.block_bytes);
        let first = group.number * u64::from(superblock.inodes_per_group) + 1;
        let mut slots = (first..).take(usize::try_from(group.used_inodes)?);
        let block_bytes = superblock.block_bytes;
        let mut at = 0;
        while at < blocks {
            let some = BLOCKS_AT_ONCE.min(blocks - at);
            let mut bytes = vec![0; usize::try_from(some * block_bytes)?];
            self.after.read_blocks(group.inode_table + at, &mut bytes)?;
            for slot in bytes.chunks(usize::try_from(inode_bytes)?) {
                let Some(number) = slots.next().and_then(|number| u32::try_from(number).ok()) else { break };
                if self.touched.contains_key(&number) {
                    continue;
                }
                if !Inode::slot_in_use(slot) {
                    let place = u32::try_from(u64::from(number) - first)?;
                    self.own_unlinked(group, number, place, slot)?;
                    continue;
                }
                let inode = self.after.parse_inode(number, slot.to_vec())?;
                let mapping = self.after.mapping(&inode)?;
                self.count_nodes(&mapping)?;
                let runs = mapping.runs.iter().map(|run| (run.physical, run.physical + run.blocks));
                let nodes = mapping.nodes.iter().map(|node| (*node, node + 1));
                let attributes = (inode.attributes_block, inode.attributes_block + 1);
                if runs.chain(nodes).chain([attributes]).any(|(start, end)| wanted.intersects(start, end)) {
                    let facts = Some(Facts::of(&inode));
                    self.touch(number, Touched { before: facts, after: facts, ..Touched::default() })?;
                    self.content(number)?;
                }
            }
            at += some;
        }
        Ok(())
    }
}

/// Blocks whose content after a replay differs.
fn changed_blocks(before: &FileSystem, after: &FileSystem, raw: &Ranges) -> Result<Ranges> {
    let block_bytes = after.superblock().block_bytes;
    let blocks = raw.iter().map(|(start, end)| (start / block_bytes, end.div_ceil(block_bytes)));
    let raw = Ranges::of(blocks.collect());
    let mut logged: Vec<u64> =
        before.overlay().numbers(0, u64::MAX).chain(after.overlay().numbers(0, u64::MAX)).collect();
    logged.sort_unstable();
    logged.dedup();
    let length = usize::try_from(block_bytes)?;
    let (mut one, mut other) = (vec![0; length], vec![0; length]);
    let mut differ = Vec::new();
    for block in &logged {
        let places = (before.overlay().get(*block), after.overlay().get(*block));
        if let (Some(was), Some(is)) = places
            && was == is
            && !raw.intersects(is.place, is.place + 1)
        {
            continue;
        }
        if *block >= before.superblock().blocks {
            differ.push((*block, block + 1));
            continue;
        }
        before.read_block(*block, &mut one)?;
        after.read_block(*block, &mut other)?;
        if one != other {
            differ.push((*block, block + 1));
        }
    }
    let logged = Ranges::of(logged.into_iter().map(|block| (block, block + 1)).collect());
    Ok(raw.minus(&logged).plus(&Ranges::of(differ)))
}
