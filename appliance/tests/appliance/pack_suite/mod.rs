//! What every folder of packs must do, as its contract says.

use std::collections::BTreeMap;

use tidemark_journal::storage::StorageErrorKind;
use tidemark_journal::store::{PackFolder, PackId};

/// Content that does not repeat.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; bytes];
    hasher.finalize_xof().fill(&mut out);
    out
}

pub(crate) fn name(number: u8) -> String {
    PackId([number; 16]).name()
}

macro_rules! must {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

fn whole(folder: &dyn PackFolder, name: &str, bytes: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0xaa; bytes];
    folder.read(name, 0, &mut out).map_err(|error| format!("read {name}: {error}"))?;
    Ok(out)
}

fn fails(
    done: Result<(), tidemark_journal::storage::StorageError>,
    kind: StorageErrorKind,
) -> Result<(), String> {
    match done {
        Err(error) if error.kind() == kind => Ok(()),
        other => Err(format!("{other:?} instead of {kind:?}")),
    }
}

/// Tries the whole contract on an empty folder; what does not hold. Leaves the folder empty.
pub(crate) fn conformance(folder: &dyn PackFolder) -> Result<(), String> {
    must!(folder.list().map_err(|error| error.to_string())?.is_empty(), "the folder is not empty");
    // Over the edges of pieces, and with an end of its own.
    let content: BTreeMap<String, Vec<u8>> = [(1, 1), (2, 4096), (3, 3 * (1 << 20) + 77), (4, 1 << 20)]
        .map(|(n, bytes)| (name(n), noise(n.into(), bytes)))
        .into();
    for (name, bytes) in &content {
        folder.put(name, bytes).map_err(|error| format!("put {name}: {error}"))?;
    }
    folder.sync().map_err(|error| error.to_string())?;
    let listed = folder.list().map_err(|error| error.to_string())?;
    let expected: BTreeMap<String, u64> =
        content.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect();
    must!(listed == expected, "listed {listed:?}");
    for (name, bytes) in &content {
        must!(whole(folder, name, bytes.len())? == *bytes, "{name} is not what was put");
    }
    ranges(folder, &content)?;
    absent(folder, &content)?;
    // Names that are taken.
    for (name, bytes) in &content {
        fails(folder.put(name, b"another content"), StorageErrorKind::Exists)?;
        must!(whole(folder, name, bytes.len())? == *bytes, "{name} was overwritten");
    }
    for name in content.keys() {
        folder.delete(name).map_err(|error| format!("delete {name}: {error}"))?;
        fails(folder.read(name, 0, &mut [0; 1]), StorageErrorKind::Missing)?;
        folder.delete(name).map_err(|error| format!("delete {name} again: {error}"))?;
    }
    folder.sync().map_err(|error| error.to_string())?;
    let left = folder.list().map_err(|error| error.to_string())?;
    must!(left.is_empty(), "left: {left:?}");
    Ok(())
}

/// Reads of parts, twice: what a cache makes of the first must not change the second.
fn ranges(folder: &dyn PackFolder, content: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    for _ in 0..2 {
        for (name, bytes) in content {
            for (from, length) in
                [(0, 1), (1000, 300), ((1 << 20) - 5, 10), ((2 << 20) - 1, 70_000), (0, 65_536)]
            {
                let Some(expected) = bytes.get(from..from + length) else { continue };
                let mut out = vec![0x55; length];
                folder.read(name, from as u64, &mut out).map_err(|error| format!("read {name}: {error}"))?;
                must!(out == expected, "{name} from {from}, {length} bytes");
            }
        }
    }
    Ok(())
}

/// What is not there.
fn absent(folder: &dyn PackFolder, content: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    fails(folder.read(&name(99), 0, &mut [0; 10]), StorageErrorKind::Missing)?;
    for (name, bytes) in content {
        let end = bytes.len() as u64;
        for offset in [end, end - 1, end + 5000] {
            fails(folder.read(name, offset, &mut [0; 2]), StorageErrorKind::Short)?;
        }
    }
    Ok(())
}

/// Of several puts of one name at once, one wins, and what is there is its own. Not part of the contract: the store puts
/// each name once, one pack at a time. The owner of a bucket relies on it.
pub(crate) fn race(folder: &dyn PackFolder) -> Result<(), String> {
    let taken = name(50);
    let contents: Vec<Vec<u8>> = (0..4).map(|seed| noise(1000 + seed, 200_000)).collect();
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            contents.iter().map(|bytes| scope.spawn(|| folder.put(&taken, bytes))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winners: Vec<usize> =
        done.iter().enumerate().filter(|(_, done)| done.is_ok()).map(|(at, _)| at).collect();
    must!(winners.len() == 1, "{} puts of one name succeeded", winners.len());
    let winner = winners.first().and_then(|at| contents.get(*at)).ok_or("no winner")?;
    must!(whole(folder, &taken, winner.len())? == *winner, "the name has another's content");
    folder.delete(&taken).map_err(|error| error.to_string())
}
