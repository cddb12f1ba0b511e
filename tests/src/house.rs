//! House checks: the dependency direction between the crates, as the "must never know" column of the README states it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// How far a rule looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only the crate's own `[dependencies]`: what it can name in its source.
    Direct,
    /// Everything linked into it.
    Transitive,
}

/// `krate` must not depend on any of `forbidden`.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The package the rule binds.
    pub krate: &'static str,
    /// How far it binds.
    pub reach: Reach,
    /// Package names that must not appear.
    pub forbidden: &'static [&'static str],
    /// What the design says, for the message of a broken rule.
    pub why: &'static str,
}

/// The dependency direction of the workspace.
pub const RULES: &[Rule] = &[
    Rule {
        krate: "tidemark-journal",
        reach: Reach::Transitive,
        forbidden: &[
            "tokio",
            "tonic",
            "hyper",
            "prost",
            "sqlx",
            "sqlx-core",
            "rustls",
            "socket2",
            "chrono",
            "jiff",
            "time",
            "tidemark-appliance",
            "tidemark-splitter",
            "tidemark-splitter-core",
        ],
        // aws-lc-rs is there on purpose: the chunk store encrypts with the one provider of cryptography.
        why: "the journal knows neither the network, SQL, tokio nor the wall clock",
    },
    Rule {
        krate: "tidemark-splitter-core",
        reach: Reach::Direct,
        forbidden: &["tokio", "tokio-stream", "nix", "libc", "rustix", "aya", "tonic", "socket2"],
        why: "the engine makes no OS call",
    },
    Rule {
        krate: "tidemark-splitter-core",
        reach: Reach::Transitive,
        forbidden: &[
            "tidemark-journal",
            "tidemark-splitter",
            "tidemark-appliance",
            "sqlx",
            "sqlx-core",
            "aya",
            "nix",
        ],
        why: "the engine does not know how writes are captured nor how they are stored",
    },
    Rule {
        krate: "tidemark-proto",
        reach: Reach::Transitive,
        forbidden: &[
            "tidemark-journal",
            "tidemark-splitter",
            "tidemark-splitter-core",
            "tidemark-appliance",
            "sqlx",
            "sqlx-core",
            "aya",
            "nix",
            "fuser",
        ],
        why: "the protocol knows neither storage nor disks",
    },
    Rule {
        krate: "tidemark-splitter",
        reach: Reach::Transitive,
        forbidden: &["tidemark-journal", "tidemark-appliance", "sqlx", "sqlx-core", "fuser"],
        why: "the splitter knows neither the journal nor SQL",
    },
    Rule {
        krate: "tidemark-appliance",
        reach: Reach::Transitive,
        forbidden: &["tidemark-splitter", "tidemark-splitter-core", "aya", "libbpf-sys"],
        why: "the appliance knows nothing of guest kernels",
    },
    Rule {
        krate: "tidemark-console-cli",
        reach: Reach::Transitive,
        forbidden: &[
            "tidemark-appliance",
            "tidemark-splitter",
            "tidemark-splitter-core",
            "sqlx",
            "sqlx-core",
            "aya",
        ],
        why: "the console talks to the appliance and links the journal for reading only",
    },
];

/// Crates that may be nowhere in the tree, with the reason.
pub const BANNED: &[(&str, &str)] = &[
    ("ring", "two rustls providers panic at run time; aws-lc-rs is the one"),
    ("openssl-sys", "rustls is the one TLS library"),
    ("native-tls", "rustls is the one TLS library"),
];

/// The workspace's root folder.
#[must_use]
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Names of the packages that `krate` reaches through normal dependencies, itself left out. Features are resolved for
/// this package alone, as in a build of it: `cargo metadata` would unite them over the workspace.
///
/// # Errors
/// When `cargo tree` fails.
pub fn dependencies(root: &Path, krate: &str, reach: Reach) -> Result<BTreeSet<String>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["tree", "--locked", "-e", "normal", "--prefix", "none", "--format", "{p}"]);
    cargo.args(["-p", krate]);
    if reach == Reach::Direct {
        cargo.args(["--depth", "1"]);
    }
    names(&run(&mut cargo)?, Some(krate))
}

/// Names of all packages of the workspace's tree: build and development dependencies, every target.
///
/// # Errors
/// When `cargo tree` fails.
pub fn whole_tree(root: &Path) -> Result<BTreeSet<String>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args([
        "tree",
        "--locked",
        "--workspace",
        "-e",
        "all",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    names(&run(&mut cargo)?, None)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("cargo tree prints UTF-8")
}

fn names(tree: &str, without: Option<&str>) -> Result<BTreeSet<String>> {
    let names: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !name.starts_with('[') && Some(*name) != without)
        .map(str::to_owned)
        .collect();
    ensure!(!names.is_empty(), "cargo tree named no package");
    Ok(names)
}

/// One line for each broken rule of `rules`.
///
/// # Errors
/// When the tree cannot be read.
pub fn broken_rules(root: &Path, rules: &[Rule]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for rule in rules {
        let reached = dependencies(root, rule.krate, rule.reach)?;
        for name in rule.forbidden.iter().filter(|name| reached.contains(**name)) {
            broken.push(format!("{} depends on {name} ({:?}), but {}", rule.krate, rule.reach, rule.why));
        }
    }
    Ok(broken)
}
