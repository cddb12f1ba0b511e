//! Reading merged nodes, and what they were merged from when they are damaged.

use std::sync::{Arc, MutexGuard, PoisonError};

use tidemark_proto::ids::Lsn;

use super::cache::{Cached, Part};
use super::files::FileKey;
use super::source::{Broken, Source};
use super::window::Window;
use crate::error::ReadError;
use crate::journal::Node;
use crate::manifest::NodeRecord;
use crate::node::{
    Extent, NodeDirectory, NodeError, Span, TRAILER_BYTES, decode_page, decode_trailer, parse_directory,
};
use crate::recovery::Damage;

impl Source {
    pub(super) fn broken(&self) -> MutexGuard<'_, Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that were found damaged since the last call.
    pub(crate) fn broken_nodes(&self) -> impl Iterator<Item = Span> + use<> {
        std::mem::take(&mut self.broken().news).into_iter()
    }

    /// A node is not as written: from here on it is not read, until it is forgotten.
    pub(crate) fn set_broken(&self, span: Span) {
        let mut broken = self.broken();
        if broken.nodes.insert(span) {
            broken.news.insert(span);
        }
    }

    /// What a node says; when it cannot be read, what its children say. A node that fails half-way has offered nothing
    /// that they do not offer.
    pub(super) fn lookup_node(&self, node: &Node, lsn: Lsn, window: &mut Window) -> Result<(), ReadError> {
        let span = node.record.span;
        let broken = self.broken().nodes.contains(&span);
        if !broken && self.offer_node(&node.record, window).is_ok() {
            return Ok(());
        }
        self.set_broken(span);
        node.children.iter().rev().try_for_each(|child| self.lookup(child, lsn, window))
    }

    fn offer_node(&self, node: &NodeRecord, window: &mut Window) -> Result<(), ReadError> {
        let directory = self.node_directory(node)?;
        let from = (window.disk(), window.from());
        let to = (window.disk(), window.to());
        let first = directory.pages.partition_point(|page| (page.disk, page.start) <= from).saturating_sub(1);
        for (number, page) in directory.pages.iter().enumerate().skip(first) {
            if (page.disk, page.start) >= to {
                break;
            }
            if page.disk < window.disk() {
                continue;
            }
            let extents = self.extents(node, &directory, number)?;
            let begin = extents.partition_point(|extent| extent.end <= from.1);
            for extent in extents.iter().skip(begin).take_while(|extent| extent.start < to.1) {
                window.offer(extent);
            }
        }
        Ok(())
    }

    fn node_directory(&self, node: &NodeRecord) -> Result<Arc<NodeDirectory>, ReadError> {
        let key = FileKey::Node(node.span);
        let pick = |cached| if let Cached::Node(found) = cached { Some(found) } else { None };
        let found = self.cached(key, Part::Directory, pick, || {
            let at = node.bytes.saturating_sub(TRAILER_BYTES as u64);
            let trailer = self.bytes(key, at, TRAILER_BYTES)?;
            let trailer = decode_trailer(&trailer, node.bytes).map_err(|error| damaged(node.span, &error))?;
            if trailer.hash != node.hash || trailer.span != node.span {
                return Err(other(node.span));
            }
            let bytes = self.bytes(key, trailer.directory_offset(), trailer.directory_bytes())?;
            let directory =
                parse_directory(&trailer, &bytes, &self.key).map_err(|error| damaged(node.span, &error))?;
            Ok(Cached::Node(Arc::new(directory)))
        })?;
        found.ok_or_else(|| other(node.span))
    }

    fn extents(
        &self,
        node: &NodeRecord,
        directory: &NodeDirectory,
        number: usize,
    ) -> Result<Arc<Vec<Extent>>, ReadError> {
        let key = FileKey::Node(node.span);
        let pick = |cached| if let Cached::Extents(found) = cached { Some(found) } else { None };
        let found = self.cached(key, Part::Entries(number), pick, || {
            let page = directory.pages.get(number).ok_or_else(|| other(node.span))?;
            let bytes = self.bytes(key, page.offset, page.bytes)?;
            let extents = decode_page(page, node.span, &bytes, &self.key);
            Ok(Cached::Extents(Arc::new(extents.map_err(|error| damaged(node.span, &error))?)))
        })?;
        found.ok_or_else(|| other(node.span))
    }
}

fn damaged(span: Span, error: &NodeError) -> ReadError {
    ReadError::Damaged(Damage {
        file: span.name(),
        offset: error.offset,
        bytes: error.bytes,
        problem: error.problem.to_owned(),
    })
}

fn other(span: Span) -> ReadError {
    damaged(span, &NodeError { offset: 0, bytes: 0, problem: "it is not the node that the manifest names" })
}
