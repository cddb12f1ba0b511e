//! Clones through a real appliance: made from a stream's points, written by real NBD clients, killed, removed.
//! A client that is not installed is skipped by name.

use std::process::Command;

use crate::site::{Guest, Site};
use tidemark_proto::v1::clones_client::ClonesClient;
use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, CloneInfo, CloneName, CreateCloneRequest, Empty,
    ExportCloneRequest, ExportInfo, FlushCloneRequest, ListPointsRequest, OpenCloneRequest, PoliciesReply,
    RemoveVmRequest, RunRetentionRequest, StartExportRequest, StopExportRequest, When, WriteCloneRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

const DISK_BYTES: u64 = 8 << 20;

async fn clones(site: &Site) -> ClonesClient<Channel> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    ClonesClient::new(channel).max_decoding_message_size(64 << 20)
}

fn lsn(lsn: u64) -> Option<When> {
    Some(When { point: Some(Point::Lsn(lsn)) })
}

fn latest() -> Option<When> {
    Some(When { point: Some(Point::Latest(true)) })
}

async fn create(site: &Site, vm: &str, at: Option<When>, name: &str) -> Result<CloneInfo, Status> {
    let request = CreateCloneRequest { vm: vm.into(), at, name: name.into(), ..Default::default() };
    Ok(clones(site).await.create_clone(request).await?.into_inner())
}

async fn list(site: &Site) -> Vec<CloneInfo> {
    clones(site).await.list_clones(Empty {}).await.unwrap().into_inner().clones
}

async fn remove(site: &Site, name: &str) -> Result<(), Status> {
    clones(site).await.remove_clone(CloneName { name: name.into() }).await.map(drop)
}

async fn export(site: &Site, name: &str) -> Result<ExportInfo, Status> {
    let request = ExportCloneRequest { name: name.into(), ..Default::default() };
    Ok(clones(site).await.export_clone(request).await?.into_inner().exports.remove(0))
}

async fn stop(site: &Site, export: &ExportInfo) {
    site.console().await.stop_export(StopExportRequest { id: export.id.clone() }).await.unwrap();
}

fn pins(site: &Site, vm: &str) -> usize {
    let core = site.appliance().core();
    core.fleet.by_name(vm).unwrap().log.journal().unwrap().pins().len()
}

/// A guest whose disk begins with a block of ones, then (a later point) a block of twos; returns both points.
async fn protected(site: &Site, name: &str) -> (Guest, u64, u64) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    let mut stream = guest.connect(site).await.unwrap();
    guest.protect(&mut stream).await;
    let mut points = [0; 2];
    for (byte, point) in (1..).zip(&mut points) {
        let frames = [guest.write(0, vec![byte; 64 << 10]), guest.heartbeat()];
        *point = guest.lsn;
        for frame in frames {
            stream.frame(frame).await;
        }
        stream.acked(guest.seq).await;
    }
    (guest, points[0], points[1])
}

/// Runs a client that must succeed; false when it is not installed.
async fn succeed(program: &str, arguments: &[&str]) -> bool {
    let (program, arguments) =
        (program.to_owned(), arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
    let run = move || match Command::new(&program).args(&arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let said = said + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {said}");
            // qemu-io reports a pattern that differs, and goes on.
            assert!(!said.contains("verification failed"), "{program} {arguments:?}: {said}");
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {program} is not installed");
            false
        }
        Err(error) => panic!("{program}: {error}"),
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_its_point_wherever_a_vm_can_be_named() {
    let site = Site::start().await;
    let (_guest, ones, twos) = protected(&site, "web-1").await;
    let made = create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    assert_eq!((made.parent.as_str(), made.lsn, made.latest_lsn), ("web-1", ones, ones));
    assert_eq!(
        site.content("copy", latest()).await.unwrap(),
        site.content("web-1", lsn(ones)).await.unwrap()
    );
    assert_ne!(
        site.content("copy", latest()).await.unwrap(),
        site.content("web-1", lsn(twos)).await.unwrap()
    );
    // Read-only exports and points work by its name; VMs are listed without it.
    let request = StartExportRequest { vm: "copy".into(), at: latest(), ..Default::default() };
    let exports = site.console().await.start_export(request).await.unwrap().into_inner().exports;
    assert_eq!(exports.len(), 1);
    let refused = remove(&site, "copy").await.unwrap_err();
    assert!(refused.message().contains("exported"), "{refused}");
    stop(&site, &exports[0]).await;
    assert_eq!(site.console().await.status(Empty {}).await.unwrap().into_inner().vms.len(), 1);
    // Names are given once, whatever they are of.
    for taken in ["web-1", "copy"] {
        assert_eq!(create(&site, "web-1", latest(), taken).await.unwrap_err().code(), Code::InvalidArgument);
    }
    for bad in ["", "-x", "a b", "../x"] {
        assert_eq!(create(&site, "web-1", latest(), bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let token = tidemark_proto::v1::CreateTokenRequest { vm_name: "copy".into(), ..Default::default() };
    let refused = site.console().await.create_token(token).await.unwrap_err();
    assert!(refused.message().contains("is a clone"), "{refused}");
    // What has clones stays.
    create(&site, "copy", latest(), "copy-2").await.unwrap();
    let request = RemoveVmRequest { name: "web-1".into() };
    let refused = site.console().await.remove_vm(request).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("'copy'"), "{refused}");
    let refused = remove(&site, "copy").await.unwrap_err();
    assert!(refused.message().contains("'copy-2'"), "{refused}");
    assert_eq!((pins(&site, "web-1"), pins(&site, "copy")), (1, 1));
    remove(&site, "copy-2").await.unwrap();
    assert_eq!((pins(&site, "web-1"), pins(&site, "copy")), (1, 0));
    remove(&site, "copy").await.unwrap();
    assert_eq!(remove(&site, "copy").await.unwrap_err().code(), Code::NotFound);
    assert_eq!((pins(&site, "web-1"), list(&site).await.len()), (0, 0));
    let request = RemoveVmRequest { name: "web-1".into() };
    site.console().await.remove_vm(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nbd_clients_write_into_a_clone_and_each_write_is_a_point() {
    let site = Site::start().await;
    let (_guest, ones, _) = protected(&site, "web-1").await;
    let before = site.content("web-1", latest()).await.unwrap();
    create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    let started = export(&site, "copy").await.unwrap();
    assert!(started.lsn == ones, "{started:?}");
    if succeed("qemu-io", &["--version"]).await {
        let io = |commands: &'static [&'static str]| {
            let mut arguments = vec!["-f", "raw"];
            commands.iter().for_each(|command| arguments.extend(["-c", command]));
            arguments.push(&started.uri);
            arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let run = async |arguments: Vec<String>| {
            succeed("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
        };
        run(io(&["read -P 1 0 64k", "write -P 7 4k 8k", "read -P 7 4k 8k", "read -P 1 0 4k"])).await;
        run(io(&["write -f -P 8 1000 3000", "read -P 8 1000 3000", "read -P 1 0 1000", "flush"])).await;
        run(io(&["write -z 100k 200k", "discard 1M 1M", "read -P 0 1M 1M", "write -P 9 7M 1M"])).await;
        run(io(&["read -P 1 12k 52k", "read -P 0 64k 64k", "read -P 9 7M 1M"])).await;
    }
    // A whole disk in, over several connections, and out again.
    let folder = tempfile::tempdir().unwrap();
    let (source, back) = (folder.path().join("source"), folder.path().join("back"));
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    for (index, word) in (0_u64..).zip(bytes[1 << 20..].chunks_mut(8)) {
        word.copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    std::fs::write(&source, &bytes).unwrap();
    let shown = |path: &std::path::Path| path.display().to_string();
    if succeed("nbdcopy", &["--flush", &shown(&source), &started.uri]).await {
        succeed("nbdcopy", &[&started.uri, &shown(&back)]).await;
        assert!(std::fs::read(&back).unwrap() == bytes);
        assert!(site.content("copy", latest()).await.unwrap() == bytes);
        assert!(
            site.content("copy", lsn(ones)).await.unwrap() == site.content("web-1", lsn(ones)).await.unwrap()
        );
    }
    assert!(site.content("web-1", latest()).await.unwrap() == before, "the parent knows nothing of it");
    let points = ListPointsRequest { vm: "copy".into(), ..Default::default() };
    let windows = site.console().await.list_points(points).await.unwrap().into_inner().windows;
    assert!(windows.len() == 1 && windows[0].from_lsn == ones && windows[0].to_lsn > ones + 8, "{windows:?}");
    // A clone of a middle point of the clone.
    let middle = ones + 1;
    create(&site, "copy", lsn(middle), "copy-2").await.unwrap();
    let expected = site.content("copy", lsn(middle)).await.unwrap();
    assert!(site.content("copy-2", latest()).await.unwrap() == expected);
    stop(&site, &started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_flushed_survives_a_kill_and_clones_are_there_or_not() {
    let mut site = Site::start_process(&[]).await;
    let (_guest, ones, twos) = protected(&site, "web-1").await;
    create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    let mut written = Vec::new();
    for round in 0..4_u8 {
        let mut client = clones(&site).await;
        let request = OpenCloneRequest { name: "copy".into(), disk: String::new() };
        let mut held = client.open_clone(request.clone()).await.unwrap().into_inner();
        let view_id = held.message().await.unwrap().unwrap().view_id;
        let refused = client.open_clone(request).await.unwrap_err();
        assert!(refused.message().contains("mounted writable already"), "{refused}");
        let offset = u64::from(round) << 20;
        let write = |offset, byte| WriteCloneRequest {
            view_id: view_id.clone(),
            disk: "disk-1".into(),
            offset,
            data: vec![byte; 100_000].into(),
            ..Default::default()
        };
        client.write_clone(write(offset + 7, round + 10)).await.unwrap();
        client.flush_clone(FlushCloneRequest { view_id: view_id.clone() }).await.unwrap();
        written.push((offset + 7, round + 10));
        // Not flushed: it may survive or not.
        client.write_clone(write(offset + 500_000, 99)).await.unwrap();
        // In the middle of making and removing others.
        let half = tokio::time::timeout(std::time::Duration::from_millis(3 * u64::from(round)), async {
            create(&site, "web-1", lsn(twos), &format!("half-{round}")).await
        });
        let _ = half.await;
        let name = format!("half-{}", round.saturating_sub(1));
        let _ = tokio::time::timeout(std::time::Duration::from_millis(2), remove(&site, &name)).await;
        site.kill();
        site.spawn(&[]).await;
        let now = site.content("copy", latest()).await.unwrap();
        for (offset, byte) in &written {
            let from = usize::try_from(*offset).unwrap();
            assert!(now[from..from + 100_000].iter().all(|found| found == byte), "{offset}");
        }
        for clone in list(&site).await {
            assert_eq!(clone.problem, "", "{}", clone.name);
            let expected = site.content("web-1", lsn(clone.lsn)).await.unwrap();
            assert!(site.content(&clone.name, lsn(clone.lsn)).await.unwrap() == expected);
        }
    }
    // Every clone has its pin, and no pin is without its clone.
    let clones = list(&site).await.len();
    site.terminate();
    let vms = std::fs::read_dir(site.settings.data.join("vms")).unwrap();
    let vm = vms.flatten().next().unwrap().path().join("journal");
    let storage = std::sync::Arc::new(tidemark_journal::storage::OsStorage::open(vm).unwrap());
    let (journal, _) = tidemark_journal::Journal::open_read_only(storage, Default::default()).unwrap();
    assert_eq!(journal.pins().len(), clones);
    assert_eq!(journal.retention_clock(), 0, "a clone says nothing of the time by which locks end");
    let folders = std::fs::read_dir(site.settings.data.join("clones")).unwrap();
    assert_eq!(folders.count(), clones, "nothing half made is left");
}

async fn remove_vm(site: &Site, name: &str) -> Result<(), Status> {
    site.console().await.remove_vm(RemoveVmRequest { name: name.into() }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_exported_or_has_a_clone_that_is_down_cannot_be_removed() {
    let mut site = Site::start().await;
    let (_guest, ones, _) = protected(&site, "web-1").await;
    let request = StartExportRequest { vm: "web-1".into(), at: latest(), ..Default::default() };
    let exports = site.console().await.start_export(request).await.unwrap().into_inner().exports;
    let refused = remove_vm(&site, "web-1").await.unwrap_err();
    assert!(refused.message().contains("is exported"), "{refused}");
    stop(&site, &exports[0]).await;
    create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    site.stop().await;
    // The clone's journal cannot be opened, so it does not say what it was made from. The pin does.
    let folder = std::fs::read_dir(site.settings.data.join("clones")).unwrap().next().unwrap().unwrap();
    let manifest = folder.path().join("journal/manifest");
    let good = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, b"not a manifest").unwrap();
    site.restart().await;
    assert!(list(&site).await[0].problem.contains("cannot be opened"));
    let alarms = site.console().await.status(Empty {}).await.unwrap().into_inner().alarms;
    assert!(alarms.iter().any(|alarm| alarm.text.contains("the clone is damaged or down")), "{alarms:?}");
    let refused = remove_vm(&site, "web-1").await.unwrap_err();
    assert!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("has clones"),
        "{refused}"
    );
    site.stop().await;
    std::fs::write(&manifest, good).unwrap();
    site.restart().await;
    remove(&site, "copy").await.unwrap();
    remove_vm(&site, "web-1").await.unwrap();
}

/// The manifest of a clone's journal.
fn manifest(site: &Site, name: &str) -> std::path::PathBuf {
    let core = site.appliance().core();
    let id = core.fleet.by_name(name).unwrap().id;
    core.data.clone_folder(id).join("journal/manifest")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_clone_is_down_cannot_be_removed_even_when_it_is_down_itself() {
    let mut site = Site::start().await;
    let (_guest, ones, twos) = protected(&site, "web-1").await;
    create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    create(&site, "web-1", lsn(twos), "other").await.unwrap();
    create(&site, "copy", latest(), "copy-2").await.unwrap();
    let (first, second) = (manifest(&site, "copy"), manifest(&site, "copy-2"));
    let good = [std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap()];
    site.stop().await;
    std::fs::write(&second, b"not a manifest").unwrap();
    site.restart().await;
    let refused = remove(&site, "copy").await.unwrap_err();
    let said = refused.message();
    assert!(refused.code() == Code::FailedPrecondition && said.contains("'copy' has clones"), "{refused}");
    // Both are down, and without a name.
    site.stop().await;
    std::fs::write(&first, b"not a manifest").unwrap();
    site.restart().await;
    let named = |path: &std::path::Path| {
        let id = path.parent().unwrap().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        format!("clone-{id}")
    };
    let refused = remove(&site, &named(&first)).await.unwrap_err();
    let said = refused.message();
    assert!(said.contains("not known whether it has clones") && said.contains(&named(&second)), "{refused}");
    // The other way round it goes: what the first was made from has its pin. And what is not down is no matter.
    remove(&site, "other").await.unwrap();
    site.stop().await;
    for (path, good) in [&first, &second].into_iter().zip(&good) {
        std::fs::write(path, good).unwrap();
    }
    site.restart().await;
    let ones_block = site.content("copy-2", latest()).await.unwrap();
    assert_eq!(ones_block[..64 << 10], vec![1; 64 << 10]);
    site.stop().await;
    for path in [&first, &second] {
        std::fs::write(path, b"not a manifest").unwrap();
    }
    site.restart().await;
    remove(&site, &named(&second)).await.unwrap();
    remove(&site, &named(&first)).await.unwrap();
    assert_eq!((pins(&site, "web-1"), list(&site).await.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_removes_a_clone_with_a_locked_point() {
    let site = Site::start().await;
    let (_guest, ones, _) = protected(&site, "web-1").await;
    for (name, locked_us) in [("law", 3600 * 1_000_000), ("over", 1)] {
        create(&site, "web-1", lsn(ones), name).await.unwrap();
        let core = site.appliance().core();
        let journal = core.fleet.by_name(name).unwrap().log.writable().unwrap();
        let (kind, lsn) = (tidemark_journal::PinKind::Lock, tidemark_proto::ids::Lsn(ones));
        let now_us = core.retention.now().locks_us;
        let until_us = Some(now_us + locked_us);
        journal
            .put_pin(tidemark_journal::Pin { name: "lock:x".into(), kind, lsn, until_us }, now_us)
            .unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let refused = remove(&site, "law").await.unwrap_err();
    let said = refused.message();
    assert!(
        refused.code() == Code::FailedPrecondition && said.contains("'law' are locked until"),
        "{refused}"
    );
    assert_eq!(site.content("law", latest()).await.unwrap()[..64 << 10], vec![1; 64 << 10]);
    // Negative control: a lock that has ended keeps nothing.
    remove(&site, "over").await.unwrap();
}

/// A clone's own history goes by the policy of what it was made from, and then needs it no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_folded_by_its_policy_and_needs_its_vm_no_more() {
    let mut site = Site::start().await;
    let (_guest, ones, _) = protected(&site, "web-1").await;
    create(&site, "web-1", lsn(ones), "copy").await.unwrap();
    let policy = |name: &str| format!("[policy.{name}]\nwindow = \"1s\"\n");
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    let mut retention = RetentionClient::new(channel);
    let toml = policy("short");
    let policies = retention.apply_policies(ApplyPoliciesRequest { toml, create: false }).await.unwrap();
    let vms = |policies: PoliciesReply, name: &str| {
        policies.policies.into_iter().find(|policy| policy.name == name).unwrap().vms
    };
    assert_eq!(vms(policies.into_inner(), "default"), ["copy", "web-1"], "a clone follows its VM");
    let assign = AssignPolicyRequest { policy: "short".into(), vm: "copy".into() };
    retention.assign_policy(assign).await.unwrap();
    // Several segments of writes into the clone.
    let core = std::sync::Arc::clone(site.appliance().core());
    let clone = core.fleet.by_name("copy").unwrap();
    let volume = core.clones.volume(&core, &clone);
    let disk = volume.disks().unwrap()[0].id;
    let block: Vec<u8> =
        (0..1_u32 << 18).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    for round in 0..150_u64 {
        volume.write_at(disk, (round % 8) << 20, &block[usize::try_from(round).unwrap()..]).unwrap();
        volume.flush().unwrap();
    }
    let expected = site.content("copy", latest()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let run = RunRetentionRequest { vm: "copy".into() };
    let done = retention.run_retention(run.clone()).await.unwrap().into_inner().vms.remove(0);
    assert!(done.problem.is_empty() && done.folded_bytes > 0 && done.base_lsn > ones, "{done:?}");
    assert!(site.content("copy", latest()).await.unwrap() == expected);
    // The pin goes once nobody reads what was there before: the console's last view of it ends some time after its stream.
    // What the volume keeps for the next read is no reason to wait for a start.
    let mut looks = 0;
    while pins(&site, "web-1") > 0 {
        looks += 1;
        assert!(looks < 100, "the clone still keeps its VM");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        retention.run_retention(run.clone()).await.unwrap();
    }
    assert_eq!(core.retention.held_back(clone.id), 0);
    drop((volume, clone, core));
    site.restart().await;
    assert_eq!(pins(&site, "web-1"), 0);
    let listed = list(&site).await.remove(0);
    assert_eq!((listed.parent.as_str(), listed.lsn, listed.problem.as_str()), ("", 0, ""));
    site.console().await.remove_vm(RemoveVmRequest { name: "web-1".into() }).await.unwrap();
    assert!(site.content("copy", latest()).await.unwrap() == expected);
    site.restart().await;
    assert!(site.content("copy", latest()).await.unwrap() == expected);
    // What it has in the store stays through collections.
    let freed = tidemark_appliance::retention::collect(site.appliance().core());
    assert!(freed.is_ok(), "{freed:?}");
    assert!(site.content("copy", latest()).await.unwrap() == expected);
    let export = export(&site, "copy").await.unwrap();
    stop(&site, &export).await;
    remove(&site, "copy").await.unwrap();
}

/// A raw image whose blocks differ, with a hole; its size is no whole number of chunks.
fn golden() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap() - 8192];
    for (index, word) in (0_u64..).zip(bytes[..5 << 20].chunks_mut(8)) {
        word.copy_from_slice(&index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes
}

async fn create_from(site: &Site, template: &str, name: &str) -> Result<CloneInfo, Status> {
    let request = CreateCloneRequest { name: name.into(), template: template.into(), ..Default::default() };
    Ok(clones(site).await.create_clone(request).await?.into_inner())
}

/// Writes into a clone and flushes.
async fn write(site: &Site, name: &str, offset: u64, byte: u8) {
    let mut client = clones(site).await;
    let request = OpenCloneRequest { name: name.into(), disk: String::new() };
    let mut held = client.open_clone(request).await.unwrap().into_inner();
    let view_id = held.message().await.unwrap().unwrap().view_id;
    let write = WriteCloneRequest {
        view_id: view_id.clone(),
        disk: "disk-1".into(),
        offset,
        data: vec![byte; 100_000].into(),
        durable: true,
        ..Default::default()
    };
    client.write_clone(write).await.unwrap();
}

fn collect(site: &Site) -> u64 {
    tidemark_appliance::retention::collect(site.appliance().core()).unwrap().freed_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_template_is_its_content_and_a_clone_like_every_other() {
    let mut site = Site::start().await;
    let golden = golden();
    site.put_object("golden", "template", false, &golden).await;
    site.put_object("music", "iso", false, &golden[..1000]).await;
    let made = create_from(&site, "golden", "web-1").await.unwrap();
    assert_eq!(
        (made.template.as_str(), made.parent.as_str(), made.lsn, made.latest_lsn),
        ("golden", "", 0, 0)
    );
    assert_eq!(made.disks[0].size_bytes, golden.len() as u64);
    assert!(site.content("web-1", latest()).await.unwrap() == golden);
    assert!(site.content("web-1", lsn(0)).await.unwrap() == golden);
    let ago = Some(When { point: Some(Point::TimeUs(made.created_us)) });
    assert!(site.content("web-1", ago).await.unwrap() == golden);
    let before = Some(When { point: Some(Point::TimeUs(made.created_us - 1_000_000)) });
    let refused = site.content("web-1", before).await.unwrap_err();
    assert!(
        refused.message().contains("the nearest point is lsn:0") && refused.message().contains("after"),
        "{refused}"
    );
    let refused = site.content("web-1", lsn(1)).await.unwrap_err();
    assert!(refused.message().contains("after the latest"), "{refused}");
    // What cannot be a clone.
    for (template, name, code) in [
        ("golden", "web-1", Code::InvalidArgument),
        ("golden", "a b", Code::InvalidArgument),
        ("music", "web-2", Code::InvalidArgument),
        ("nothing", "web-2", Code::NotFound),
    ] {
        assert_eq!(create_from(&site, template, name).await.unwrap_err().code(), code, "{template} {name}");
    }
    let both = CreateCloneRequest {
        vm: "web-1".into(),
        at: latest(),
        name: "web-2".into(),
        template: "golden".into(),
    };
    assert_eq!(clones(&site).await.create_clone(both).await.unwrap_err().code(), Code::InvalidArgument);
    // Written, each write a point; a clone of it has what it had.
    write(&site, "web-1", 70_000, 7).await;
    create(&site, "web-1", lsn(0), "web-1-before").await.unwrap();
    create(&site, "web-1", latest(), "web-1-after").await.unwrap();
    let mut written = golden.clone();
    written[70_000..170_000].fill(7);
    let points = ListPointsRequest { vm: "web-1".into(), ..Default::default() };
    let windows = site.console().await.list_points(points).await.unwrap().into_inner().windows;
    assert!(windows.len() == 1 && windows[0].from_lsn == 0 && windows[0].to_lsn > 0, "{windows:?}");
    // What clones were made from stays, and it says of which; after a restart, too.
    for restart in [false, true] {
        if restart {
            site.restart().await;
        }
        let refused = site.remove_object("golden").await.unwrap_err();
        assert!(
            refused.code() == Code::FailedPrecondition && refused.message().contains("'web-1'"),
            "{refused}"
        );
        let listed = list(&site).await;
        let named: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.template.as_str())).collect();
        assert_eq!(named, [("web-1", "golden"), ("web-1-after", ""), ("web-1-before", "")]);
        collect(&site);
        assert!(site.content("web-1", latest()).await.unwrap() == written);
        assert!(site.content("web-1", lsn(0)).await.unwrap() == golden);
        assert!(site.content("web-1-before", latest()).await.unwrap() == golden);
        assert!(site.content("web-1-after", latest()).await.unwrap() == written);
    }
    let export = export(&site, "web-1").await.unwrap();
    if succeed("qemu-io", &["--version"]).await {
        let io = ["-f", "raw", "-c", "read -P 7 70000 100000", "-c", "write -P 9 1M 64k", &export.uri];
        succeed("qemu-io", &io).await;
    }
    stop(&site, &export).await;
    remove(&site, "web-1-after").await.unwrap();
    remove(&site, "web-1-before").await.unwrap();
    remove(&site, "web-1").await.unwrap();
    site.remove_object("golden").await.unwrap();
    // The negative control: what nobody needs any more is freed.
    assert!(collect(&site) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_keeps_the_content_even_when_the_record_of_its_template_is_lost() {
    let mut site = Site::start().await;
    let golden = golden();
    let object = site.put_object("golden", "template", false, &golden).await;
    create_from(&site, "golden", "web-1").await.unwrap();
    site.stop().await;
    std::fs::remove_file(site.settings.data.join("objects").join(&object.id)).unwrap();
    site.restart().await;
    collect(&site);
    assert!(site.content("web-1", latest()).await.unwrap() == golden);
    assert_eq!(list(&site).await[0].template, object.id, "by its id, as it has no name any more");
    // The negative control: without the clone the chunks are gone.
    remove(&site, "web-1").await.unwrap();
    assert!(collect(&site) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_template_that_was_being_made_is_there_or_not_after_a_kill() {
    let mut site = Site::start_process(&[]).await;
    let golden = golden();
    site.put_object("golden", "template", false, &golden).await;
    create_from(&site, "golden", "kept").await.unwrap();
    write(&site, "kept", 0, 5).await;
    let mut written = golden.clone();
    written[..100_000].fill(5);
    for round in 0..5_u64 {
        let wait = std::time::Duration::from_micros(300 + 1500 * round);
        let half = format!("half-{round}");
        let _ = tokio::time::timeout(wait, create_from(&site, "golden", &half)).await;
        if let Some(before) = round.checked_sub(1) {
            let name = format!("half-{before}");
            let _ = tokio::time::timeout(wait, remove(&site, &name)).await;
        }
        site.kill();
        site.spawn(&[]).await;
        assert!(site.content("kept", latest()).await.unwrap() == written);
        for clone in list(&site).await {
            assert_eq!((clone.problem.as_str(), clone.template.as_str()), ("", "golden"), "{}", clone.name);
            assert!(site.content(&clone.name, lsn(0)).await.unwrap() == golden, "{}", clone.name);
        }
    }
    let clones = list(&site).await;
    let refused = site.remove_object("golden").await.unwrap_err();
    assert!(refused.message().contains("'kept'"), "{refused}");
    site.terminate();
    let folders = std::fs::read_dir(site.settings.data.join("clones")).unwrap();
    assert_eq!(folders.count(), clones.len(), "nothing half made is left");
}
