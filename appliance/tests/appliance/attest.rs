//! What an appliance signs: its journals prove themselves offline, and certificates say what was recovered.

use crate::site::Site;
use tidemark_journal::attest::{Certificate, Head, Provenance, PublicKey, prove};
use tidemark_journal::storage::OsStorage;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::v1::attest_client::AttestClient;
use tidemark_proto::v1::{CertifyRequest, RecoveryCertificate};
use tonic::{Code, Status};

const DISK_BYTES: u64 = 8 << 20;

async fn certify(site: &Site, lsn: u64, disk: &str) -> Result<RecoveryCertificate, Status> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    let request = CertifyRequest { vm: "a".into(), lsn, disk: disk.into() };
    let mut replies = AttestClient::new(channel).certify(request).await?.into_inner();
    let (mut done, mut certificate) = (0, None);
    while let Some(reply) = replies.message().await? {
        assert!(reply.done_bytes >= done);
        done = reply.done_bytes;
        certificate = reply.certificate;
    }
    Ok(certificate.unwrap())
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap()
}

/// As an auditor puts it together from the fields.
fn put_together(message: &RecoveryCertificate) -> Certificate {
    let head = message.head.clone().unwrap();
    let segments = message.segments.iter().map(|one| (one.segment, hash(&one.hash)));
    Certificate {
        vm: message.vm_id.parse().unwrap(),
        vm_name: message.vm.clone(),
        disk: message.disk.parse().unwrap(),
        lsn: Lsn(message.lsn),
        time_us: message.time_us,
        issued_us: message.issued_us,
        size_bytes: message.size_bytes,
        content: hash(&message.content),
        provenance: Provenance {
            head: Head {
                segment: head.segment,
                frames: head.frames,
                seq: head.seq,
                lsn: Lsn(head.lsn),
                time_us: head.time_us,
                hash: hash(&head.hash),
            },
            segments: segments.collect(),
            image: message.image.as_ref().map(|image| (Lsn(image.lsn), hash(&image.root))),
        },
    }
}

#[tokio::test]
async fn a_recovery_is_certified_and_the_journal_proves_itself_from_its_files() {
    let mut site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let first = guest.write(8, vec![1; 1024]);
    let at = guest.lsn;
    let marker = guest.marker("before the upgrade", "5d1a8a0e-6a51-4c5e-9d7c-2f5f1b8f4a10", 0);
    let marked = guest.lsn;
    let second = guest.write(100, vec![2; 512]);
    let beat = guest.heartbeat();
    for frame in [first, marker, second, beat] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let certificate = certify(&site, at, "disk-1").await.unwrap();
    let key: PublicKey =
        std::fs::read_to_string(site.settings.data.join("signing/signing.pub")).unwrap().parse().unwrap();
    assert_eq!(certificate.public_key, key.to_string());
    let mut disk = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    disk[8 * 512..][..1024].fill(1);
    assert_eq!(certificate.content, *blake3::hash(&disk).as_bytes().as_slice());
    let mut claimed = put_together(&certificate);
    assert!(claimed.is_signed(&key, &certificate.signature));
    assert!(!claimed.provenance.segments.is_empty() && claimed.provenance.head.lsn >= Lsn(at));
    claimed.content = *blake3::hash(&[]).as_bytes();
    assert!(!claimed.is_signed(&key, &certificate.signature));
    let unknown = certify(&site, at, "disk-7").await.unwrap_err();
    assert!(unknown.code() == Code::NotFound && unknown.message().contains("has no disk-7"), "{unknown}");
    assert_eq!(certify(&site, at, "").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(certify(&site, u64::MAX, "disk-1").await.unwrap_err().code(), Code::FailedPrecondition);

    let vm = put_together(&certificate).vm;
    drop(stream);
    site.stop().await;
    let journal = site.settings.data.join("vms").join(vm.to_string()).join("journal");
    let (report, proof) = prove(&OsStorage::open(&journal).unwrap(), &key).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((proof.broken.clone(), proof.bookmarks.as_slice()), (None, [Lsn(marked)].as_slice()));
    assert_eq!(proof.proven.unwrap().lsn, Lsn(guest.lsn));
    assert_eq!(put_together(&certificate).disk, DiskId(1));
    // It goes on with the same key.
    site.restart().await;
    assert_eq!(certify(&site, at, "disk-1").await.unwrap().public_key, key.to_string());
}
