//! Consistency sets: who is in them, who comes and goes by itself, and which policy that gives.

use std::collections::BTreeSet;

use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::search_client::SearchClient;
use tidemark_proto::v1::sets_client::SetsClient;
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, ChangeSetRequest, CreateSetRequest, Empty, PreviewSetRequest,
    RemoveSetRequest, RemoveVmRequest, RunRetentionRequest, SetInfo, SetTagRequest, ShowSetRequest,
};
use tonic::Code;
use tonic::transport::Channel;

use crate::site::Site;

async fn channel(site: &Site) -> Channel {
    let context = site.context();
    site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap()
}

async fn sets(site: &Site) -> SetsClient<Channel> {
    SetsClient::new(channel(site).await)
}

async fn retention(site: &Site) -> RetentionClient<Channel> {
    RetentionClient::new(channel(site).await)
}

fn request(name: &str, rules: &[&str], policy: &str) -> CreateSetRequest {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    CreateSetRequest { name: name.into(), rules, policy: policy.into(), points: None }
}

async fn show(site: &Site, name: &str) -> SetInfo {
    sets(site).await.show_set(ShowSetRequest { name: name.into() }).await.unwrap().into_inner()
}

fn members(set: &SetInfo) -> Vec<&str> {
    set.members.iter().map(|member| member.vm.as_str()).collect()
}

async fn enrol(site: &Site, name: &str) {
    let token = site.token(name, false).await;
    site.enrol(&token).await.unwrap();
}

async fn tag(site: &Site, vm: &str, key: &str, value: &str) {
    let request = SetTagRequest { vm: vm.into(), key: key.into(), value: value.into() };
    SearchClient::new(channel(site).await).set_tag(request).await.unwrap();
}

/// The VMs that have a policy, as retention itself sees it after a pass.
async fn having(site: &Site, policy: &str) -> BTreeSet<String> {
    let mut retention = retention(site).await;
    retention.run_retention(RunRetentionRequest::default()).await.unwrap();
    let all = retention.list_policies(Empty {}).await.unwrap().into_inner().policies;
    all.into_iter().find(|named| named.name == policy).unwrap().vms.into_iter().collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn vms_come_to_a_set_and_leave_it_by_themselves() {
    let mut site = Site::start().await;
    enrol(&site, "web-1").await;
    enrol(&site, "db-1").await;
    let rules = ["name=web-*", "tag:app=shop,name=db-*"];
    let preview = PreviewSetRequest { rules: rules.map(str::to_owned).to_vec() };
    let seen = sets(&site).await.preview_set(preview).await.unwrap().into_inner();
    assert_eq!(members(&seen), ["web-1"]);
    assert!(sets(&site).await.list_sets(Empty {}).await.unwrap().into_inner().sets.is_empty());
    let made = sets(&site).await.create_set(request("shop", &rules, "")).await.unwrap().into_inner();
    assert_eq!(members(&made), ["web-1"]);
    assert!(made.members[0].since_us > 0);

    // One that comes later, one that is tagged; nobody touches the set.
    enrol(&site, "web-2").await;
    tag(&site, "db-1", "app", "shop").await;
    let now = show(&site, "shop").await;
    assert_eq!(members(&now), ["db-1", "web-1", "web-2"]);
    assert_eq!(now.members[0].rules, ["tag:app=shop,name=db-*"]);
    let told: Vec<_> = now.changes.iter().map(|change| (change.vm.as_str(), change.cause.as_str())).collect();
    assert_eq!(told, [("db-1", "tag app=shop"), ("web-2", "the VM was enrolled"), ("web-1", "create set")]);
    tag(&site, "db-1", "app", "").await;
    site.console().await.remove_vm(RemoveVmRequest { name: "web-2".into() }).await.unwrap();
    let now = show(&site, "shop").await;
    assert_eq!(members(&now), ["web-1"]);
    let left: Vec<_> = now.changes.iter().filter(|change| !change.joined).map(|change| &change.vm).collect();
    assert_eq!(left, ["web-2", "db-1"]);

    // It is all there after a restart, and nobody seems to have moved.
    let before = now.changes.len();
    site.restart().await;
    let now = show(&site, "shop").await;
    assert_eq!((members(&now), now.changes.len()), (vec!["web-1"], before));
    sets(&site).await.remove_set(RemoveSetRequest { name: "shop".into() }).await.unwrap();
    let gone = sets(&site).await.show_set(ShowSetRequest { name: "shop".into() }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(site.vm("web-1").await.name, "web-1");
}

#[tokio::test]
async fn the_oldest_set_with_a_policy_gives_it_and_a_vms_own_goes_before() {
    let site = Site::start().await;
    for name in ["web-1", "web-2", "db-1"] {
        enrol(&site, name).await;
    }
    let toml = "[policy.gold]\nwindow = \"72h\"\n[policy.tin]\nwindow = \"1h\"\n".to_owned();
    retention(&site).await.apply_policies(ApplyPoliciesRequest { toml, create: false }).await.unwrap();
    let mut calls = sets(&site).await;
    calls.create_set(request("plain", &["name=*"], "")).await.unwrap();
    calls.create_set(request("web", &["name=web-*"], "gold")).await.unwrap();
    calls.create_set(request("all", &["name=*"], "tin")).await.unwrap();
    assert_eq!(having(&site, "gold").await, names(&["web-1", "web-2"]));
    assert_eq!(having(&site, "tin").await, names(&["db-1"]));
    let request = AssignPolicyRequest { policy: "tin".into(), vm: "web-2".into() };
    retention(&site).await.assign_policy(request).await.unwrap();
    assert_eq!(having(&site, "tin").await, names(&["db-1", "web-2"]));
    let shown = show(&site, "all").await;
    let by: Vec<_> = shown.members.iter().map(|member| member.policy_by.as_str()).collect();
    assert_eq!(by, ["set all", "set web", "own"]);
    assert_eq!(shown.members[1].other_sets, ["plain", "web"]);

    // What a set gave goes with the set, also from the journal's own copy.
    let change =
        ChangeSetRequest { name: "web".into(), policy: Some(String::new()), ..ChangeSetRequest::default() };
    calls.change_set(change).await.unwrap();
    assert_eq!(having(&site, "gold").await, names(&[]));
    calls.remove_set(RemoveSetRequest { name: "all".into() }).await.unwrap();
    assert_eq!(having(&site, "default").await, names(&["db-1", "web-1"]));
    assert_eq!(having(&site, "tin").await, names(&["web-2"]));
}

#[tokio::test]
async fn sets_are_administrators_and_nonsense_is_refused() {
    let site = Site::start().await;
    let mut calls = sets(&site).await;
    calls.create_set(request("shop", &["name=web-*"], "")).await.unwrap();
    let bad = [
        (request("shop", &["name=*"], ""), "exists"),
        (request("-shop", &["name=*"], ""), "letters"),
        (request("a", &[], ""), "1 to 32 rules"),
        (request("a", &["web-*"], ""), "no rule"),
        (request("a", &["name=*"], "gold"), "no policy named"),
    ];
    for (request, words) in bad {
        let status = calls.create_set(request).await.unwrap_err();
        assert!(status.message().contains(words), "{words}: {status}");
    }
    let (enrolled, key) = site.enrol(&site.token("web-1", false).await).await.unwrap();
    for identity in [Some((enrolled.certificate_pem.as_str(), key.as_str())), None] {
        let mut foreign = SetsClient::new(site.channel(identity).await.unwrap());
        let status = foreign.create_set(request("b", &["name=*"], "")).await.unwrap_err();
        assert!(matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated), "{status}");
        assert!(foreign.list_sets(Empty {}).await.is_err());
    }
}

#[tokio::test]
async fn sets_and_tags_outlive_the_catalog() {
    let mut site = Site::start().await;
    enrol(&site, "web-1").await;
    enrol(&site, "db-1").await;
    tag(&site, "db-1", "app", "shop").await;
    let made = request("shop", &["name=web-*", "tag:app=shop"], "");
    sets(&site).await.create_set(made).await.unwrap();
    sets(&site).await.create_set(request("gone", &["name=db-*"], "")).await.unwrap();
    sets(&site).await.remove_set(RemoveSetRequest { name: "gone".into() }).await.unwrap();
    site.lose_catalog().await;
    assert_eq!(members(&show(&site, "shop").await), ["db-1", "web-1"]);
    let all = sets(&site).await.list_sets(Empty {}).await.unwrap().into_inner().sets;
    assert_eq!(all.iter().map(|set| &set.name[..]).collect::<Vec<_>>(), ["shop"]);
    // A damaged copy is said to be one, and stops nothing.
    let copy = site.settings.data.join("sets.json");
    let damaged = std::fs::read_to_string(&copy).unwrap().replace("web-", "wob-");
    site.stop().await;
    std::fs::write(&copy, damaged).unwrap();
    site.lose_catalog().await;
    assert!(sets(&site).await.list_sets(Empty {}).await.unwrap().into_inner().sets.is_empty());
}
