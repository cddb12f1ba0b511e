//! `tidemark diff`.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tidemark_proto::v1::{DiffDisk, DiffHead, DiffPoint, DiffRange, DiffRequest};
use tonic::Streaming;

use crate::appliance::{HistoryClient, refused};
use crate::cli::DiffArguments;
use crate::output::{self, Table};
use crate::{moment, size};

/// Ranges of a disk shown without `--all`.
const RANGES_SHOWN: usize = 20;

pub(super) async fn run(mut client: HistoryClient, arguments: &DiffArguments, json: bool) -> Result<()> {
    let request = DiffRequest {
        vm: arguments.vm.clone(),
        from: Some(arguments.from.to_proto()),
        to: Some(arguments.to.to_proto()),
        other: arguments.other.clone().unwrap_or_default(),
        disk: arguments.disk.map(|disk| disk.to_string()).unwrap_or_default(),
    };
    let mut replies = client.diff(request).await.map_err(|status| refused(&status))?.into_inner();
    let first = replies.message().await.map_err(|status| refused(&status))?;
    let head = first.and_then(|reply| reply.head).context("the appliance sent no answer: try again")?;
    if json { as_json(&head, &mut replies).await } else { as_text(&head, &mut replies, arguments.all).await }
}

/// What was found of one disk.
#[derive(Debug, Default)]
struct Total {
    ranges: u64,
    bytes: u64,
}

impl Total {
    fn add(&mut self, range: &DiffRange) {
        self.ranges += 1;
        self.bytes = self.bytes.saturating_add(range.bytes);
    }
}

/// Calls `each` with every range, its disk's place in the head; returns the totals by place.
async fn follow(
    head: &DiffHead,
    replies: &mut Streaming<tidemark_proto::v1::DiffReply>,
    mut each: impl FnMut(usize, u64, &DiffRange) -> Result<()>,
) -> Result<Vec<Total>> {
    let mut totals: Vec<Total> = head.disks.iter().map(|_| Total::default()).collect();
    while let Some(reply) = replies.message().await.map_err(|status| refused(&status))? {
        let place = head.disks.iter().position(|disk| disk.id == reply.disk);
        let place = place.context("the appliance sent a disk that it did not announce")?;
        let Some(total) = totals.get_mut(place) else { continue };
        for range in &reply.ranges {
            each(place, total.ranges, range)?;
            total.add(range);
        }
    }
    Ok(totals)
}

async fn as_text(
    head: &DiffHead,
    replies: &mut Streaming<tidemark_proto::v1::DiffReply>,
    all: bool,
) -> Result<()> {
    let mut kept: Vec<Vec<DiffRange>> = vec![Vec::new(); head.disks.len()];
    let totals = follow(head, replies, |place, number, range| {
        if all {
            let disk = head.disks.get(place).map_or("", |disk| &disk.id);
            return output::line(&format!("{disk}  {}  {}", range.offset, range.bytes));
        }
        if let Some(kept) = kept.get_mut(place)
            && number < RANGES_SHOWN as u64
        {
            kept.push(*range);
        }
        Ok(())
    })
    .await?;
    output::line(&format!("from {}\nto   {}", point(head.from.as_ref()), point(head.to.as_ref())))?;
    let mut table = Table::new(["DISK", "PATH", "SIZE", "CHANGED", "RANGES"]);
    for (disk, total) in head.disks.iter().zip(&totals) {
        let changed = if total.bytes == 0 { "nothing".to_owned() } else { size::show(total.bytes) };
        table.row([disk.id.clone(), disk.path.clone(), sizes(disk), changed, total.ranges.to_string()]);
    }
    table.print()?;
    for ((disk, total), kept) in head.disks.iter().zip(&totals).zip(&kept) {
        if kept.is_empty() {
            continue;
        }
        let mut table = Table::new([disk.id.as_str(), "OFFSET", "BYTES"]);
        for range in kept {
            table.row([String::new(), range.offset.to_string(), range.bytes.to_string()]);
        }
        output::line("")?;
        table.print()?;
        let left = total.ranges.saturating_sub(kept.len() as u64);
        if left > 0 {
            output::line(&format!("and {left} more: --all prints every range, --json for programs"))?;
        }
    }
    Ok(())
}

fn point(point: Option<&DiffPoint>) -> String {
    let point = point.cloned().unwrap_or_default();
    format!("{} as of {} (lsn:{})", point.vm, moment::local(point.time_us), point.lsn)
}

fn sizes(disk: &DiffDisk) -> String {
    match disk.from_bytes {
        0 => format!("{} (new)", size::show(disk.to_bytes)),
        bytes if bytes == disk.to_bytes => size::show(bytes),
        bytes => format!("{} (was {})", size::show(disk.to_bytes), size::show(bytes)),
    }
}

/// Written range by range: there may be more of them than fit in memory.
async fn as_json(head: &DiffHead, replies: &mut Streaming<tidemark_proto::v1::DiffReply>) -> Result<()> {
    let point = |point: &Option<DiffPoint>| {
        let point = point.clone().unwrap_or_default();
        json!({ "vm": point.vm, "lsn": point.lsn, "time": moment::json(point.time_us) })
    };
    output::line(&format!(
        "{{\n\"from\": {},\n\"to\": {},\n\"ranges\": [",
        point(&head.from),
        point(&head.to)
    ))?;
    let mut first = true;
    let totals = follow(head, replies, |place, _, range| {
        let disk = head.disks.get(place).map_or("", |disk| &disk.id);
        let range = json!({ "disk": disk, "offset": range.offset, "bytes": range.bytes });
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        output::line(&format!("{comma}{range}"))
    })
    .await?;
    let disks: Vec<Value> = head
        .disks
        .iter()
        .zip(&totals)
        .map(|(disk, total)| {
            json!({
                "disk": disk.id, "path": disk.path, "from_size_bytes": disk.from_bytes,
                "to_size_bytes": disk.to_bytes, "changed_bytes": total.bytes, "changed_ranges": total.ranges,
            })
        })
        .collect();
    output::line(&format!("],\n\"disks\": {}\n}}", Value::Array(disks)))
}
