//! The program itself: killed, terminated, started twice, out of space.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::site::{Site, Tmpfs};
use tidemark_appliance::settings::Settings;
use tidemark_proto::v1::{Empty, appliance_message};

const DISK_BYTES: u64 = 1 << 30;

#[tokio::test]
async fn acknowledged_frames_survive_sigkill_and_termination_says_goodbye() {
    let mut site = Site::start_process(&["--log", "json"]).await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    for round in 0..3_u64 {
        let mut stream = guest.connect(&site).await.unwrap();
        guest.resume(&stream.welcome);
        if round == 0 {
            guest.protect(&mut stream).await;
        }
        let acked_before = guest.seq;
        for index in 0..20 {
            let frame = guest.writes(vec![((round * 20 + index) * 256, vec![7; 128 << 10])]);
            stream.frame(frame).await;
        }
        // Some are acknowledged, the rest is under way.
        let acked = stream.acked(acked_before + 10).await;
        site.kill();
        drop(stream);
        site.spawn(&[]).await;
        guest.last_acked = Some(acked.clone());
        let vm = site.vm("a").await;
        assert!(vm.durable_lsn >= acked.lsn, "{} was acknowledged, {} is there", acked.lsn, vm.durable_lsn);
    }
    let mut stream = guest.connect(&site).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        let code = site.terminate();
        (site, code)
    });
    let goodbye = stream.goodbye().await;
    assert!(goodbye.retry && goodbye.reason.contains("shutting down"), "{goodbye:?}");
    drop(stream);
    let (site, code) = ended.await.unwrap();
    assert_eq!(code, Some(0));
    assert!(!site.settings.data.join("vms/.removed").exists());
}

#[tokio::test]
async fn a_second_appliance_on_the_folder_is_refused_and_health_is_told() {
    let site = Site::start().await;
    let output = Command::new(env!("CARGO_BIN_EXE_tidemark-appliance"))
        .arg("--data")
        .arg(&site.settings.data)
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("in use by another tidemark-appliance"), "{error}");
    let (status, body) = get(site.appliance().http, "/healthz").await;
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let (status, body) = get(site.appliance().http, "/metrics").await;
    assert_eq!(status, 200);
    for metric in [
        "tidemark_ingest_sessions 1",
        "tidemark_ingest_received_frames_total{vm=\"a\"} 3",
        "tidemark_vm_rpo_milliseconds{vm=\"a\"}",
        "tidemark_commit_latency_seconds_bucket",
        "tidemark_timeline_open_gaps{vm=\"a\"} 0",
        "tidemark_store_packs 0",
    ] {
        assert!(body.contains(metric), "{metric} is not in:\n{body}");
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn a_full_disk_stops_ingest_and_space_resumes_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_tmpfs) = Tmpfs::mount(&dir.path().join("data"), 96) else { return };
    let settings = Settings::local(&dir.path().join("data"));
    let ballast = settings.data.join("ballast");
    let mut site = Site::start_with(dir, settings).await;
    std::fs::write(&ballast, vec![1; 64 << 20]).unwrap();
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let mut acked = None;
    let goodbye = 'full: loop {
        for index in 0..4 {
            let frame = guest.writes(vec![(index * 2048, vec![9; 1 << 20])]);
            stream.frame(frame).await;
        }
        loop {
            match stream.next().await {
                Some(appliance_message::Body::Ack(ack)) => {
                    acked = ack.durable;
                    if acked.as_ref().unwrap().seq == guest.seq {
                        break;
                    }
                }
                Some(appliance_message::Body::Goodbye(goodbye)) => break 'full goodbye,
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(goodbye.retry && goodbye.reason.contains("full"), "{goodbye:?}");
    let acked = acked.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let refused = guest.connect(&site).await.err().unwrap();
    assert!(refused.retry && refused.reason.contains("disk is full"), "{refused:?}");
    let status = site.console().await.status(Empty {}).await.unwrap().into_inner();
    assert!(
        status.alarms.iter().any(|alarm| alarm.text.contains("ingest has stopped")),
        "{:?}",
        status.alarms
    );
    assert_eq!(get(site.appliance().http, "/healthz").await.0, 503);

    std::fs::remove_file(&ballast).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match guest.connect(&site).await {
            Ok(stream) => break stream,
            Err(goodbye) => assert!(Instant::now() < deadline, "{goodbye:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(stream.welcome.durable.as_ref().unwrap().seq >= acked.seq);
    guest.resume(&stream.welcome.clone());
    let frame = guest.write(0, vec![3; 4096]);
    stream.frame(frame).await;
    stream.acked(guest.seq).await;
    drop(stream);
    site.stop().await;
}

/// Not a benchmark of the product: shows where ingest alone stands. Run by hand with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn throughput_of_one_stream() {
    let site = Site::start_process(&[]).await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let frames: Vec<_> = (0..1024)
        .map(|frame| {
            guest.writes((0..256).map(|write| ((frame * 256 + write) * 8, vec![frame as u8; 4096])).collect())
        })
        .collect();
    let (start, last, sender) = (Instant::now(), guest.seq, stream.sender.clone());
    tokio::spawn(async move {
        for frame in frames {
            let body = Some(tidemark_proto::v1::splitter_message::Body::Frame(frame));
            if sender.send(tidemark_proto::v1::SplitterMessage { body }).await.is_err() {
                return;
            }
        }
    });
    stream.acked(last).await;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "1 GiB in {seconds:.2} s: {:.0} MB/s, {:.0} writes of 4 KiB/s",
        1073.7 / seconds,
        262_144.0 / seconds
    );
}
