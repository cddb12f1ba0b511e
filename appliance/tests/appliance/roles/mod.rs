//! What persons may do who are no administrators, each tried from a wrong certificate.

mod person;

use std::time::Duration;

use person::{Person, admin, call, grant, latest, protected, read, revoke, right, set};
use tidemark_appliance::pki::Role;
use tidemark_appliance::transport::PERSON_METHODS;
use tidemark_proto::METHODS;
use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::roles_client::RolesClient;
use tidemark_proto::v1::search_client::SearchClient;
use tidemark_proto::v1::sets_client::SetsClient;
use tidemark_proto::v1::{
    AdminRenewRequest, AssignPolicyRequest, ChangeSetRequest, Consistency, CreateSetBookmarkRequest,
    CreateSetRequest, CreateTokenRequest, DivergedRequest, Empty, FindSetPointRequest,
    ListCertificatesRequest, ListPointsRequest, ListRightsRequest, ListSetPointsRequest, ReadViewRequest,
    RemoveSetRequest, RemoveVmRequest, RevokeCertificateRequest, RightInfo, SetTagRequest,
    StartExportRequest, StopExportRequest, ViewPurpose,
};
use tonic::{Code, Status};

use crate::set_points::member::{Manner, Member};
use crate::site::{Site, key_and_csr};

const GOOD: Manner = Manner::Good(Consistency::Crash);

/// These judge by something else than a console's certificate.
const OTHERS: [&str; 3] = ["/tidemark.v1.Splitter/", "/tidemark.v1.Enrolment/", "/tidemark.v1.Restore/"];

fn is_denied(status: &Status, words: &str) {
    assert!(status.code() == Code::PermissionDenied && status.message().contains(words), "{words}: {status}");
}

/// Every call about points of a set, each with its refusal or `None`.
async fn about(site: &Site, person: &Person, set: &str, bookmark: &str) -> Vec<Option<Status>> {
    let mut sets = person.sets(site).await;
    let set = set.to_owned();
    let create = CreateSetBookmarkRequest { set: set.clone(), name: bookmark.into(), ..<_>::default() };
    let list = ListSetPointsRequest { set: set.clone(), ..<_>::default() };
    let find = FindSetPointRequest { set: set.clone(), at: latest() };
    let diverged = DivergedRequest { set, at: latest(), vm: String::new() };
    vec![
        sets.create_set_bookmark(create).await.err(),
        sets.list_set_points(list).await.err(),
        sets.find_set_point(find).await.err(),
        sets.diverged(diverged).await.err(),
    ]
}

async fn rights(site: &Site, person: &str) -> Vec<RightInfo> {
    let request = ListRightsRequest { person: person.into() };
    RolesClient::new(admin(site).await).list_rights(request).await.unwrap().into_inner().rights
}

#[tokio::test]
async fn a_person_has_the_points_of_its_set_and_can_call_nothing_else() {
    let site = Site::start().await;
    let _a = Member::start(&site, "a", GOOD, 10).await;
    let _b = Member::start(&site, "b", GOOD, 10).await;
    set(&site, "shop", "name=a").await;
    set(&site, "bank", "name=b").await;
    grant(&site, "anna", "bookmark", "set:shop").await;
    let anna = Person::of(&site, "anna").await;
    for refused in about(&site, &anna, "shop", "mine").await {
        assert!(refused.is_none(), "{refused:?}");
    }
    // A set of others is as one that does not exist.
    let (others, none) = (about(&site, &anna, "bank", "x").await, about(&site, &anna, "bonk", "x").await);
    for (other, none) in others.into_iter().zip(none) {
        let (other, none) = (other.unwrap(), none.unwrap());
        is_denied(&other, "'anna' has no right to");
        assert_eq!((other.code(), other.message()), (none.code(), &*none.message().replace("bonk", "bank")));
    }
    // Nor does it learn of a VM in no set of its own.
    let diverged = |vm: &str| DivergedRequest { set: "shop".into(), at: latest(), vm: vm.into() };
    let mut sets = anna.sets(&site).await;
    sets.diverged(diverged("a")).await.unwrap();
    let (other, none) =
        (sets.diverged(diverged("b")).await.unwrap_err(), sets.diverged(diverged("c")).await.unwrap_err());
    assert_eq!(other.message(), none.message().replace('c', "b"), "{other}");

    let channel = anna.channel(&site).await;
    let (mut denied, mut judged) = (0, 0);
    for method in METHODS {
        let outcome = call(&channel, method).await;
        if PERSON_METHODS.contains(method) {
            judged += 1;
            // Each names nothing that is its own; the list of its own exports is empty.
            let may = *method == "/tidemark.v1.Console/ListExports";
            assert_eq!(outcome.is_ok(), may, "{method}: {outcome:?}");
            let gate = outcome.is_err_and(|status| status.message().contains("is no administrator"));
            assert!(!gate, "{method} does not pass the gate");
        } else if OTHERS.iter().any(|service| method.starts_with(service)) {
            assert!(outcome.is_err(), "{method}");
        } else {
            denied += 1;
            is_denied(&outcome.unwrap_err(), "'anna' is no administrator and may only");
        }
    }
    assert_eq!(judged, PERSON_METHODS.len());
    assert!(denied > 50, "{denied} of {} methods", METHODS.len());
    for odd in ["/tidemark.v1.Sets/CreateSet?/tidemark.v1.Sets/Diverged", "/tidemark.v1.Sets/Diverged/"] {
        assert!(call(&channel, odd).await.is_err(), "{odd}");
    }
}

#[tokio::test]
async fn certificates_of_vms_and_none_call_no_method_of_consoles() {
    let site = Site::start().await;
    let (enrolled, key) = site.enrol(&site.token("a", false).await).await.unwrap();
    let vm = site.channel(Some((&enrolled.certificate_pem, &key))).await.unwrap();
    let nobody = site.channel(None).await.unwrap();
    for method in METHODS.iter().filter(|method| !OTHERS.iter().any(|other| method.starts_with(other))) {
        let status = call(&vm, method).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{method}: {status}");
        let status = call(&nobody, method).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{method}: {status}");
    }
}

#[tokio::test]
async fn a_person_changes_nothing_that_gives_rights() {
    let site = Site::start().await;
    site.guest("a", 1 << 20).await;
    set(&site, "shop", "name=b").await;
    for word in ["bookmark", "recover", "mount"] {
        grant(&site, "anna", word, "set:shop").await;
    }
    let anna = Person::of(&site, "anna").await;
    let (channel, gate) = (anna.channel(&site).await, "is no administrator");
    let mut sets = SetsClient::new(channel.clone());
    let rules = vec!["name=*".to_owned()];
    let change = ChangeSetRequest { name: "shop".into(), rules: rules.clone(), ..<_>::default() };
    is_denied(&sets.change_set(change).await.unwrap_err(), gate);
    let create = CreateSetRequest { name: "mine".into(), rules, ..<_>::default() };
    is_denied(&sets.create_set(create).await.unwrap_err(), gate);
    is_denied(&sets.remove_set(RemoveSetRequest { name: "shop".into() }).await.unwrap_err(), gate);
    let tag = SetTagRequest { vm: "a".into(), key: "app".into(), value: "shop".into() };
    is_denied(&SearchClient::new(channel.clone()).set_tag(tag).await.unwrap_err(), gate);
    let assign = AssignPolicyRequest { policy: "default".into(), vm: "a".into() };
    is_denied(&RetentionClient::new(channel.clone()).assign_policy(assign).await.unwrap_err(), gate);
    let mut roles = RolesClient::new(channel.clone());
    is_denied(&roles.grant_right(right("anna", "recover", "vm:a")).await.unwrap_err(), gate);
    is_denied(&roles.list_rights(ListRightsRequest::default()).await.unwrap_err(), gate);
    let mut console = anna.console(&site).await;
    let token = CreateTokenRequest { vm_name: "b".into(), ttl_seconds: 0, replace: false };
    is_denied(&console.create_token(token).await.unwrap_err(), gate);
    is_denied(&console.remove_vm(RemoveVmRequest { name: "a".into() }).await.unwrap_err(), gate);
    assert_eq!(rights(&site, "").await.len(), 3);

    // It renews its own certificate, for the same role and time, and so as long as it has a right.
    let (_, csr_pem) = key_and_csr();
    let renew = AdminRenewRequest { csr_pem };
    let renewed = console.renew_admin(renew.clone()).await.unwrap().into_inner();
    let (_, pem) = x509_parser::pem::parse_x509_pem(renewed.certificate_pem.as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    assert_eq!(Role::of(&leaf), Some(Role::Person("anna".into())));
    let days = (leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp()) / 86_400;
    assert_eq!(days, 90);
    for word in ["bookmark", "recover", "mount"] {
        revoke(&site, "anna", word, "set:shop").await;
    }
    let useless = console.renew_admin(renew).await.unwrap_err();
    assert_eq!(useless.code(), Code::FailedPrecondition, "{useless}");
}

#[tokio::test]
async fn to_recover_and_to_mount_are_rights_of_their_own_of_one_vm() {
    let site = Site::start().await;
    protected(&site, "a", 1).await;
    protected(&site, "b", 2).await;
    grant(&site, "ben", "recover", "vm:a").await;
    grant(&site, "cleo", "mount", "vm:a").await;
    grant(&site, "cleo", "mount", "vm:b").await;
    let (ben, cleo) = (Person::of(&site, "ben").await, Person::of(&site, "cleo").await);
    let (view, mut held) = ben.open(&site, "a", ViewPurpose::Recover).await.unwrap();
    assert_eq!(ben.read(&site, &view.view_id).await.unwrap(), [1; 512]);
    is_denied(&ben.open(&site, "a", ViewPurpose::Mount).await.err().unwrap(), "no right to mount the VM 'a'");
    is_denied(&cleo.open(&site, "a", ViewPurpose::Recover).await.err().unwrap(), "no right to recover");
    let (other, none) = (
        ben.open(&site, "b", ViewPurpose::Recover).await.err().unwrap(),
        ben.open(&site, "c", ViewPurpose::Recover).await.err().unwrap(),
    );
    is_denied(&other, "no right to recover the VM 'b'");
    assert_eq!(other.message(), none.message().replace("'c'", "'b'"));
    let points = |vm: &str| ListPointsRequest { vm: vm.into(), ..<_>::default() };
    let mut console = ben.console(&site).await;
    assert_eq!(console.list_points(points("a")).await.unwrap().into_inner().windows.len(), 1);
    is_denied(&console.list_points(points("b")).await.unwrap_err(), "no right");

    // Another's view is as none, also for whoever may mount the same VM; an administrator reads it.
    let foreign = cleo.read(&site, &view.view_id).await.unwrap_err();
    let none = cleo.read(&site, "6d0f6f0c-1f3f-4d63-9c6e-3e0a4c3f5b11").await.unwrap_err();
    assert_eq!((foreign.code(), foreign.message()), (Code::NotFound, none.message()));
    assert_eq!(read(&mut site.console().await, &view.view_id).await.unwrap(), [1; 512]);
    let request = ReadViewRequest { view_id: view.view_id.clone(), disk: "disk-2".into(), ..<_>::default() };
    assert_eq!(console.read_view(request).await.unwrap_err().code(), Code::NotFound);

    // What is revoked ends, and does not begin again.
    let (mounted, mut kept) = cleo.open(&site, "a", ViewPurpose::Mount).await.unwrap();
    revoke(&site, "ben", "recover", "vm:a").await;
    assert_eq!(ben.read(&site, &view.view_id).await.unwrap_err().code(), Code::NotFound);
    is_denied(&held.message().await.unwrap_err(), "was revoked");
    is_denied(&ben.open(&site, "a", ViewPurpose::Recover).await.err().unwrap(), "no right");
    is_denied(&console.list_points(points("a")).await.unwrap_err(), "no right");
    assert_eq!(cleo.read(&site, &mounted.view_id).await.unwrap(), [1; 512], "another's right stays");
    revoke(&site, "cleo", "mount", "vm:b").await;
    assert_eq!(cleo.read(&site, &mounted.view_id).await.unwrap(), [1; 512], "of another VM");
    let serial = cleo.issued.serial.clone();
    site.console().await.revoke_certificate(RevokeCertificateRequest { serial }).await.unwrap();
    assert_eq!(kept.message().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(cleo.read(&site, &mounted.view_id).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn exports_are_their_owners_and_end_with_the_right() {
    let site = Site::start().await;
    protected(&site, "a", 1).await;
    protected(&site, "b", 2).await;
    grant(&site, "ben", "recover", "vm:a").await;
    for person in ["cleo", "dora"] {
        grant(&site, person, "mount", "vm:a").await;
    }
    let [ben, cleo, dora] =
        [Person::of(&site, "ben").await, Person::of(&site, "cleo").await, Person::of(&site, "dora").await];
    let start = |vm: &str| StartExportRequest { vm: vm.into(), at: latest(), ..<_>::default() };
    is_denied(&ben.console(&site).await.start_export(start("a")).await.unwrap_err(), "no right to mount");
    is_denied(&cleo.console(&site).await.start_export(start("b")).await.unwrap_err(), "no right to mount");
    let mut own = cleo.console(&site).await;
    let id = own.start_export(start("a")).await.unwrap().into_inner().exports.remove(0).id;
    let by_admin = site.console().await.start_export(start("a")).await.unwrap().into_inner();
    let listed = async |person: &Person| {
        let exports = person.console(&site).await.list_exports(Empty {}).await.unwrap().into_inner().exports;
        exports.into_iter().map(|export| export.id).collect::<Vec<_>>()
    };
    assert_eq!((listed(&cleo).await, listed(&dora).await), (vec![id.clone()], vec![]));
    let stop = |id: &str| StopExportRequest { id: id.into() };
    for foreign in [&id, &by_admin.exports[0].id] {
        let status = dora.console(&site).await.stop_export(stop(foreign)).await.unwrap_err();
        let none = dora.console(&site).await.stop_export(stop("zzzzzzzz")).await.unwrap_err();
        assert_eq!(status.message(), none.message().replace("zzzzzzzz", foreign));
    }
    own.stop_export(stop(&id)).await.unwrap();
    assert!(listed(&cleo).await.is_empty());

    // With the right, and with a certificate of the person, they end; those of others go on.
    own.start_export(start("a")).await.unwrap();
    dora.console(&site).await.start_export(start("a")).await.unwrap();
    revoke(&site, "cleo", "mount", "vm:a").await;
    assert_eq!((listed(&cleo).await.len(), listed(&dora).await.len()), (0, 1));
    let serial = dora.issued.serial.clone();
    site.console().await.revoke_certificate(RevokeCertificateRequest { serial }).await.unwrap();
    let left = site.console().await.list_exports(Empty {}).await.unwrap().into_inner().exports;
    assert_eq!(left.iter().map(|export| &export.id).collect::<Vec<_>>(), [&by_admin.exports[0].id]);
    // One person cannot take all there is.
    grant(&site, "cleo", "mount", "vm:a").await;
    for _ in 0..16 {
        own.start_export(start("a")).await.unwrap();
    }
    let most = own.start_export(start("a")).await.unwrap_err();
    assert!(most.message().contains("which is the most"), "{most}");
}

#[tokio::test]
async fn a_right_of_a_set_is_one_of_the_vms_that_are_in_it_then() {
    let site = Site::start().await;
    let _a = Member::start(&site, "a", GOOD, 10).await;
    let _b = Member::start(&site, "b", GOOD, 10).await;
    set(&site, "shop", "name=*").await;
    let mut sets = SetsClient::new(admin(&site).await);
    let bookmark = CreateSetBookmarkRequest { set: "shop".into(), name: "x".into(), ..<_>::default() };
    sets.create_set_bookmark(bookmark).await.unwrap();
    grant(&site, "by-set", "recover", "set:shop").await;
    grant(&site, "by-vms", "recover", "vm:a").await;
    let (by_set, by_vms) = (Person::of(&site, "by-set").await, Person::of(&site, "by-vms").await);
    let find = async |person: &Person| {
        let request = FindSetPointRequest { set: "shop".into(), at: latest() };
        person.sets(&site).await.find_set_point(request).await
    };
    let opens = async |person: &Person, vm: &str| person.open(&site, vm, ViewPurpose::Recover).await.err();
    assert_eq!(find(&by_set).await.unwrap().into_inner().members.len(), 2);
    assert!(opens(&by_set, "a").await.is_none() && opens(&by_set, "b").await.is_none());
    is_denied(&by_set.open(&site, "a", ViewPurpose::Mount).await.err().unwrap(), "no right to mount");
    let denied: Vec<_> =
        about(&site, &by_set, "shop", "y").await.into_iter().map(|one| one.is_some()).collect();
    assert_eq!(denied, [true, true, false, true], "to recover is not to bookmark");

    // Of some members it is none of the set; of all of them it is enough to find a point.
    is_denied(&find(&by_vms).await.unwrap_err(), "no right to bookmark or recover or mount the set 'shop'");
    grant(&site, "by-vms", "mount", "vm:b").await;
    is_denied(&find(&by_vms).await.unwrap_err(), "no right");
    grant(&site, "by-vms", "recover", "vm:b").await;
    assert_eq!(find(&by_vms).await.unwrap().into_inner().members.len(), 2);

    // Who leaves the set is not in the right any more; a point with it is only for whoever may have all of it.
    let change = ChangeSetRequest { name: "shop".into(), rules: vec!["name=a".into()], ..<_>::default() };
    sets.change_set(change).await.unwrap();
    assert!(opens(&by_set, "a").await.is_none());
    is_denied(&opens(&by_set, "b").await.unwrap(), "no right to recover the VM 'b'");
    revoke(&site, "by-vms", "recover", "vm:b").await;
    is_denied(&find(&by_vms).await.unwrap_err(), "no right");

    // A set that is removed takes its rights with it, and what is open by them.
    let (view, _held) = by_set.open(&site, "a", ViewPurpose::Recover).await.unwrap();
    sets.remove_set(RemoveSetRequest { name: "shop".into() }).await.unwrap();
    assert_eq!(by_set.read(&site, &view.view_id).await.unwrap_err().code(), Code::NotFound);
    set(&site, "shop", "name=*").await;
    is_denied(&opens(&by_set, "a").await.unwrap(), "no right");
    assert!(rights(&site, "by-set").await.is_empty());
    let nameless = sets.remove_set(RemoveSetRequest::default()).await.unwrap_err();
    assert_eq!(nameless.code(), Code::NotFound);
    assert_eq!(rights(&site, "by-vms").await.len(), 2, "those of VMs stay");
}

#[tokio::test]
async fn rights_are_of_a_vm_and_not_of_its_name_and_survive_a_restart() {
    let mut site = Site::start().await;
    protected(&site, "a", 1).await;
    protected(&site, "b", 2).await;
    for vm in ["vm:a", "vm:b", "vm:b"] {
        grant(&site, "ben", "recover", vm).await;
    }
    let ben = Person::of(&site, "ben").await;
    site.restart().await;
    let (view, held) = ben.open(&site, "a", ViewPurpose::Recover).await.unwrap();
    assert_eq!(ben.read(&site, &view.view_id).await.unwrap(), [1; 512]);
    drop(held);
    let listed = rights(&site, "ben").await;
    let shown: Vec<_> = listed.iter().map(|one| (one.right.as_str(), one.vm.as_str())).collect();
    assert_eq!(shown.len(), 2, "granted twice is granted once: {shown:?}");
    assert!(shown.contains(&("recover", "a")) && shown.contains(&("recover", "b")));
    assert!(listed.iter().all(|one| one.granted_by == "tidemark://admin/local" && one.granted_us > 0));

    let remove = || RemoveVmRequest { name: "a".into() };
    let began = std::time::Instant::now();
    while let Err(status) = site.console().await.remove_vm(remove()).await {
        assert!(began.elapsed() < crate::site::PATIENCE, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    protected(&site, "a", 3).await;
    is_denied(&ben.open(&site, "a", ViewPurpose::Recover).await.err().unwrap(), "no right");
    assert_eq!(rights(&site, "").await.len(), 1);
    let trail = site.appliance().core().catalog.audit_trail().await.unwrap();
    let said = |action: &str| trail.iter().filter(|entry| entry.action == action).count();
    assert_eq!((said("grant right"), said("issue certificate")), (2, 1));
    let opened = trail.iter().find(|entry| entry.action == "open view").unwrap();
    assert_eq!((opened.actor.as_str(), opened.target.as_str()), ("tidemark://person/ben", "a"));
    assert!(opened.detail.ends_with("to recover"), "{opened:?}");
}

#[tokio::test]
async fn certificates_are_for_persons_with_a_right_and_end() {
    let site = Site::start().await;
    protected(&site, "a", 1).await;
    let nothing = Person::issue(&site, "anna", 0).await.err().unwrap();
    assert_eq!(nothing.code(), Code::FailedPrecondition, "{nothing}");
    grant(&site, "anna", "recover", "vm:a").await;
    let long = Person::issue(&site, "anna", 366 * 86_400).await.err().unwrap();
    assert!(long.message().contains("365 days"), "{long}");
    let mut roles = RolesClient::new(admin(&site).await);
    let refused = [
        (right("../admin/local", "recover", "vm:a"), Code::InvalidArgument),
        (right("", "recover", "vm:a"), Code::InvalidArgument),
        (right(&"x".repeat(300), "recover", "vm:a"), Code::InvalidArgument),
        (right("anna", "everything", "vm:a"), Code::InvalidArgument),
        (right("anna", "bookmark", "vm:a"), Code::InvalidArgument),
        (right("anna", "recover", "vm:"), Code::InvalidArgument),
        (right("anna", "recover", "vm:nobody"), Code::NotFound),
        (right("anna", "recover", "set:nothing"), Code::NotFound),
    ];
    for (request, code) in refused {
        let status = roles.grant_right(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status}");
    }
    let both = tidemark_proto::v1::RightRequest { set: "s".into(), ..right("anna", "recover", "vm:a") };
    assert_eq!(roles.grant_right(both).await.unwrap_err().code(), Code::InvalidArgument);
    let none = roles.revoke_right(right("anna", "mount", "vm:a")).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none}");

    let (short, long) = (
        Person::issue(&site, "anna", 3).await.unwrap(),
        Person::issue(&site, "anna", 365 * 86_400).await.unwrap(),
    );
    let points = || ListPointsRequest { vm: "a".into(), ..<_>::default() };
    let (mut expiring, mut lasting) = (short.console(&site).await, long.console(&site).await);
    expiring.list_points(points()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(4100)).await;
    let expired = expiring.list_points(points()).await.unwrap_err();
    assert!(expired.code() == Code::Unauthenticated && expired.message().contains("expired"), "{expired}");
    lasting.list_points(points()).await.unwrap();
    let all = site.console().await.list_certificates(ListCertificatesRequest {}).await.unwrap().into_inner();
    let listed = all.certificates.iter().find(|one| one.serial == long.issued.serial).unwrap();
    assert_eq!((listed.role.as_str(), listed.subject.as_str(), listed.revoked), ("person", "anna", false));
    let serial = long.issued.serial.clone();
    site.console().await.revoke_certificate(RevokeCertificateRequest { serial }).await.unwrap();
    let revoked = lasting.list_points(points()).await.unwrap_err();
    assert!(revoked.code() == Code::Unauthenticated && revoked.message().contains("revoked"), "{revoked}");
}
