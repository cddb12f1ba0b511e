//! The file that is sent: read once, in order, hashed as it is read.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tidemark_proto::limits::OBJECT_PIECE_BYTES;
use tidemark_proto::pieces::is_zero;
use tidemark_proto::v1::put_object_request::Body;
use tidemark_proto::v1::{PutObjectEnd, PutObjectRequest};
use tokio::sync::mpsc;

/// A file to send.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    identity: [u8; 32],
    hasher: blake3::Hasher,
    /// Bytes that the hasher has seen.
    hashed: u64,
}

/// What makes this file another one: a changed file is not continued.
fn identity(path: &Path, metadata: &Metadata, size_bytes: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_os_str().as_bytes());
    for number in [metadata.dev(), metadata.ino(), size_bytes] {
        hasher.update(&number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec()] {
        hasher.update(&number.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let metadata = file.metadata().with_context(|| format!("look at {}", path.display()))?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            bail!("{} is neither a file nor a block device: name one of these", path.display());
        }
        // A device has a size only for who seeks.
        let size_bytes =
            file.seek(SeekFrom::End(0)).with_context(|| format!("measure {}", path.display()))?;
        let full = std::fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
        let identity = identity(&full, &metadata, size_bytes);
        Ok(Self { path: full, file, size_bytes, identity, hasher: blake3::Hasher::new(), hashed: 0 })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn identity(&self) -> &[u8; 32] {
        &self.identity
    }

    /// Sends everything from `begin_at` on, and the end; stops early when nobody takes it. Blocks.
    pub(super) fn feed(&mut self, begin_at: u64, to: &mpsc::Sender<PutObjectRequest>) -> Result<()> {
        let send = |body| to.blocking_send(PutObjectRequest { body: Some(body) }).is_ok();
        let mut at = self.hashed.min(begin_at);
        self.file.seek(SeekFrom::Start(at)).context("read the file")?;
        let mut zeroes = 0_u64;
        while at < self.size_bytes {
            // A piece never lies across the place to begin at.
            let limit = if at < begin_at { begin_at } else { self.size_bytes };
            let bytes = usize::try_from(limit - at).unwrap_or(usize::MAX).min(OBJECT_PIECE_BYTES);
            let mut piece = vec![0; bytes];
            self.file.read_exact(&mut piece).with_context(|| format!("read {}", self.path.display()))?;
            self.hash(at, &piece);
            let sent = at >= begin_at;
            at += u64::try_from(bytes).unwrap_or(0);
            if !sent {
                continue;
            }
            if is_zero(&piece) {
                zeroes += u64::try_from(bytes).unwrap_or(0);
                if zeroes >= ZEROES_BYTES && !send(Body::ZeroBytes(std::mem::take(&mut zeroes))) {
                    return Ok(());
                }
                continue;
            }
            if (zeroes > 0 && !send(Body::ZeroBytes(std::mem::take(&mut zeroes))))
                || !send(Body::Data(piece.into()))
            {
                return Ok(());
            }
        }
        if zeroes > 0 && !send(Body::ZeroBytes(zeroes)) {
            return Ok(());
        }
        self.unchanged()?;
        send(Body::End(PutObjectEnd { hash: self.hasher.finalize().as_bytes().to_vec().into() }));
        Ok(())
    }

    /// Hashes what was not hashed by an earlier try.
    fn hash(&mut self, at: u64, piece: &[u8]) {
        let known = usize::try_from(self.hashed.saturating_sub(at)).unwrap_or(usize::MAX);
        if let Some(new) = piece.get(known..) {
            self.hasher.update(new);
            self.hashed += u64::try_from(new.len()).unwrap_or(0);
        }
    }

    fn unchanged(&self) -> Result<()> {
        let metadata = self.file.metadata().with_context(|| format!("look at {}", self.path.display()))?;
        let device = metadata.file_type().is_block_device();
        if !device && identity(&self.path, &metadata, metadata.len()) != self.identity {
            bail!("{} changed while it was read: run the command again", self.path.display());
        }
        Ok(())
    }
}

/// Zeroes sent as one message at most.
const ZEROES_BYTES: u64 = 256 << 20;
