//! What commands print, and how they fail, against a service over memory.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "tests"
)]

mod fixture;

use fixture::{Fixture, content};

#[test]
fn the_json_contract() {
    let fixture = Fixture::start(vec![("disk-1", content(4 << 20, 1))]);
    let vms = fixture.json(&["vm", "list"]);
    for field in
        ["name", "id", "state", "generation", "captured_lsn", "durable_lsn", "rpo_ms", "lag_bytes", "disks"]
    {
        assert!(!vms[0][field].is_null(), "{field}");
    }
    assert_eq!(vms[0]["disks"][0]["size_bytes"], 1 << 30);
    let bookmark = fixture.json(&["bookmark", "create", "b1", "--vm", "web-1"]);
    assert_eq!(bookmark["points"][0]["lsn"], 99);
    for field in ["name", "id", "requested", "achieved", "hold_us"] {
        assert!(!bookmark[field].is_null(), "{field}");
    }
    let points = fixture.json(&["point", "list", "web-1", "--from", "-30s"]);
    assert_eq!(points["windows"][0]["from_lsn"], 70);
    assert_eq!(points["windows"][0]["to_time"], "2026-11-21T01:01:40.000000Z");
    assert_eq!(points["points"][0]["name"], "good");
    assert!(points["gaps"][0]["to_lsn"].is_null());
    let export = fixture.json(&["export", "web-1", "--at", "bookmark:good"]);
    assert_eq!((&export[0]["lsn"], &export[0]["disk"]), (&42.into(), &"disk-1".into()));
    let tls = fixture.json(&["export", "web-1", "--at", "latest", "--tls", "h"]);
    let folder = fixture.path("config/tidemark/exports/7c1f");
    assert_eq!(tls[0]["uri"], format!("nbds://h:1/disk-1?tls-certificates={}", folder.display()));
    assert!(folder.join("client-key.pem").exists());
    assert_eq!(fixture.json(&["export", "list"]), serde_json::json!([]));
    assert_eq!(fixture.json(&["status"])["alarms"][0]["severity"], "warning");
    assert_eq!(fixture.json(&["cert", "list"])[0]["serial"], "ab");
}

#[test]
fn texts_for_people_and_scripts() {
    let fixture = Fixture::start(vec![("disk-1", content(4 << 20, 1))]);
    let token = fixture.succeed(&["token", "create", "--vm", "web-1", "--ttl", "90s"]);
    assert_eq!(token.split_whitespace().last(), Some("tm1.x.90"));
    let status = fixture.succeed(&["status"]);
    assert!(status.contains("would lose 0.7 s / 3.1 MB"), "{status}");
    assert!(status.contains("WARNING: web-1: behind"), "{status}");
    let points = fixture.succeed(&["point", "list", "web-1"]);
    assert!(points.contains("bookmark:good") && points.contains("still open"), "{points}");
    assert!(fixture.succeed(&["vm", "show", "web-1"]).contains("disk-1"));
    fixture.succeed(&["vm", "wait", "web-1", "--state", "protected", "--timeout", "5s"]);
    fixture.succeed(&["vm", "remove", "web-1"]);
    fixture.succeed(&["export", "stop", "7c1f"]);
}

#[test]
fn differences_for_people_and_programs() {
    let fixture = Fixture::start(Vec::new());
    let diff = ["diff", "web-1", "--from", "lsn:10", "--to", "lsn:60"];
    let text = fixture.succeed(&diff);
    assert!(text.contains("(lsn:10)") && text.contains("25.6 KB") && text.contains("50"), "{text}");
    assert!(text.contains("and 30 more: --all") && text.contains("nothing"), "{text}");
    let all = fixture.succeed(&[&diff[..], &["--all"]].concat());
    assert!(all.starts_with("disk-1  10240  512\n") && all.contains("disk-1  60416  512\n"), "{all}");
    let json = fixture.json(&diff);
    assert_eq!(json["ranges"].as_array().unwrap().len(), 50);
    assert_eq!(json["ranges"][1], serde_json::json!({ "disk": "disk-1", "offset": 11264, "bytes": 512 }));
    assert_eq!(json["disks"][0]["changed_bytes"], 25_600);
    assert_eq!(json["disks"][1]["changed_ranges"], 0);
    assert_eq!(json["to"]["lsn"], 60);
    let none = fixture.json(&["diff", "web-1", "--from", "lsn:10", "--to", "lsn:10"]);
    assert_eq!(none["ranges"], serde_json::json!([]));
    assert!(fixture.fail(1, &["diff", "web-1", "--from", "lsn:1", "--to", "lsn:999"]).contains("nearest"));
    fixture.fail(2, &["diff", "web-1", "--from", "lsn:1"]);
}

#[test]
fn failures_are_one_line_with_the_right_code() {
    let mut fixture = Fixture::start(vec![("disk-1", content(4 << 20, 1))]);
    assert!(fixture.fail(1, &["vm", "show", "nobody"]).contains("tidemark vm list"));
    assert!(fixture.fail(1, &["token", "revoke", "9"]).contains("tidemark token list"));
    assert!(
        fixture
            .fail(1, &["recover", "web-1", "--at", "lsn:999", "--to", "/nonexistent/x"])
            .contains("nearest")
    );
    assert!(
        fixture
            .fail(1, &["vm", "wait", "nobody", "--state", "protected", "--timeout", "1s"])
            .contains("enrolled")
    );
    let timed_out = fixture.fail(1, &["vm", "wait", "web-1", "--state", "resync", "--timeout", "1s"]);
    assert!(timed_out.contains("protected instead of resync"), "{timed_out}");
    fixture.fail(2, &["recover", "web-1", "--at", "yesterday", "--to", "/x"]);
    fixture.fail(2, &["recover", "web-1", "--to", "/x"]);
    fixture.fail(2, &["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", "/tmp"]);
    fixture.fail(2, &["frobnicate"]);
    fixture.fail(2, &["point", "list", "web-1", "--set", "s"]);
    let level = fixture.run(&["bookmark", "create", "b", "--vm", "web-1", "--consistency", "application"]);
    assert_eq!(level.status.code(), Some(1));
    fixture.succeed(&[
        "bookmark",
        "create",
        "b",
        "--vm",
        "web-1",
        "--consistency",
        "application",
        "--allow-lower",
    ]);
    assert!(fixture.fail(1, &["--context", "/nonexistent", "status"]).contains("admin.context"));
    let stranger = Fixture::start(Vec::new());
    let mixed = std::fs::read_to_string(stranger.path("context")).unwrap();
    let address =
        std::fs::read_to_string(fixture.path("context")).unwrap().lines().next().unwrap().to_owned();
    let mixed = mixed.replace(mixed.lines().next().unwrap(), &address);
    std::fs::write(fixture.path("mixed"), mixed).unwrap();
    let distrust = fixture.fail(1, &["--context", fixture.path("mixed").to_str().unwrap(), "status"]);
    assert!(distrust.contains("trust"), "{distrust}");
    fixture.kill();
    assert!(fixture.fail(1, &["status"]).contains("cannot reach the appliance"));
}

#[test]
fn an_expiring_certificate_renews_itself_and_never_stops_a_command() {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;
    let fixture = Fixture::start(vec![("disk-1", content(4 << 20, 1))]);
    let path = fixture.path("expiring-context");
    let list = ["--context", path.to_str().unwrap(), "vm", "list"];
    let before = std::fs::read_to_string(&path).unwrap();
    // Refused: a line says so, and the command does what it was asked to.
    let issuer = fixture.state.issuer.lock().unwrap().take();
    let output = fixture.run(&list);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("web-1"));
    assert!(stderr.lines().count() == 1 && stderr.contains("cannot be renewed"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    // Renewed, without a word, and only once.
    *fixture.state.issuer.lock().unwrap() = issuer;
    for _ in 0..3 {
        assert!(fixture.succeed(&list).contains("web-1"));
        assert_eq!(fixture.state.renewals.load(Ordering::Relaxed), 1);
    }
    let field = |text: &str, name: &str| {
        let table: toml::Table = toml::from_str(text).unwrap();
        table[name].as_str().unwrap().to_owned()
    };
    let after = std::fs::read_to_string(&path).unwrap();
    for (name, same) in [("address", true), ("ca_pem", true), ("certificate_pem", false), ("key_pem", false)]
    {
        assert_eq!(field(&after, name) == field(&before, name), same, "{name}");
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // One that has years left is left alone.
    fixture.succeed(&["vm", "list"]);
    assert_eq!(fixture.state.renewals.load(Ordering::Relaxed), 1);
}

#[test]
fn help_shows_an_example_everywhere() {
    let fixture = Fixture::start(Vec::new());
    for command in ["token create", "vm wait", "recover", "mount", "export", "journal verify", "status"] {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        assert!(fixture.succeed(&arguments).contains("Example"), "{command}");
    }
}
