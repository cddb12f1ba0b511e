//! The architecture invariants of the README, checked.

use tidemark_tests::house::{self, BANNED, RULES, Reach, Rule};

#[test]
fn crates_depend_only_in_the_designed_direction() {
    let broken = house::broken_rules(&house::workspace_root(), RULES).unwrap();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Negative control: the same checker finds dependencies that exist, near and far.
#[test]
fn the_direction_checker_fails_on_a_broken_rule() {
    let rules = [
        Rule {
            krate: "tidemark-journal",
            reach: Reach::Direct,
            forbidden: &["tidemark-proto"],
            why: "control",
        },
        Rule {
            krate: "tidemark-appliance",
            reach: Reach::Transitive,
            forbidden: &["blake3", "h2"],
            why: "control",
        },
    ];
    let broken = house::broken_rules(&house::workspace_root(), &rules).unwrap();
    assert_eq!(broken.len(), 3, "{broken:?}");
    // h2 comes in through tonic only: a direct look must not see it.
    let near = house::dependencies(&house::workspace_root(), "tidemark-appliance", Reach::Direct).unwrap();
    assert!(!near.contains("h2") && near.contains("tonic"), "{near:?}");
}

#[test]
fn there_is_one_tls_provider_and_no_other_banned_crate() {
    let tree = house::whole_tree(&house::workspace_root()).unwrap();
    assert!(
        tree.contains("aws-lc-rs") && tree.contains("rustls"),
        "the tree was read: {} packages",
        tree.len()
    );
    for (name, why) in BANNED {
        assert!(!tree.contains(*name), "{name} is in the tree: {why}");
    }
}

/// Versions live in the root manifest and nowhere else.
#[test]
fn members_take_versions_from_the_workspace() {
    let root = house::workspace_root();
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .unwrap();
    for package in &metadata.packages {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        for (number, line) in manifest.lines().enumerate() {
            let own_version = line.contains("version = \"") && !line.starts_with("version");
            assert!(!own_version, "{}:{}: {line}", package.manifest_path, number + 1);
        }
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}: the lint table", package.manifest_path);
    }
}
