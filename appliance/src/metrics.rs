//! Prometheus metrics, named `tidemark_<part>_<noun>_<unit>`.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tidemark_journal::store::StoreStatistics;

use crate::packs::ObjectFolder;

/// Labels a series with the VM's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VmLabel {
    /// The VM's name.
    pub vm: String,
}

/// Labels a series with a reason: one of a fixed set of words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Why.
    pub reason: &'static str,
}

/// Labels a series with how a set's point was cut: `barrier`, `mixed` or `clock`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CutLabel {
    /// How.
    pub cut: &'static str,
}

/// All metrics of the appliance.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Payload received from splitters.
    pub received_bytes: Family<VmLabel, Counter>,
    /// Bytes of disks that splitters asked about by their hashes.
    pub compared_bytes: Family<VmLabel, Counter>,
    /// Of them, bytes that were known or offered, and so need not be sent.
    pub known_bytes: Family<VmLabel, Counter>,
    /// Bytes of disks that verifies compared.
    pub verified_bytes: Family<VmLabel, Counter>,
    /// Of them, bytes that differed from the journal.
    pub differing_bytes: Family<VmLabel, Counter>,
    /// Bytes that published templates gave to VMs' journals instead of the network.
    pub template_bytes: Family<VmLabel, Counter>,
    /// Frames received from splitters.
    pub received_frames: Family<VmLabel, Counter>,
    /// Bytes written to journals since they were opened.
    pub written_bytes: Family<VmLabel, Gauge>,
    /// Age of the newest recoverable point.
    pub durable_lag: Family<VmLabel, Gauge>,
    /// Bytes captured in the guest and not durable here.
    pub undurable_bytes: Family<VmLabel, Gauge>,
    /// Gaps that are open.
    pub open_gaps: Family<VmLabel, Gauge>,
    /// Live streams.
    pub sessions: Gauge,
    /// Views that are open.
    pub views: Gauge,
    /// Free bytes of the data folder's file system.
    pub free_bytes: Gauge,
    /// From the first append of a commit to its durability.
    pub commit_latency: Histogram,
    /// Bytes of the log that went into images.
    pub folded_bytes: Family<VmLabel, Counter>,
    /// Snapshots that are kept.
    pub snapshots: Family<VmLabel, Gauge>,
    /// Bytes of a log that stay only for a clone, by the clone's name.
    pub held_back: Family<VmLabel, Gauge>,
    /// Bytes that collections freed in the chunk store.
    pub collected_bytes: Counter,
    rejections: Family<ReasonLabel, Counter>,
    store: StoreGauges,
    packs: PackGauges,
    points: PointMetrics,
}

/// Points of sets.
#[derive(Debug)]
struct PointMetrics {
    taken: Family<CutLabel, Counter>,
    hold: Histogram,
    barrier: Histogram,
}

impl PointMetrics {
    fn register(registry: &mut Registry) -> Self {
        // 0.1 ms to 6.5 s.
        let times = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        let metrics = Self { taken: Family::default(), hold: times(), barrier: times() };
        let (hold, barrier) = (metrics.hold.clone(), metrics.barrier.clone());
        registry.register("sets_points", "Points of sets by how they were cut", metrics.taken.clone());
        registry.register("sets_hold_seconds", "The longest hold of a point's members", hold);
        registry.register("sets_barrier_seconds", "From the first PREPARE to the last RELEASE", barrier);
        metrics
    }
}

/// The chunk store in numbers, as of the last look.
#[derive(Debug, Default)]
struct StoreGauges {
    put_bytes: Gauge,
    new_bytes: Gauge,
    written_bytes: Gauge,
    packs: Gauge,
    pack_bytes: Gauge,
    memory_bytes: Gauge,
}

impl StoreGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        for (name, help, gauge) in [
            ("store_put_bytes", "Content put into the chunk store since the start", &gauges.put_bytes),
            ("store_new_bytes", "Content of it that was not there yet", &gauges.new_bytes),
            ("store_written_bytes", "Bytes of packs written since the start", &gauges.written_bytes),
            ("store_packs", "Packs of the chunk store", &gauges.packs),
            ("store_pack_bytes", "Bytes of all packs", &gauges.pack_bytes),
            ("store_memory_bytes", "Packs being filled and cached chunks in memory", &gauges.memory_bytes),
        ] {
            registry.register(name, help, gauge.clone());
        }
        gauges
    }
}

/// Packs in object storage in numbers, as of the last look; 0 where they lie here.
#[derive(Debug, Default)]
struct PackGauges {
    cache_bytes: Gauge,
    cache_hits: Gauge,
    cache_misses: Gauge,
    waiting_deletions: Gauge,
}

impl PackGauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        for (name, help, gauge) in [
            ("packs_cache_bytes", "Bytes of packs kept on the local disk", &gauges.cache_bytes),
            ("packs_cache_hits", "Reads answered by the cache since the start", &gauges.cache_hits),
            ("packs_cache_misses", "Reads that went to the server since the start", &gauges.cache_misses),
            ("packs_waiting_deletions", "Deletions that wait for the server", &gauges.waiting_deletions),
        ] {
            registry.register(name, help, gauge.clone());
        }
        gauges
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tidemark");
        let received_bytes = Family::default();
        registry.register("ingest_received_bytes", "Payload received from splitters", received_bytes.clone());
        let received_frames = Family::default();
        registry.register(
            "ingest_received_frames",
            "Frames received from splitters",
            received_frames.clone(),
        );
        let compared_bytes = Family::default();
        registry.register("ingest_compared_bytes", "Asked about by hashes", compared_bytes.clone());
        let known_bytes = Family::default();
        registry.register("ingest_known_bytes", "Asked about by hashes and known", known_bytes.clone());
        let verified_bytes = Family::default();
        registry.register("verify_compared_bytes", "Compared by verifies", verified_bytes.clone());
        let differing_bytes = Family::default();
        registry.register("verify_differing_bytes", "Differing from the journal", differing_bytes.clone());
        let template_bytes = Family::default();
        registry.register("ingest_template_bytes", "Taken from published templates", template_bytes.clone());
        let written_bytes = Family::default();
        registry.register(
            "journal_written_bytes",
            "Bytes written since the journal was opened",
            written_bytes.clone(),
        );
        let durable_lag = Family::default();
        registry.register("vm_rpo_milliseconds", "Age of the newest recoverable point", durable_lag.clone());
        let undurable_bytes = Family::default();
        registry.register(
            "vm_lag_bytes",
            "Captured in the guest and not durable here",
            undurable_bytes.clone(),
        );
        let open_gaps = Family::default();
        registry.register("timeline_open_gaps", "Gaps that are open", open_gaps.clone());
        let sessions = Gauge::default();
        registry.register("ingest_sessions", "Live streams of splitters", sessions.clone());
        let views = Gauge::default();
        registry.register("recovery_views", "Views that are open", views.clone());
        let free_bytes = Gauge::default();
        registry.register("storage_free_bytes", "Free bytes below the data folder", free_bytes.clone());
        // 0.5 ms to 8 s.
        let commit_latency = Histogram::new(exponential_buckets(0.0005, 2.0, 15));
        registry.register("commit_latency_seconds", "One journal made durable", commit_latency.clone());
        let rejections = Family::default();
        registry.register(
            "transport_rejections",
            "Refused connections, calls and streams",
            rejections.clone(),
        );
        let folded_bytes = Family::default();
        registry.register("retention_folded_bytes", "Log that went into images", folded_bytes.clone());
        let snapshots = Family::default();
        registry.register("retention_snapshots", "Snapshots that are kept", snapshots.clone());
        let collected_bytes = Counter::default();
        registry.register("store_collected_bytes", "Freed by collections", collected_bytes.clone());
        let held_back = Family::default();
        registry.register("clone_held_back_bytes", "Log that stays only for a clone", held_back.clone());
        let store = StoreGauges::register(&mut registry);
        let packs = PackGauges::register(&mut registry);
        let points = PointMetrics::register(&mut registry);
        Self {
            registry: Mutex::new(registry),
            received_bytes,
            received_frames,
            compared_bytes,
            known_bytes,
            verified_bytes,
            differing_bytes,
            template_bytes,
            written_bytes,
            durable_lag,
            undurable_bytes,
            open_gaps,
            sessions,
            views,
            free_bytes,
            commit_latency,
            folded_bytes,
            snapshots,
            collected_bytes,
            held_back,
            rejections,
            store,
            packs,
            points,
        }
    }
}

impl Metrics {
    /// Counts a refusal.
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Notes how long a commit took.
    pub fn committed(&self, took: Duration) {
        self.commit_latency.observe(took.as_secs_f64());
    }

    /// Counts a point of a set; `hold_us` is the longest hold of its members.
    pub fn set_point(&self, cut: &'static str, hold_us: u64) {
        self.points.taken.get_or_create(&CutLabel { cut }).inc();
        if hold_us > 0 {
            self.points.hold.observe(Duration::from_micros(hold_us).as_secs_f64());
        }
    }

    /// Notes how long the appliance took from the first PREPARE of a barrier to its last RELEASE.
    pub fn set_held(&self, took: Duration) {
        if !took.is_zero() {
            self.points.barrier.observe(took.as_secs_f64());
        }
    }

    /// Notes how the chunk store stands.
    pub fn stored(&self, statistics: &StoreStatistics) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.store.put_bytes, statistics.put_bytes);
        set(&self.store.new_bytes, statistics.new_bytes);
        set(&self.store.written_bytes, statistics.written_bytes);
        set(&self.store.packs, statistics.packs);
        set(&self.store.pack_bytes, statistics.pack_bytes);
        set(&self.store.memory_bytes, statistics.open_bytes.saturating_add(statistics.cache_bytes));
    }

    /// Notes how packs in object storage stand.
    pub fn packed(&self, folder: &ObjectFolder) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        if let Some(cache) = folder.cache() {
            set(&self.packs.cache_bytes, cache.bytes);
            set(&self.packs.cache_hits, cache.hits);
            set(&self.packs.cache_misses, cache.misses);
        }
        set(&self.packs.waiting_deletions, u64::try_from(folder.waiting_deletions()).unwrap_or(u64::MAX));
    }

    /// Drops all series of a removed VM.
    pub fn forget(&self, vm: &str) {
        let label = VmLabel { vm: vm.to_owned() };
        self.received_bytes.remove(&label);
        self.received_frames.remove(&label);
        self.folded_bytes.remove(&label);
        self.compared_bytes.remove(&label);
        self.known_bytes.remove(&label);
        self.template_bytes.remove(&label);
        self.verified_bytes.remove(&label);
        self.differing_bytes.remove(&label);
        for gauge in [
            &self.written_bytes,
            &self.durable_lag,
            &self.undurable_bytes,
            &self.open_gaps,
            &self.snapshots,
            &self.held_back,
        ] {
            gauge.remove(&label);
        }
    }

    /// The metrics in the text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a string does not fail.
            let _ = encode(&mut text, &registry);
        }
        text
    }
}
