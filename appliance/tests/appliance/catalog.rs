//! One suite for both databases. PostgreSQL is a throw-away cluster of this test.

use std::path::Path;

use crate::postgres::Cluster;
use tidemark_appliance::catalog::{
    BookmarkRow, Catalog, CatalogError, CatalogUrl, HelloRecord, NewCertificate, NewSetPoint, PointMemberRow,
    Pointing, RightRow, SetPointRow, SetRow, TokenRow, TokenState, secret_hash,
};
use tidemark_proto::ids::{Lsn, VmId};

const CA: [u8; 32] = [1; 32];

#[tokio::test]
async fn sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("catalog.sqlite");
    suite(&CatalogUrl::Sqlite(None), &file).await;
    suite_reopened(&CatalogUrl::Sqlite(None), &file).await;
}

#[tokio::test]
async fn postgresql() {
    let Some(cluster) = Cluster::start() else { return };
    let url: CatalogUrl = cluster.url().parse().unwrap();
    suite(&url, Path::new("/nonexistent")).await;
    suite_reopened(&url, Path::new("/nonexistent")).await;
    cluster.stop();
    let refused = Catalog::open(&url, Path::new("/nonexistent"), &CA).await;
    assert!(refused.is_err(), "a server that is gone is an error");
}

async fn suite(url: &CatalogUrl, file: &Path) {
    let catalog = Catalog::open(url, file, &CA).await.unwrap();
    let other = Catalog::open(url, file, &[2; 32]).await.unwrap_err();
    assert!(other.to_string().contains("another appliance"), "{other}");
    let vm = enrolments(&catalog).await;
    certificates(&catalog, vm).await;
    nonces(&catalog, vm).await;
    bookmarks(&catalog, vm).await;
    set_points(&catalog).await;
    rights(&catalog).await;
    catalog.audit(5, "tester", "test", "x", "'; DROP TABLE vms; --").await.unwrap();
    let trail = catalog.audit_trail().await.unwrap();
    assert_eq!((trail.len(), trail[0].at_us(), trail[0].detail.as_str()), (1, 5, "'; DROP TABLE vms; --"));
    removal(&catalog).await;
    catalog.ping().await.unwrap();
    catalog.close().await;
}

/// What was answered is there after a new start.
async fn suite_reopened(url: &CatalogUrl, file: &Path) {
    let catalog = Catalog::open(url, file, &CA).await.unwrap();
    assert_eq!(catalog.vms().await.unwrap().len(), 1);
    assert_eq!(catalog.token("00000001").await.unwrap().unwrap().state(10), TokenState::Used);
    catalog.close().await;
}

fn token(id: &str, vm_name: &str, replaces: bool) -> TokenRow {
    TokenRow::new(id.into(), secret_hash(b"secret"), vm_name.into(), replaces, 1_000, 2_000)
}

fn certificate(serial: &str, vm: VmId, subject: &str) -> NewCertificate {
    NewCertificate {
        serial: serial.into(),
        role: "vm",
        vm: Some(vm),
        subject: subject.into(),
        issued_us: 1_000,
        not_after_us: u64::MAX,
    }
}

async fn enrolments(catalog: &Catalog) -> VmId {
    for (id, replaces) in [("00000001", false), ("00000002", false), ("00000003", true), ("00000004", false)]
    {
        catalog.add_token(&token(id, "web", replaces), 10_000).await.unwrap();
    }
    let vm = VmId::random();
    assert!(catalog.enrol("00000001", "web", "v1", &certificate("aa", vm, "web"), 1_500).await.unwrap());
    let again =
        catalog.enrol("00000001", "web2", "v1", &certificate("ab", VmId::random(), "web2"), 1_500).await;
    assert!(!again.unwrap(), "a used token");
    let taken =
        catalog.enrol("00000002", "web", "v1", &certificate("ac", VmId::random(), "web"), 1_500).await;
    assert!(matches!(taken, Err(CatalogError::Taken(_))), "{taken:?}");
    let state = |row: Option<TokenRow>, now| row.unwrap().state(now);
    assert_eq!(state(catalog.token("00000002").await.unwrap(), 1_500), TokenState::Valid, "rolled back");
    assert_eq!(state(catalog.token("00000002").await.unwrap(), 2_000), TokenState::Expired);
    assert!(catalog.revoke_token("00000002", 1_600).await.unwrap());
    assert!(!catalog.revoke_token("00000002", 1_600).await.unwrap());
    assert!(!catalog.revoke_token("00000001", 1_600).await.unwrap(), "used ones cannot be revoked");
    assert_eq!(state(catalog.token("00000002").await.unwrap(), 1_700), TokenState::Revoked);
    assert_eq!(catalog.vm_by_name("web").await.unwrap().unwrap().vm(), vm);
    assert_eq!(catalog.tokens().await.unwrap().len(), 4);
    // Ended long ago: forgotten with the next one.
    let late = TokenRow::new("00000005".into(), secret_hash(b"x"), "z".into(), false, 1 << 40, 1 << 41);
    catalog.add_token(&token("00000006", "y", false), u64::MAX).await.unwrap();
    catalog.add_token(&late, u64::MAX).await.unwrap();
    assert_eq!(catalog.tokens().await.unwrap().len(), 6);
    vm
}

async fn certificates(catalog: &Catalog, vm: VmId) {
    catalog.quarantine(vm, "first").await.unwrap();
    catalog.quarantine(vm, "second").await.unwrap();
    assert_eq!(catalog.vm(vm).await.unwrap().unwrap().quarantine.as_deref(), Some("first"));
    assert!(catalog.enrol_again("00000003", &certificate("ba", vm, "web"), 1_700).await.unwrap());
    assert!(!catalog.enrol_again("00000003", &certificate("bb", vm, "web"), 1_700).await.unwrap());
    let row = catalog.vm(vm).await.unwrap().unwrap();
    assert_eq!((row.quarantine, row.nonce_hash), (None, None));
    let listed = catalog.certificates().await.unwrap();
    let revoked = |serial: &str| listed.iter().find(|row| row.serial == serial).unwrap().revoked();
    assert!(revoked("aa") && !revoked("ba") && listed.len() == 2);
    assert_eq!(listed[0].vm(), Some(vm));
    assert!(catalog.revoke_certificate("ba", 1_800).await.unwrap());
    assert!(!catalog.revoke_certificate("zz", 1_800).await.unwrap());
    let old = NewCertificate { not_after_us: 10, ..certificate("old", vm, "web") };
    catalog.add_certificate(&old).await.unwrap();
    assert!(catalog.add_certificate(&old).await.is_err(), "serial numbers are unique");
    assert_eq!(catalog.forget_expired_certificates(11).await.unwrap(), 1);
}

async fn nonces(catalog: &Catalog, vm: VmId) {
    let record = |nonce_hash, pending_nonce_hash, dmi_uuid| HelloRecord {
        nonce_hash,
        pending_nonce_hash,
        dmi_uuid,
        machine_id: None,
        hostname: "host",
        software: "v2",
    };
    catalog.record_hello(vm, &record(None, "n1", Some("dmi"))).await.unwrap();
    catalog.nonce_saved(vm, "other").await.unwrap();
    let row = catalog.vm(vm).await.unwrap().unwrap();
    assert_eq!((row.nonce_hash, row.pending_nonce_hash.as_deref()), (None, Some("n1")));
    catalog.nonce_saved(vm, "n1").await.unwrap();
    catalog.record_hello(vm, &record(Some("n1"), "n2", Some("changed"))).await.unwrap();
    let row = catalog.vm(vm).await.unwrap().unwrap();
    assert_eq!((row.nonce_hash.as_deref(), row.pending_nonce_hash.as_deref()), (Some("n1"), Some("n2")));
    assert_eq!((row.dmi_uuid.as_deref(), row.machine_id), (Some("dmi"), None), "platform is set once");
    assert_eq!((row.hostname.as_str(), row.software.as_str()), ("host", "v2"));
}

async fn bookmarks(catalog: &Catalog, vm: VmId) {
    let row =
        |id: &str, name: &str, lsn| BookmarkRow::new(id.into(), vm, name.into(), Lsn(lsn), lsn * 10, "crash");
    catalog.add_bookmark(&row("1", "später", 20)).await.unwrap();
    catalog.add_bookmark(&row("2", "before", 10)).await.unwrap();
    catalog.add_bookmark(&row("2", "before", 10)).await.unwrap();
    let taken = catalog.add_bookmark(&row("3", "before", 30)).await.unwrap_err();
    assert!(matches!(taken, CatalogError::Taken(_)), "{taken}");
    let all = catalog.bookmarks(vm).await.unwrap();
    assert_eq!(all.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["before", "später"]);
    let one = catalog.bookmark(vm, "später").await.unwrap().unwrap();
    assert_eq!((one.lsn(), one.time_us()), (Lsn(20), 200));
    assert!(catalog.bookmark(VmId::random(), "später").await.unwrap().is_none());
    // Another VM may use the same name.
    let other = BookmarkRow::new("4".into(), VmId::random(), "before".into(), Lsn(1), 1, "crash");
    catalog.add_bookmark(&other).await.unwrap();
}

async fn removal(catalog: &Catalog) {
    let vm = VmId::random();
    assert!(
        catalog.enrol("00000004", "doomed", "v1", &certificate("da", vm, "doomed"), 1_500).await.unwrap()
    );
    catalog.add_bookmark(&BookmarkRow::new("9".into(), vm, "b".into(), Lsn(1), 1, "crash")).await.unwrap();
    catalog.remove_vm(vm, 1_900).await.unwrap();
    assert!(catalog.vm(vm).await.unwrap().is_none());
    assert!(catalog.bookmarks(vm).await.unwrap().is_empty());
    let listed = catalog.certificates().await.unwrap();
    assert!(listed.iter().find(|row| row.serial == "da").unwrap().revoked());
    let rebuilt = VmId::random();
    catalog.rebuild_vm(rebuilt, "found", "lost", 1).await.unwrap();
    assert!(matches!(
        catalog.rebuild_vm(VmId::random(), "found", "lost", 1).await,
        Err(CatalogError::Taken(_))
    ));
    catalog.remove_vm(rebuilt, 2_000).await.unwrap();
}

async fn set_points(catalog: &Catalog) {
    let pointing = Pointing { every_us: 0, hold: "clock".into(), order: vec!["web-*".into()] };
    let set = SetRow::new("shop".into(), &["name=*".into()], String::new(), 7, &pointing);
    catalog.put_set(&set).await.unwrap();
    assert_eq!(catalog.sets().await.unwrap()[0].pointing(), pointing);
    let member = PointMemberRow {
        vm: "not-a-vm".into(),
        name: "web-1".into(),
        lsn: 9,
        time_us: 5,
        method: "gate".into(),
        consistency: "crash".into(),
        hold_us: 3,
        error_us: 0,
        reason: "'quoted'".into(),
    };
    let point = |name: &str, time_us| {
        SetPointRow::new(NewSetPoint {
            set: "shop".into(),
            name: name.into(),
            time_us,
            consistency: "crash",
            cut: "barrier",
            hold_us: 3,
            bound_us: 0,
            members: vec![member.clone()],
            missing: Vec::new(),
        })
    };
    for (name, time_us) in [("", 10), ("", 20), ("", 30), ("x", 15)] {
        catalog.add_set_point(&point(name, time_us)).await.unwrap();
    }
    let taken = catalog.add_set_point(&point("x", 40)).await.unwrap_err();
    assert!(matches!(taken, CatalogError::Taken(_)), "{taken}");
    let times = |rows: Vec<SetPointRow>| rows.iter().map(SetPointRow::time_us).collect::<Vec<_>>();
    assert_eq!(times(catalog.set_points("shop", 0, u64::MAX, 10).await.unwrap()), [30, 20, 15, 10]);
    assert_eq!(times(catalog.set_points("shop", 0, 20, 2).await.unwrap()), [20, 15]);
    let named = catalog.set_bookmark("shop", "x").await.unwrap().unwrap();
    assert_eq!((named.members(), named.kind.as_str()), (vec![member.clone()], "bookmark"));
    assert!(catalog.set_bookmark("shop", "").await.unwrap().is_none());
    assert_eq!(catalog.cap_set_points("shop", 2).await.unwrap(), 1, "the oldest automatic one");
    assert_eq!(times(catalog.oldest_set_points("shop", 10).await.unwrap()), [20, 30]);
    assert_eq!(catalog.remove_set_points("shop").await.unwrap(), 3, "bookmarks, too");
    assert!(catalog.remove_set("shop").await.unwrap());
}

async fn rights(catalog: &Catalog) {
    let vm = VmId::random();
    let by = || "tidemark://admin/local".to_owned();
    let of_set = |person: &str, set: &str| RightRow::of_set(person, "bookmark", set, 7, by());
    let of_vm = |word: &str| RightRow::of_vm("anna", word, vm, 8, by());
    for right in [of_set("anna", "shop"), of_set("ben", "shop"), of_vm("recover"), of_vm("mount")] {
        assert!(catalog.grant_right(&right).await.unwrap());
        assert!(!catalog.grant_right(&right).await.unwrap(), "it is there");
    }
    assert_eq!(
        (catalog.rights().await.unwrap().len(), catalog.rights_of("ben").await.unwrap().len()),
        (4, 1)
    );
    assert!(catalog.revoke_right(&of_vm("mount")).await.unwrap());
    assert!(!catalog.revoke_right(&of_vm("mount")).await.unwrap());
    // The empty name is that of no set, though rights of VMs have it in its place.
    assert!(!catalog.remove_set("").await.unwrap());
    assert_eq!(catalog.forget_rights_of_set("").await.unwrap(), 0);
    assert_eq!(catalog.forget_rights_of_set("shop").await.unwrap(), 2);
    let left = catalog.rights_of("anna").await.unwrap();
    assert_eq!((left.len(), left[0].vm(), left[0].set(), left[0].granted_us()), (1, Some(vm), None, 8));
    catalog.remove_vm(vm, 9).await.unwrap();
    assert!(catalog.rights().await.unwrap().is_empty());
}
