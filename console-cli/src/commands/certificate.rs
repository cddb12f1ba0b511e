//! Recovery certificates: asked for, written, and checked offline.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::json;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{CertifyRequest, RecoveryCertificate, ViewDisk};

use super::certificate_file::{self, FORMAT, Shown, ShownHead, ShownImage, ShownSegment};
use super::proof::{hex, read_key};
use crate::appliance::{AttestClient, refused};
use crate::view::RemoteView;
use crate::{moment, output, progress};

/// Bytes of a certificate's file at most: one of some 64 disks with all their segments. A longer one is refused.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// Bytes of a file that are hashed at once.
const PIECE_BYTES: usize = 1 << 20;

impl Shown {
    fn of(message: RecoveryCertificate) -> Self {
        let head = message.head.unwrap_or_default();
        let segments = message.segments.into_iter();
        Self {
            format: FORMAT.to_owned(),
            vm: message.vm,
            vm_id: message.vm_id,
            disk: message.disk,
            lsn: message.lsn,
            time: moment::json(message.time_us),
            time_us: message.time_us,
            issued: moment::json(message.issued_us),
            issued_us: message.issued_us,
            size_bytes: message.size_bytes,
            blake3: hex(&message.content),
            head: ShownHead {
                segment: head.segment,
                frames: head.frames,
                seq: head.seq,
                lsn: head.lsn,
                time_us: head.time_us,
                hash: hex(&head.hash),
            },
            segments: segments
                .map(|one| ShownSegment { segment: one.segment, hash: hex(&one.hash) })
                .collect(),
            image: message.image.map(|image| ShownImage { lsn: image.lsn, root: hex(&image.root) }),
            public_key: message.public_key,
            signature: hex(&message.signature),
        }
    }
}

/// Has the appliance certify a disk, and checks that what was recovered is what it read.
pub(super) async fn of(
    client: &AttestClient,
    view: &RemoteView,
    disk: &ViewDisk,
    recovered: &Path,
) -> Result<Shown> {
    let request = CertifyRequest { vm: view.vm().to_owned(), lsn: view.lsn(), disk: disk.id.clone() };
    let bar = progress::bytes(disk.size_bytes, &format!("certify {}", disk.id));
    let mut replies = client.clone().certify(request).await.map_err(|status| refused(&status))?.into_inner();
    let mut certificate = None;
    while let Some(reply) = replies.message().await.map_err(|status| refused(&status))? {
        bar.set_position(reply.done_bytes);
        certificate = reply.certificate;
    }
    bar.finish_and_clear();
    let shown = Shown::of(certificate.context("the appliance sent no certificate: try again")?);
    let (path, size_bytes) = (recovered.to_owned(), disk.size_bytes);
    let found =
        tokio::task::spawn_blocking(move || hash(&path, size_bytes)).await.context("hash a file")??;
    if hex(&found) != shown.blake3 {
        bail!(
            "{} is not what the appliance read (BLAKE3 {} and {}): recover it again to another disk",
            recovered.display(),
            hex(&found),
            shown.blake3
        );
    }
    Ok(shown)
}

/// Writes the certificates of all disks.
pub(super) fn write(path: &Path, certificates: &[Shown]) -> Result<()> {
    let text = serde_json::to_string_pretty(certificates).context("encode the certificate")?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// BLAKE3 of the first `size_bytes` of a file or device.
fn hash(path: &Path, size_bytes: u64) -> Result<[u8; 32]> {
    let failed = || format!("read {}", path.display());
    let mut file = File::open(path).with_context(failed)?.take(size_bytes);
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut read = 0_u64;
    loop {
        let bytes = file.read(&mut piece).with_context(failed)?;
        if bytes == 0 {
            break;
        }
        hasher.update(piece.get(..bytes).unwrap_or_default());
        read += bytes as u64;
    }
    if read != size_bytes {
        bail!("{} has {read} bytes, the disk has {size_bytes}", path.display());
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Checks a certificate's file, and a recovered file against it.
pub(super) fn check(
    path: &Path,
    public_key: &Path,
    file: Option<&Path>,
    disk: Option<DiskId>,
    json: bool,
) -> Result<()> {
    let key = read_key(public_key)?;
    let mut certificates = read(path)?;
    for shown in &certificates {
        let signed = shown.signed();
        if signed.is_none_or(|(certificate, signature)| !certificate.is_signed(&key, &signature)) {
            bail!(
                "{}: the certificate of {} is not signed by {key}: it was changed, or is another appliance's",
                path.display(),
                shown.disk
            );
        }
    }
    if let Some(file) = file {
        let of_disk = |shown: &&Shown| disk.is_none_or(|disk| disk.to_string() == shown.disk);
        let mut wanted = certificates.iter().filter(of_disk);
        let shown = match (wanted.next(), wanted.next()) {
            (Some(shown), None) => shown,
            (None, _) => bail!("{} has no certificate of that disk", path.display()),
            _ => bail!("{} has certificates of several disks: say which with --disk", path.display()),
        };
        let about = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?;
        if about.is_file() && about.len() != shown.size_bytes {
            bail!("{} has {} bytes, the certified disk {}", file.display(), about.len(), shown.size_bytes);
        }
        if hex(&hash(file, shown.size_bytes)?) != shown.blake3 {
            bail!("{} is not what was certified of {}", file.display(), shown.disk);
        }
    }
    if json {
        // Not as the file words them: only what is signed is shown.
        for shown in &mut certificates {
            shown.time = moment::json(shown.time_us);
            shown.issued = moment::json(shown.issued_us);
            shown.public_key = key.to_string();
        }
        return output::json(&json!({ "certificates": certificates, "file_checked": file.is_some() }));
    }
    for shown in &certificates {
        output::line(&format!(
            "{} of {} as of {} (lsn:{}), {} bytes: signed by {key}.",
            shown.disk,
            shown.vm,
            moment::local(shown.time_us),
            shown.lsn,
            shown.size_bytes
        ))?;
    }
    match file {
        Some(file) => output::line(&format!("{} is what was certified.", file.display())),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<Vec<Shown>> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    file.take(FILE_MAX_BYTES)
        .read_to_string(&mut text)
        .with_context(|| format!("read {}", path.display()))?;
    let certificates = certificate_file::parse(&text)
        .map_err(|error| anyhow!("{} is no recovery certificate: {error}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use tidemark_journal::attest::{Signer, SigningKey};

    use super::*;

    fn written(dir: &Path, content: &[u8]) -> Shown {
        let key = SigningKey::from_seed(&[5; 32]).unwrap();
        std::fs::write(dir.join("signing.pub"), format!("{}\n", key.public_key())).unwrap();
        std::fs::write(dir.join("disk-1.raw"), content).unwrap();
        let message = RecoveryCertificate {
            vm: "web-1".to_owned(),
            vm_id: "6d0f6f0c-1f3f-4d63-9c6e-3e0a4c3f5b11".to_owned(),
            disk: "disk-1".to_owned(),
            lsn: 7,
            size_bytes: content.len() as u64,
            content: blake3::hash(content).as_bytes().to_vec().into(),
            head: Some(tidemark_proto::v1::CertifiedHead {
                frames: u64::MAX,
                hash: vec![3; 32].into(),
                ..Default::default()
            }),
            public_key: key.public_key().to_string(),
            ..RecoveryCertificate::default()
        };
        let mut shown = Shown::of(message);
        shown.signature = hex(&shown.certificate().unwrap().sign(&key).unwrap());
        write(&dir.join("certificate.json"), std::slice::from_ref(&shown)).unwrap();
        shown
    }

    #[test]
    fn a_certificate_holds_for_its_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let shown = written(dir.path(), b"the content of a small disk");
        let (certificate, key) = (dir.path().join("certificate.json"), dir.path().join("signing.pub"));
        let file = dir.path().join("disk-1.raw");
        let check = || check(&certificate, &key, Some(&file), None, true).map_err(|error| error.to_string());
        assert_eq!(check(), Ok(()));
        std::fs::write(&file, b"the content of a Small disk").unwrap();
        assert!(check().unwrap_err().contains("is not what was certified"));
        std::fs::write(&file, b"the content").unwrap();
        assert!(check().unwrap_err().contains("has 11 bytes"));
        // A forged certificate over the changed file.
        std::fs::write(&file, b"the content of a Small disk").unwrap();
        let forged = Shown { blake3: hex(&hash(&file, shown.size_bytes).unwrap()), ..shown.clone() };
        write(&certificate, &[forged]).unwrap();
        assert!(check().unwrap_err().contains("is not signed by"));
        write(&certificate, &[]).unwrap();
        assert!(check().unwrap_err().contains("holds no certificate"));
        std::fs::write(&certificate, "{}").unwrap();
        assert!(check().unwrap_err().contains("is no recovery certificate"));
    }
}
