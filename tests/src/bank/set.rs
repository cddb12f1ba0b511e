//! Points of a bank's set, and the ledgers there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{LEDGER_BYTES, Ledger};
use crate::site::Site;
use crate::synthetic::Administrator;

/// Between automatic points: often, so that many of them fall into a test.
const EVERY: &str = "500ms";

/// A point that has every member, as the command line tells it.
#[derive(Debug, Clone)]
pub struct Point {
    /// When, by the appliance's clock.
    pub time: jiff::Timestamp,
    /// `barrier`, `mixed` or `clock`.
    pub cut: String,
    /// How long the members were held; the longest.
    pub hold_us: u64,
    /// How far they may be apart.
    pub bound_us: u64,
    /// Where each stands.
    pub lsns: Vec<u64>,
    /// What held each.
    pub methods: Vec<String>,
    /// All of it.
    pub text: Value,
}

impl Point {
    fn of(text: &Value, vms: &[&str]) -> Option<Self> {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let all = text["members"].as_array()?;
        let find = |vm: &&str| all.iter().find(|member| member["vm"] == **vm);
        let members: Vec<&Value> = vms.iter().map(find).collect::<Option<_>>()?;
        Some(Self {
            time: text["time"].as_str()?.parse().ok()?,
            cut: text["cut"].as_str()?.to_owned(),
            hold_us: number(&text["hold_us"]),
            bound_us: number(&text["bound_us"]),
            lsns: members.iter().map(|member| number(&member["lsn"])).collect(),
            methods: members
                .iter()
                .map(|member| member["method"].as_str().unwrap_or_default().to_owned())
                .collect(),
            text: text.clone(),
        })
    }
}

/// Takes points of a set whose VMs are the members of a bank, and reads the ledgers there.
#[derive(Debug)]
pub struct Teller {
    set: String,
    /// Each member's VM, and where its ledger lies on its first disk, in bytes.
    members: Vec<(String, u64)>,
    runtime: Runtime,
}

impl Teller {
    /// Makes the set of all VMs that match; no automatic points yet.
    ///
    /// # Errors
    /// As the command.
    pub fn new(site: &Site, set: &str, rule: &str, members: &[(&str, u64)]) -> Result<Self> {
        site.cli(&["set", "create", set, "--match", rule, "--every", "0"])?;
        let members = members.iter().map(|(vm, offset)| ((*vm).to_owned(), *offset)).collect();
        Ok(Self { set: set.to_owned(), members, runtime: Runtime::new()? })
    }

    /// All points so far that have every member.
    ///
    /// # Errors
    /// As the command.
    pub fn points(&self, site: &Site) -> Result<Vec<Point>> {
        let list = site.cli_json(&["point", "list", "--set", &self.set])?;
        let vms: Vec<&str> = self.members.iter().map(|(vm, _)| &vm[..]).collect();
        let points = list["points"].as_array().context("a list of points")?;
        Ok(points.iter().filter_map(|point| Point::of(point, &vms)).collect())
    }

    /// Takes automatic points, so many or more, and returns them.
    ///
    /// # Errors
    /// When they do not come in time.
    pub fn automatic(&self, site: &Site, hold: &str, count: usize) -> Result<Vec<Point>> {
        site.cli(&["set", "change", &self.set, "--every", EVERY, "--hold", hold])?;
        // One that is under way is still as was said before.
        let since = jiff::Timestamp::now();
        let began = Instant::now();
        let patience = Duration::from_secs(60) + Duration::from_secs(3) * u32::try_from(count)?;
        let points = loop {
            std::thread::sleep(Duration::from_millis(500));
            let points: Vec<Point> =
                self.points(site)?.into_iter().filter(|point| point.time >= since).collect();
            if points.len() >= count {
                break points;
            }
            ensure!(began.elapsed() < patience, "{} of {count} points: {points:?}", points.len());
        };
        site.cli(&["set", "change", &self.set, "--every", "0"])?;
        Ok(points)
    }

    /// The ledgers where the members stand.
    ///
    /// # Errors
    /// When one cannot be read, or is none.
    pub fn ledgers(&self, site: &Site, lsns: &[u64]) -> Result<Vec<Ledger>> {
        let administrator = Administrator::of(site)?;
        let each = self.members.iter().zip(lsns);
        each.map(|((vm, offset), lsn)| {
            let read = administrator.piece(vm, 0, *lsn, *offset, LEDGER_BYTES);
            Ledger::decode(&self.runtime.block_on(read)?).with_context(|| format!("{vm} at {lsn}"))
        })
        .collect()
    }

    /// Moments of the same VMs, each taken by itself, one right after the other.
    ///
    /// # Errors
    /// When bookmarks cannot be placed.
    pub fn uncoordinated(&self, site: &Site, count: usize) -> Result<Vec<Vec<u64>>> {
        let one = |round: usize, vm: &str| {
            // A short gap is no fault of a bookmark.
            let name = |attempt| format!("alone-{round}-{attempt}");
            (0..5).find_map(|attempt| site.bookmark(vm, &name(attempt)).ok()).context("a bookmark")
        };
        (0..count).map(|round| self.members.iter().map(|(vm, _)| one(round, vm)).collect()).collect()
    }
}
