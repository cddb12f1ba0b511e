//! Objects by the real programs: what is put comes back, whatever is killed in between, and nothing half is ever seen.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tidemark_tests::site::{Site, program};

const MIB: usize = 1 << 20;

/// Bytes that neither repeat nor compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; bytes];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn write(site: &Site, name: &str, content: &[u8]) -> PathBuf {
    let path = site.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(site: &Site) -> Vec<String> {
    let list = site.cli_json(&["object", "list"]).unwrap();
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

fn new_bytes(put: &Value) -> u64 {
    put["new_bytes"].as_u64().unwrap()
}

fn put_in_background(site: &Site, arguments: &[&str]) -> std::process::Child {
    Command::new(program("tidemark").unwrap())
        .arg("--context")
        .arg(site.data().join("admin.context"))
        .args(["object", "put", "--json"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until `child` is in the middle of its upload, however slow the machine is: it reads the file only for an
/// appliance that has told it where to begin, and a few messages ahead of the network at most.
fn wait_for_the_middle(child: &mut std::process::Child) {
    let read_bytes = |pid: u32| -> Option<usize> {
        let counters = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        counters.lines().find_map(|line| line.strip_prefix("rchar: ")).and_then(|count| count.parse().ok())
    };
    while read_bytes(child.id()).is_some_and(|bytes| bytes < 24 * MIB) {
        assert!(child.try_wait().unwrap().is_none(), "the upload ended before its middle");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn files_are_kept_deduplicated_and_come_back_verified() {
    let mut site = Site::start("objects").unwrap();
    // No whole number of sectors, a hole, and an end that is zero.
    let mut content = noise(1, 5 * MIB);
    content.extend(vec![0; 3 * MIB]);
    content.extend(noise(2, MIB + 123));
    content.extend(vec![0; 77]);
    let iso = write(&site, "debian.ISO", &content);
    let put = site.cli_json(&["object", "put", text(&iso), "--tag", "os=debian"]).unwrap();
    assert_eq!((put["kind"].as_str(), put["size_bytes"].as_u64()), (Some("iso"), Some(content.len() as u64)));
    assert_eq!(put["blake3"].as_str().unwrap(), blake3::hash(&content).to_hex().as_str());
    let new = new_bytes(&put);
    assert!(new >= 6 * MIB as u64 && new < 6 * MIB as u64 + (300 << 10), "holes are not stored: {new}");
    let refused = site.cli_refused(&["object", "put", text(&iso)]).unwrap();
    assert!(refused.contains("exists"), "{refused}");

    // The same again is nothing new, and more of it is what is more.
    let again = site.cli_json(&["object", "put", text(&iso), "--name", "copy"]).unwrap();
    assert_eq!(new_bytes(&again), 0);
    let mut longer = content[..5 * MIB].to_vec();
    longer.extend(noise(3, MIB));
    let golden = write(&site, "golden.raw", &longer);
    let options = ["--name", "golden", "--kind", "template", "--publish", "--hold", "--tag", "os=debian"];
    let put = site.cli_json(&[&["object", "put", text(&golden)][..], &options].concat()).unwrap();
    assert!((MIB as u64..MIB as u64 + (200 << 10)).contains(&new_bytes(&put)), "{put}");
    let refused = site.cli_refused(&["object", "put", text(&golden), "--name", "x", "--publish"]).unwrap();
    assert!(refused.contains("--kind template"), "{refused}");

    for (name, expected) in [("debian.ISO", &content), ("copy", &content), ("golden", &longer)] {
        let to = site.path().join(format!("{name}.back"));
        site.cli(&["object", "get", name, "--to", text(&to)]).unwrap();
        assert!(fs::read(&to).unwrap() == *expected, "{name}");
        let refused = site.cli_refused(&["object", "get", name, "--to", text(&to)]).unwrap();
        assert!(refused.contains("--overwrite"), "{refused}");
        site.cli(&["object", "get", name, "--to", text(&to), "--overwrite"]).unwrap();
    }
    let empty = write(&site, "empty", b"");
    site.cli(&["object", "put", text(&empty)]).unwrap();
    site.cli(&["object", "get", "empty", "--to", text(&site.path().join("empty.back"))]).unwrap();
    assert_eq!(fs::read(site.path().join("empty.back")).unwrap(), b"");

    let listed = site.cli_json(&["object", "list", "--tag", "os=debian", "--kind", "template"]).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(listed[0]["published"].as_bool().unwrap() && listed[0]["hold"].as_bool().unwrap(), "{listed}");
    marks_keep(&mut site);
    site.finish(&[]).unwrap();
}

/// Holds and locks, over a restart.
fn marks_keep(site: &mut Site) {
    let refused = site.cli_refused(&["object", "remove", "golden"]).unwrap();
    assert!(refused.contains("--release"), "{refused}");
    site.cli(&["object", "set", "golden", "--release", "--unpublish", "--untag", "os", "--tag", "v=2"])
        .unwrap();
    site.cli(&["object", "set", "copy", "--lock-until", "7d"]).unwrap();
    let refused = site.cli_refused(&["object", "set", "copy", "--lock-until", "1d"]).unwrap();
    assert!(refused.contains("no lock can be shortened"), "{refused}");
    site.stop_appliance().unwrap();
    site.start_appliance().unwrap();
    let refused = site.cli_refused(&["object", "remove", "copy"]).unwrap();
    assert!(refused.contains("locked"), "{refused}");
    site.cli(&["object", "remove", "golden"]).unwrap();
    site.cli(&["object", "remove", "debian.ISO"]).unwrap();
    assert_eq!(names(site), ["copy", "empty"]);
    let refused = site.cli_refused(&["object", "get", "golden", "--to", "/nowhere/x"]).unwrap();
    assert!(refused.contains("/nowhere"), "{refused}");
    let refused = site.cli_refused(&["object", "remove", "golden"]).unwrap();
    assert!(refused.contains("tidemark object list"), "{refused}");
}

#[test]
fn interrupted_uploads_show_nothing_and_go_on() {
    let mut site = Site::start("objects-kills").unwrap();
    let content = noise(9, 160 * MIB);
    let file = write(&site, "big", &content);
    // The command dies: nothing is seen, and the next one goes on.
    let mut killed = put_in_background(&site, &[text(&file)]);
    wait_for_the_middle(&mut killed);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(names(&site), Vec::<String>::new());
    // The appliance dies under the command, which goes on by itself when it is back.
    let mut running = put_in_background(&site, &[text(&file)]);
    wait_for_the_middle(&mut running);
    site.kill_appliance().unwrap();
    assert!(running.try_wait().unwrap().is_none(), "it goes on by itself");
    site.start_appliance().unwrap();
    assert!(names(&site).len() <= 1);
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let put: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(put["size_bytes"].as_u64(), Some(content.len() as u64));
    println!("{} bytes, {} of them new to the last upload", content.len(), new_bytes(&put));
    let back = site.path().join("back");
    site.cli(&["object", "get", "big", "--to", text(&back)]).unwrap();
    assert!(fs::read(&back).unwrap() == content);
    // A file that is another by now is not continued with the old one's beginning.
    let mut other = put_in_background(&site, &[text(&file), "--name", "other"]);
    std::thread::sleep(Duration::from_millis(200));
    other.kill().unwrap();
    other.wait().unwrap();
    let changed = noise(10, content.len());
    fs::write(&file, &changed).unwrap();
    site.cli(&["object", "put", text(&file), "--name", "other"]).unwrap();
    site.cli(&["object", "get", "other", "--to", text(&back), "--overwrite"]).unwrap();
    assert!(fs::read(&back).unwrap() == changed);

    // Negative control: one flipped bit in a pack, and nothing is written.
    site.stop_appliance().unwrap();
    let packs = fs::read_dir(site.data().join("store/packs")).unwrap();
    let pack =
        packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    site.start_appliance().unwrap();
    let gets = ["big", "other"].map(|name| {
        let to = site.path().join(format!("{name}.damaged"));
        let refused = site.cli_refused(&["object", "get", name, "--to", text(&to)]);
        assert_eq!(refused.is_err(), to.exists());
        refused
    });
    assert!(gets.iter().any(|get| get.as_ref().is_ok_and(|said| said.contains("damaged"))), "{gets:?}");
    let left = fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(
        !left.into_iter().any(|name| name.to_str().unwrap().starts_with(".tidemark-")),
        "nothing half is left"
    );
    site.finish(&["an object cannot be read"]).unwrap();
}
