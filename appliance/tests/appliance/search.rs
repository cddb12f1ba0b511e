//! Searches over many VMs and bookmarks, against a plain model, on both databases. PostgreSQL is a throw-away cluster of
//! this test. `TIDEMARK_TEST_SIZE=large` fills 1,000 VMs and a million bookmarks.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::postgres::Cluster;
use tidemark_appliance::catalog::{Catalog, CatalogUrl, PointSearch};

const CA: [u8; 32] = [1; 32];
const FIRST_US: i64 = 1_700_000_000_000_000;

/// A search may take this long at the large size: "well under a second". At the small one it is noise.
const LIMIT: Duration = Duration::from_millis(800);

fn size() -> (i64, i64) {
    let large = std::env::var("TIDEMARK_TEST_SIZE").is_ok_and(|size| size == "large");
    if large { (1000, 1_000_000) } else { (100, 10_000) }
}

const FILL_VMS: &str = "WITH RECURSIVE n(i) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < $1) \
    INSERT INTO vms (id, name, hostname, software, created_us) \
    SELECT 'vm-' || CAST(i AS TEXT), CASE i % 4 WHEN 0 THEN 'Web-' WHEN 1 THEN 'db-' ELSE 'other-' END || CAST(i AS TEXT), '', '', 0 FROM n";
const FILL_TAGS: &str = "INSERT INTO vm_tags (vm_id, key, value) \
    SELECT id, 'app', CASE WHEN id LIKE '%7' THEN 'shop' ELSE 'other' END FROM vms";
const FILL_BOOKMARKS: &str = "WITH RECURSIVE n(i) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < $1) \
    INSERT INTO bookmarks (id, vm_id, name, folded, lsn, time_us, consistency) \
    SELECT 'b' || CAST(i AS TEXT), 'vm-' || CAST(i % $2 AS TEXT), \
    CASE i % 5 WHEN 0 THEN 'Before-Upgrade-' WHEN 1 THEN '100%_done-' ELSE 'nightly-' END || CAST(i AS TEXT), \
    CASE i % 5 WHEN 0 THEN 'before-upgrade-' WHEN 1 THEN '100%_done-' ELSE 'nightly-' END || CAST(i AS TEXT), \
    i, 1700000000000000 + i * 1000000, CASE i % 3 WHEN 0 THEN 'filesystem' ELSE 'crash' END FROM n";

/// What was filled in, one bookmark after another.
struct Model {
    vms: i64,
    bookmarks: i64,
}

impl Model {
    fn vm(&self, i: i64) -> (i64, String) {
        let vm = i % self.vms;
        (vm, format!("{}{vm}", ["Web-", "db-", "other-", "other-"][usize::try_from(vm % 4).unwrap()]))
    }

    fn name(i: i64) -> String {
        let word = ["Before-Upgrade-", "100%_done-", "nightly-", "nightly-", "nightly-"];
        format!("{}{i}", word[usize::try_from(i % 5).unwrap()])
    }

    fn find(&self, search: &PointSearch, case_matters: bool) -> Vec<String> {
        let fold = |text: &str| if case_matters { text.to_owned() } else { text.to_lowercase() };
        let prefix = search.vm.strip_suffix('*');
        let matches = |i: &i64| {
            let (vm, vm_name) = self.vm(*i);
            let level = if i % 3 == 0 { "filesystem" } else { "crash" };
            let time = (FIRST_US + i * 1_000_000) as u64;
            let named = match prefix {
                Some(prefix) => fold(&vm_name).starts_with(&fold(prefix)),
                None => search.vm.is_empty() || fold(&vm_name) == fold(&search.vm),
            };
            let tag = search.tag.as_ref().map(|(_, value)| (vm % 10 == 7) == (value == "shop"));
            named
                && tag.unwrap_or(true)
                && (search.from_us..=search.to_us).contains(&time)
                && (search.consistency.is_empty() || search.consistency == level)
                && fold(&Self::name(*i)).contains(&fold(&search.text))
        };
        let found = (0..self.bookmarks).rev().filter(matches).take(search.limit as usize);
        found.map(Self::name).collect()
    }
}

fn everything() -> PointSearch {
    PointSearch {
        text: String::new(),
        vm: String::new(),
        tag: None,
        from_us: 0,
        to_us: u64::MAX,
        consistency: String::new(),
        limit: 100,
    }
}

fn searches(model: &Model) -> Vec<PointSearch> {
    let tag = Some(("app".to_owned(), "shop".to_owned()));
    let middle = (FIRST_US + model.bookmarks / 2 * 1_000_000) as u64;
    let all = everything;
    vec![
        all(),
        PointSearch { text: "upGRADE".into(), ..all() },
        PointSearch { text: "nowhere at all".into(), ..all() },
        PointSearch { text: "100%_".into(), ..all() },
        // A wildcard that is none.
        PointSearch { text: "100__done".into(), ..all() },
        PointSearch { text: format!("-{}", model.bookmarks / 3), ..all() },
        PointSearch { vm: "web-8".into(), ..all() },
        PointSearch { vm: "web-8".into(), text: "nowhere at all".into(), ..all() },
        PointSearch { vm: "WEB-*".into(), text: "upgrade".into(), ..all() },
        PointSearch { vm: "other-*".into(), text: "nowhere at all".into(), ..all() },
        PointSearch { vm: "no such VM".into(), ..all() },
        PointSearch { tag: tag.clone(), ..all() },
        PointSearch { tag: tag.clone(), text: "nowhere at all".into(), ..all() },
        PointSearch {
            tag,
            vm: "db-*".into(),
            consistency: "filesystem".into(),
            text: "night".into(),
            ..all()
        },
        PointSearch { consistency: "filesystem".into(), to_us: middle, ..all() },
        PointSearch { consistency: "application".into(), ..all() },
        PointSearch { from_us: middle, to_us: middle + 5_000_000, ..all() },
        PointSearch { text: "nightly".into(), limit: 1000, from_us: middle, ..all() },
    ]
}

async fn check(which: &str, catalog: &Catalog, model: &Model) {
    let mut slowest = (Duration::ZERO, everything());
    for search in searches(model) {
        let started = Instant::now();
        let found = catalog.search_points(&search).await.unwrap();
        let took = started.elapsed();
        if took > slowest.0 {
            slowest = (took, search.clone());
        }
        let names: Vec<_> = found.iter().map(|point| point.name.clone()).collect();
        assert_eq!(names, model.find(&search, false), "{search:?}");
        for point in &found {
            let i = i64::try_from(point.lsn().0).unwrap();
            assert_eq!((&point.vm, point.time_us()), (&model.vm(i).1, (FIRST_US + i * 1_000_000) as u64));
        }
    }
    println!("{which}: {} bookmarks, slowest search {:?}: {:?}", model.bookmarks, slowest.0, slowest.1);
    assert!(slowest.0 < LIMIT, "{slowest:?}");
    // Negative control: a model for which letters' case matters is not what the catalog does.
    let upper = PointSearch { text: "upGRADE".into(), ..everything() };
    let found = catalog.search_points(&upper).await.unwrap();
    assert_ne!(found.len(), model.find(&upper, true).len());
}

#[tokio::test]
async fn sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("catalog.sqlite");
    let catalog = Catalog::open(&CatalogUrl::Sqlite(None), &file, &CA).await.unwrap();
    let (vms, bookmarks) = size();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(FILL_VMS).bind(vms).execute(&pool).await.unwrap();
    sqlx::query(FILL_TAGS).execute(&pool).await.unwrap();
    sqlx::query(FILL_BOOKMARKS).bind(bookmarks).bind(vms).execute(&pool).await.unwrap();
    pool.close().await;
    check("SQLite", &catalog, &Model { vms, bookmarks }).await;
}

#[tokio::test]
async fn postgresql() {
    let Some(cluster) = Cluster::start() else { return };
    let url: CatalogUrl = cluster.url().parse().unwrap();
    let catalog = Catalog::open(&url, Path::new("/nonexistent"), &CA).await.unwrap();
    let (vms, bookmarks) = size();
    let pool = sqlx::PgPool::connect(&cluster.url()).await.unwrap();
    sqlx::query(FILL_VMS).bind(vms).execute(&pool).await.unwrap();
    sqlx::query(FILL_TAGS).execute(&pool).await.unwrap();
    sqlx::query(FILL_BOOKMARKS).bind(bookmarks).bind(vms).execute(&pool).await.unwrap();
    // What autovacuum does within a minute.
    sqlx::query("VACUUM ANALYZE").execute(&pool).await.unwrap();
    pool.close().await;
    check("PostgreSQL", &catalog, &Model { vms, bookmarks }).await;
    catalog.close().await;
    cluster.stop();
}
