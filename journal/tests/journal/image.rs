//! Images against a plain model: thousands of folds, with resizes, discards and collections in between.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::store_support::*;
use tidemark_journal::image::{Image, ImageBuilder, ImageError, ImageReader, affected, diff, mark, verify};
use tidemark_journal::storage::SimStorage;
use tidemark_journal::store::{ChunkStore, PackId, SweepOptions, pack};
use tidemark_proto::ids::{DiskId, Lsn};

const SECTOR: u64 = 512;
const CHUNK: u64 = 65_536;
const PACK: usize = 1 << 20;

/// What a disk holds: sectors that are not zero.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    sectors: BTreeMap<u64, u64>,
    size: u64,
}

fn sector(seed: u64) -> [u8; 512] {
    noise(seed, 512).try_into().unwrap()
}

impl Model {
    fn chunk(&self, chunk: u64) -> Vec<u8> {
        let mut out = vec![0; 65_536];
        for (at, seed) in self.sectors.range(chunk * 128..(chunk + 1) * 128) {
            let from = usize::try_from((at - chunk * 128) * SECTOR).unwrap();
            out[from..from + 512].copy_from_slice(&sector(*seed));
        }
        out
    }

    fn chunks(&self) -> BTreeSet<u64> {
        self.sectors.keys().map(|sector| sector / 128).collect()
    }
}

/// A change of a run of sectors: data by seed, or zeroes.
type Change = (Range<u64>, Option<u64>);

/// Newest versions, ascending and apart.
fn changes(random: &mut Random, model: &Model) -> Vec<Change> {
    let sectors = model.size / SECTOR;
    let mut out = Vec::new();
    let mut at = random.below(40);
    for _ in 0..1 + random.below(25) {
        // Most of it goes to a few hot chunks, some far away.
        at += match random.below(8) {
            0 => random.below(sectors / 2 + 1),
            1..4 => random.below(400),
            _ => random.below(30),
        };
        let (length, zero) = match random.below(12) {
            0 => (128 * (1 + random.below(3)), false),
            1 => (random.below(sectors / 4 + 2), true),
            2 | 3 => (8, true),
            _ => (8 * (1 + random.below(3)) - random.below(8), false),
        };
        let end = (at + length).min(sectors);
        if at >= end {
            break;
        }
        out.push((at..end, (!zero).then(|| random.below(400))));
        at = end;
    }
    out
}

fn apply(model: &mut Model, changes: &[Change]) {
    for (range, data) in changes {
        match data {
            Some(seed) => {
                for at in range.clone() {
                    model.sectors.insert(at, seed * 1000 + at % 5);
                }
            }
            None => {
                let gone: Vec<u64> = model.sectors.range(range.clone()).map(|(at, _)| *at).collect();
                for at in gone {
                    model.sectors.remove(&at);
                }
            }
        }
    }
}

fn fold(
    store: &Arc<ChunkStore>,
    previous: Option<&Image>,
    lsn: u64,
    size: u64,
    changes: &[Change],
) -> Result<Image, ImageError> {
    let session = store.session(DOMAIN)?;
    let mut builder = ImageBuilder::new(&session, previous, DiskId(1), Lsn(lsn), size)?;
    for (range, data) in changes {
        match data {
            Some(seed) => {
                let content: Vec<u8> = range.clone().flat_map(|at| sector(seed * 1000 + at % 5)).collect();
                builder.write(range.start, &content)?;
            }
            None => builder.zero(range.start, range.end - range.start)?,
        }
    }
    let image = builder.finish()?;
    assert_eq!(Image::decode(&image.encode()).unwrap(), image);
    Ok(image)
}

/// The first chunk that differs.
fn difference(store: &Arc<ChunkStore>, image: &Image, model: &Model, chunks: &BTreeSet<u64>) -> Option<u64> {
    let reader = ImageReader::new(Arc::clone(store), image.clone());
    assert_eq!(image.size_bytes(), model.size);
    chunks.iter().copied().find(|chunk| {
        let bytes = CHUNK.min(model.size.saturating_sub(chunk * CHUNK));
        let mut found = vec![1; usize::try_from(bytes).unwrap()];
        reader.read_at(chunk * CHUNK, &mut found).unwrap();
        found != model.chunk(*chunk)[..found.len()]
    })
}

fn touched(changes: &[Change]) -> BTreeSet<u64> {
    let few = |range: &Range<u64>| (range.start / 128..range.end.div_ceil(128)).take(3);
    changes.iter().flat_map(|(range, _)| few(range)).collect()
}

fn resized(random: &mut Random, model: &mut Model) {
    let sectors = match random.below(3) {
        0 => model.size / SECTOR + random.below(1000),
        1 => 128 * (1 + random.below(70_000)),
        _ => 1 + random.below(model.size / SECTOR),
    };
    model.size = sectors * SECTOR;
    model.sectors.split_off(&sectors);
}

fn collect(store: &Arc<ChunkStore>, images: &[&Image]) {
    store.flush().unwrap();
    let gc = store.begin_gc().unwrap();
    for image in images {
        assert_eq!(mark(store, image, &gc).unwrap(), 0);
    }
    gc.sweep(SweepOptions { fill_percent: 50, tolerate_missing: false }).unwrap();
}

fn check_diff(store: &Arc<ChunkStore>, a: (&Image, &Model), b: (&Image, &Model)) {
    let all: BTreeSet<u64> = a.1.chunks().union(&b.1.chunks()).copied().collect();
    let expected: BTreeSet<u64> =
        all.into_iter().filter(|chunk| a.1.chunk(*chunk) != b.1.chunk(*chunk)).collect();
    let found: BTreeSet<u64> = diff(store, a.0, b.0).unwrap().into_iter().flatten().collect();
    assert_eq!(found, expected);
}

fn run(seed: u64, folds: u64) {
    let mut random = Random(seed);
    let storage = SimStorage::new(seed);
    let store = create(&storage, PACK);
    let mut model = Model { size: CHUNK * (1 + random.below(600)), ..Model::default() };
    let mut image = fold(&store, None, 0, model.size, &[]).unwrap();
    let mut kept: Vec<(Image, Model)> = Vec::new();
    for lsn in 1..=folds {
        if random.below(12) == 0 {
            resized(&mut random, &mut model);
        }
        let changes = changes(&mut random, &model);
        apply(&mut model, &changes);
        image = fold(&store, Some(&image), lsn, model.size, &changes).unwrap();
        let wrong = difference(&store, &image, &model, &touched(&changes));
        assert_eq!(wrong, None, "seed {seed}, fold {lsn}");
        if random.below(10) == 0 {
            kept.push((image.clone(), model.clone()));
        }
        if random.below(25) == 0 {
            if kept.len() > 3 {
                kept.remove(0);
            }
            let images: Vec<&Image> = kept.iter().map(|(image, _)| image).chain([&image]).collect();
            collect(&store, &images);
            if let Some((old, of_then)) = kept.first() {
                check_diff(&store, (old, of_then), (&image, &model));
            }
        }
    }
    kept.push((image, model));
    for (image, model) in &kept {
        let mut all = model.chunks();
        all.extend((0..20).map(|_| random.below(model.size.div_ceil(CHUNK))));
        assert_eq!(difference(&store, image, model, &all), None, "seed {seed}");
        assert_eq!(verify(&store, image).unwrap(), []);
        check_extents(&store, image, model);
    }
}

fn check_extents(store: &Arc<ChunkStore>, image: &Image, model: &Model) {
    let reader = ImageReader::new(Arc::clone(store), image.clone());
    let end = model.size.min(40 * CHUNK);
    let (from, to) = (end / 5, end - end / 7);
    let extents = reader.extents(from, to - from).unwrap();
    let mut at = from;
    for extent in &extents {
        assert_eq!(extent.offset, at);
        at += extent.bytes;
        if extent.zero {
            let sectors = extent.offset / SECTOR..(extent.offset + extent.bytes).div_ceil(SECTOR);
            assert_eq!(model.sectors.range(sectors).next(), None);
        }
    }
    assert_eq!(at, to.max(from));
    assert!(extents.windows(2).all(|pair| pair[0].zero != pair[1].zero));
}

#[test]
fn every_image_is_what_was_written() {
    let (seeds, folds) = if large() { (300, 150) } else { (20, 100) };
    for seed in 0..seeds {
        run(seed, folds);
    }
}

/// Negative controls: the comparison fails for a fold over the wrong image, and for one that lost a range.
#[test]
fn the_comparison_fails_for_a_wrong_base_or_a_lost_range() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let mut model = Model { size: 10 * CHUNK, ..Model::default() };
    let first: Vec<Change> = vec![(8..16, Some(1)), (300..308, Some(2))];
    let second: Vec<Change> = vec![(16..24, Some(3)), (600..608, Some(4))];
    let empty = fold(&store, None, 0, model.size, &[]).unwrap();
    let one = fold(&store, Some(&empty), 1, model.size, &first).unwrap();
    apply(&mut model, &first);
    apply(&mut model, &second);
    let all = (0..10).collect();
    let right = fold(&store, Some(&one), 2, model.size, &second).unwrap();
    assert_eq!(difference(&store, &right, &model, &all), None);
    let wrong_base = fold(&store, Some(&empty), 2, model.size, &second).unwrap();
    assert_eq!(difference(&store, &wrong_base, &model, &all), Some(0));
    let lost = fold(&store, Some(&one), 2, model.size, &second[..1]).unwrap();
    assert_eq!(difference(&store, &lost, &model, &all), Some(4));
    assert_ne!(right.id(), wrong_base.id());
}

#[test]
fn equal_disks_are_one_image_and_holes_cost_nothing() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let size = 1 << 44;
    let whole: Vec<Change> = vec![(0..128, Some(1)), (1 << 33..(1 << 33) + 128, Some(2))];
    let a = fold(&store, None, 7, size, &whole).unwrap();
    let stored = store.statistics().new_bytes;
    assert!(stored < 4 * CHUNK, "{stored} bytes for two chunks of a disk of 16 TiB");
    let b = fold(&store, None, 7, size, &whole).unwrap();
    assert_eq!((a.id(), store.statistics().new_bytes), (b.id(), stored));
    // All of it discarded: as if nothing had been.
    let c = fold(&store, Some(&a), 7, size, &[(0..size / SECTOR, None)]).unwrap();
    assert_eq!(c.id(), Image::empty(DOMAIN, DiskId(1), Lsn(7), size).id());
    let zeroes: Vec<u8> = vec![0; 65_536];
    let session = store.session(DOMAIN).unwrap();
    let mut builder = ImageBuilder::new(&session, Some(&a), DiskId(1), Lsn(7), size).unwrap();
    builder.write(0, &zeroes).unwrap();
    builder.write(1 << 33, &zeroes).unwrap();
    assert_eq!(builder.finish().unwrap().id(), c.id(), "zeroes that are written are holes");
}

#[test]
fn ranges_beyond_the_disk_or_out_of_order_are_refused() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let mut builder = ImageBuilder::new(&session, None, DiskId(1), Lsn(1), 8 * SECTOR).unwrap();
    assert!(matches!(builder.write(7, &[1; 1024]), Err(ImageError::Range { .. })));
    assert!(matches!(builder.write(0, &[1; 100]), Err(ImageError::Range { .. })));
    builder.write(4, &[1; 512]).unwrap();
    assert!(matches!(builder.zero(4, 1), Err(ImageError::Order(4))));
    let image = builder.finish().unwrap();
    let reader = ImageReader::new(Arc::clone(&store), image);
    assert!(matches!(reader.read_at(4000, &mut [0; 100]), Err(ImageError::Range { .. })));
    assert!(matches!(reader.extents(u64::MAX, 2), Err(ImageError::Range { .. })));
    let mut odd = [0; 700];
    reader.read_at(1999, &mut odd).unwrap();
    assert_eq!((odd[48], odd[49], odd[560], odd[561]), (0, 1, 1, 0));
}

#[test]
fn damage_is_traced_to_the_bytes_of_the_images_it_affects() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let size = 600 * CHUNK;
    let base =
        fold(&store, None, 1, size, &[(0..128 * 3, Some(1)), (128 * 500..128 * 501, Some(7))]).unwrap();
    let image = fold(&store, Some(&base), 2, size, &[(130..134, Some(9))]).unwrap();
    store.flush().unwrap();
    let (name, bytes) = storage.files().into_iter().find(|(name, _)| name.starts_with("pack-")).unwrap();
    let (_, chunks) = pack::decode(&bytes).unwrap();
    for chunk in &chunks {
        let storage = SimStorage::with_files(1, &storage.files());
        storage.flip(&name, u64::from(chunk.offset) + 90, 1);
        let (store, _) = try_open(&storage, 2, PACK).unwrap();
        let damaged = tidemark_journal::store::scrub(folder(&storage).as_ref()).unwrap().damaged_chunks();
        assert_eq!(damaged.iter().collect::<Vec<_>>(), [&chunk.id]);
        let hit = affected(&store, &image, &damaged).unwrap();
        let seen = verify(&store, &image).unwrap();
        assert_eq!(
            hit.iter().map(|hit| hit.bytes.clone()).collect::<Vec<_>>(),
            seen.iter().map(|damage| damage.bytes.clone()).collect::<Vec<_>>()
        );
        // What is outside reads as before; what reads wrong is inside.
        let reader = ImageReader::new(Arc::clone(&store), image.clone());
        let broken = |at: u64| hit.iter().any(|hit| hit.bytes.contains(&at));
        for number in [0, 1, 2, 3, 500, 599] {
            let failed = reader.read_at(number * CHUNK, &mut vec![0; 65_536]).is_err();
            assert!(!failed || broken(number * CHUNK), "chunk {number}");
        }
    }
    assert!(PackId::of_name(&name).is_some());
}

#[test]
fn descriptors_are_golden_and_damage_in_them_is_found() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let image = fold(&store, None, 0x0102, 3 * CHUNK, &[(0..128, Some(1)), (130..131, Some(2))]).unwrap();
    let bytes = image.encode();
    assert_eq!(&bytes[..16], b"TMIMAGE1\x01\x00\x00\x00\xa0\x00\x00\x00");
    assert_eq!(&bytes[16..32], &DOMAIN.0);
    assert_eq!(bytes[32..48], [1, 0, 0, 0, 0, 1, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[48..56], (3 * CHUNK).to_le_bytes());
    assert_eq!(bytes[88..96], [0; 8]);
    assert_eq!(bytes[128..160], image.id().0);
    assert_eq!(image.id().to_string(), "cb0c415eb35124c1a79d0428e679c8b9c132a5711ffbede121c4fc1ba94365ee",);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert!(Image::decode(&changed).is_err(), "byte {at}");
        assert!(Image::decode(&bytes[..at]).is_err());
    }
}
