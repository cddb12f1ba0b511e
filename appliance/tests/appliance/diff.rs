//! What differs between two points, over a real stream, and across a gap.

use crate::site::Site;
use tidemark_proto::v1::history_client::HistoryClient;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{DiffHead, DiffRequest, GapCause, When};
use tonic::{Code, Status};

const DISK_BYTES: u64 = 8 << 20;

async fn diff(
    site: &Site,
    vm: &str,
    from: u64,
    other: &str,
    to: u64,
) -> Result<(DiffHead, Vec<(u64, u64)>), Status> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    let at = |lsn| Some(When { point: Some(Point::Lsn(lsn)) });
    let request =
        DiffRequest { vm: vm.into(), from: at(from), to: at(to), other: other.into(), disk: String::new() };
    let mut replies = HistoryClient::new(channel).diff(request).await?.into_inner();
    let head = replies.message().await?.unwrap().head.unwrap();
    let mut ranges = Vec::new();
    while let Some(reply) = replies.message().await? {
        assert_eq!(reply.disk, "disk-1");
        ranges.extend(reply.ranges.iter().map(|range| (range.offset, range.bytes)));
    }
    Ok((head, ranges))
}

#[tokio::test]
async fn differences_are_those_of_the_content_and_pass_over_a_gap() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let first = guest.write(8, vec![1; 1024]);
    let from = guest.lsn;
    let beat = guest.heartbeat();
    for frame in [first, beat] {
        stream.frame(frame).await;
    }
    // The same again, and something new; then a gap with a write in it.
    let again = guest.write(8, vec![1; 1024]);
    let new = guest.write(100, vec![2; 512]);
    let mut frames = vec![again, new];
    let before_gap = guest.lsn;
    let inside = guest.line_start(GapCause::RingFull);
    let in_gap = guest.lsn;
    let lost = guest.write(200, vec![3; 512]);
    let (end, beat) = (guest.line_end(), guest.heartbeat());
    frames.extend([inside, lost, end, beat]);
    let to = guest.lsn;
    for frame in frames {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let (head, ranges) = diff(&site, "a", from, "", to).await.unwrap();
    assert_eq!(ranges, [(100 * 512, 512), (200 * 512, 512)]);
    assert_eq!((head.from.unwrap().lsn, head.to.unwrap().lsn), (from, to));
    assert_eq!((head.disks[0].from_bytes, head.disks[0].to_bytes), (DISK_BYTES, DISK_BYTES));
    assert_eq!(diff(&site, "a", from, "", before_gap).await.unwrap().1, [(100 * 512, 512)]);
    assert_eq!(diff(&site, "a", to, "", to).await.unwrap().1, []);
    let refused = diff(&site, "a", from, "", in_gap).await.unwrap_err();
    assert!(refused.message().contains("ring full"), "{refused}");
    let turned = diff(&site, "a", to, "", from).await.unwrap_err();
    assert_eq!(turned.code(), Code::InvalidArgument);
    assert_eq!(diff(&site, "nobody", from, "", to).await.unwrap_err().code(), Code::NotFound);

    // Another VM, by content.
    let mut other = site.guest("b", DISK_BYTES).await;
    let mut stream = other.connect(&site).await.unwrap();
    other.protect(&mut stream).await;
    let (write, beat) = (other.write(8, vec![1; 1024]), other.heartbeat());
    for frame in [write, beat] {
        stream.frame(frame).await;
    }
    stream.acked(other.seq).await;
    let (_, ranges) = diff(&site, "a", to, "b", other.lsn).await.unwrap();
    assert_eq!(ranges, [(100 * 512, 512), (200 * 512, 512)]);
    assert_eq!(diff(&site, "a", from, "b", other.lsn).await.unwrap().1, []);
}
