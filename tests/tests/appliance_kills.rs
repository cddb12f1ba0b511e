//! Oracle 3 for the appliance alone: a made-up splitter streams, the appliance is killed again and again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::site::{Site, large};
use tidemark_tests::stamp::Checker;
use tidemark_tests::synthetic::{Lost, Synthetic};

const VM: &str = "synthetic";
const DISK_SECTORS: u64 = 8192;
/// LSNs before the first write: a line's start and end.
const LSNS_BEFORE: u64 = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Every acknowledged write survives every kill, and every LSN is exactly its list of writes afterwards.
#[test]
fn a_killed_appliance_keeps_what_it_acknowledged() {
    let kills = if large() { 300 } else { 30 };
    let mut site = Site::start("synthetic").unwrap();
    let runtime = runtime();
    let mut splitter = runtime.block_on(Synthetic::enrol(&site, VM, DISK_SECTORS, 77)).unwrap();
    let (killed, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            runtime.block_on(async {
                while !done.load(Ordering::SeqCst) {
                    match splitter.connect().await {
                        Err(error) if error.is::<Lost>() => panic!("{error}"),
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        Ok(mut stream) => {
                            let limit = splitter.history().operations.len() + 2000;
                            let _ = splitter.run(&mut stream, limit).await;
                        }
                    }
                    written.store(splitter.history().operations.len(), Ordering::SeqCst);
                }
                // The last word: everything is sent and acknowledged.
                let mut stream = splitter.connect().await.unwrap();
                let limit = splitter.history().operations.len() + 8;
                splitter.run(&mut stream, limit).await.unwrap();
            });
        });
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(random.random_range(20..250)));
            if stream.is_finished() {
                break;
            }
            site.kill_appliance().unwrap();
            site.start_appliance().unwrap();
            killed.fetch_add(1, Ordering::SeqCst);
        }
        done.store(true, Ordering::SeqCst);
        stream.join().unwrap();
    });
    let operations = splitter.history().operations.len() as u64;
    let last = operations + LSNS_BEFORE;
    assert_eq!(splitter.acknowledged_lsn, last);
    let checker = Checker::new(splitter.history());
    let mut random = StdRng::seed_from_u64(4);
    let points = if large() { 2000 } else { 120 };
    for number in 0..points {
        let lsn = if number == 0 { last } else { random.random_range(LSNS_BEFORE..=last) };
        let image = runtime.block_on(splitter.administrator().image(VM, 0, lsn)).unwrap();
        checker
            .check_prefix(&image, lsn - LSNS_BEFORE)
            .unwrap_or_else(|error| panic!("at LSN {lsn}: {error}"));
    }
    println!("{} kills, {operations} writes, {points} points exact", killed.load(Ordering::SeqCst));
    site.finish(&["journal", "recover", "torn", "cut"]).unwrap();
}
