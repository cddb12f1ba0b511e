//! Tree nodes, to bytes and back. Takes anything, panics at nothing.

use std::collections::BTreeMap;

use crate::store::ChunkId;
use crate::wire::{Put, Reader};

const MAGIC: [u8; 4] = *b"TMTN";

/// Children of a node at most.
pub(crate) const FAN_OUT: u64 = 256;

pub(crate) type Children = BTreeMap<u8, ChunkId>;

pub(crate) fn encode(height: u8, children: &Children) -> Vec<u8> {
    let mut out = Vec::with_capacity(40 + 32 * children.len());
    out.put(&MAGIC);
    out.u8(1);
    out.u8(height);
    out.u16(0);
    let mut bitmap = [0_u8; 32];
    for child in children.keys() {
        if let Some(byte) = bitmap.get_mut(usize::from(child / 8)) {
            *byte |= 1 << (child % 8);
        }
    }
    out.put(&bitmap);
    for id in children.values() {
        out.put(&id.0);
    }
    out
}

/// Decodes a tree node: its height and its children by number. `None`: it is none.
#[must_use]
pub fn decode_node(bytes: &[u8]) -> Option<(u8, BTreeMap<u8, ChunkId>)> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC || reader.u8()? != 1 {
        return None;
    }
    let height = reader.u8()?;
    reader.u16().filter(|reserved| *reserved == 0)?;
    let bitmap: [u8; 32] = reader.array()?;
    let mut children = Children::new();
    for child in 0..=u8::MAX {
        if bitmap.get(usize::from(child / 8))? & (1 << (child % 8)) != 0 {
            children.insert(child, ChunkId(reader.array()?));
        }
    }
    reader.end()?;
    (!children.is_empty()).then_some((height, children))
}
