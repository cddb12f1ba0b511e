//! Another master key for a whole appliance: interrupted after every step, killed in the middle, and the old key afterwards.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::site::Site;
use tidemark_appliance::data_dir::DataDir;
use tidemark_appliance::images::{MasterKeySource, SHARED_DOMAIN};
use tidemark_appliance::master_key::{RotateError, look, pending, rotate};
use tidemark_appliance::server::Appliance;
use tidemark_appliance::settings::Settings;
use tidemark_journal::store::ChunkId;
use tidemark_proto::v1::clones_client::ClonesClient;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{CreateCloneRequest, Empty, When};

const DISK_BYTES: u64 = 1 << 20;

fn latest() -> Option<When> {
    Some(When { point: Some(Point::Latest(true)) })
}

fn chunk() -> Vec<u8> {
    b"what no one may read without the key".repeat(100)
}

/// A data folder with a VM that has written, a clone of it, and a chunk; nobody serves it.
struct Folder {
    site: Site,
    chunk: ChunkId,
}

impl Folder {
    async fn new() -> Self {
        let mut site = Site::start().await;
        let mut guest = site.guest("web-1", DISK_BYTES).await;
        let mut stream = guest.connect(&site).await.unwrap();
        guest.protect(&mut stream).await;
        for frame in [guest.write(0, vec![7; 64 << 10]), guest.heartbeat()] {
            stream.frame(frame).await;
        }
        stream.acked(guest.seq).await;
        let context = site.context();
        let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
        let request = CreateCloneRequest {
            vm: "web-1".into(),
            at: latest(),
            name: "copy".into(),
            ..Default::default()
        };
        ClonesClient::new(channel).create_clone(request).await.unwrap();
        let store = site.appliance().core().images.store();
        let chunk = store.session(SHARED_DOMAIN).unwrap().put(&chunk()).unwrap();
        drop(stream);
        site.stop().await;
        Self { site, chunk }
    }

    /// A copy of the folder, with the settings of an appliance on it.
    fn copy(&self, name: &str) -> Settings {
        let to = self.site.dir.path().join(name);
        let status = Command::new("cp").arg("-a").arg(&self.site.settings.data).arg(&to).status().unwrap();
        assert!(status.success());
        Settings::local(&to)
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.site.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Starts an appliance and looks whether everything is there, also what is written from now on.
    async fn holds_all(&self, settings: &Settings) {
        let appliance = Appliance::start(settings).await.unwrap();
        let mut site = Site::adopt(settings.clone(), appliance);
        let store = site.appliance().core().images.store();
        assert_eq!(store.get(&self.chunk).unwrap().as_ref(), chunk());
        for name in ["web-1", "copy"] {
            let read = site.content(name, latest()).await.unwrap();
            assert_eq!(read[..64 << 10], vec![7; 64 << 10], "{name}");
            let log = &site.appliance().core().fleet.by_name(name).unwrap().log;
            assert!(log.journal().unwrap().is_encrypted() && log.problem().is_none(), "{name}");
        }
        site.stop().await;
        assert!(pending(&DataDir::open(&settings.data).unwrap()).unwrap().is_none());
        assert!(!settings.data.join("ca/store-next.key").exists());
    }
}

async fn refused(settings: &Settings) -> String {
    match Appliance::start(settings).await {
        Ok(_) => panic!("the old key still opens it"),
        Err(error) => format!("{error:#}"),
    }
}

/// Changes the key and stops after so many steps; whether that was before the end.
async fn stopped_after(data: &Path, to: Option<MasterKeySource>, steps: u32) -> bool {
    let data = DataDir::open(data).unwrap();
    let mut done = 0;
    let told = &mut |_: &str| {
        done += 1;
        done < steps
    };
    match rotate(&data, &MasterKeySource::Default, to, true, told).await {
        Ok(finished) => {
            assert_eq!((finished.logs, finished.unreadable.len()), (2, 0));
            false
        }
        Err(RotateError::Interrupted) => true,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_end_after_any_step_and_either_key_starts_the_appliance_until_it_is_done() {
    let folder = Folder::new().await;
    let old_key = folder.site.settings.data.join("ca/store.key");
    let old_key = folder.file("old.key", &std::fs::read_to_string(old_key).unwrap());
    let phrase = folder.file("phrase", "correct horse battery staple\n");
    let passphrase = MasterKeySource::PassphraseFile(phrase);
    for to in [None, Some(passphrase)] {
        let mut steps = 1;
        loop {
            let name = format!("data-{}-{steps}", u8::from(to.is_some()));
            let mut settings = folder.copy(&name);
            let interrupted = stopped_after(&settings.data, to.clone(), steps).await;
            let new = to.clone().unwrap_or(MasterKeySource::Default);
            let begun = pending(&DataDir::open(&settings.data).unwrap()).unwrap().is_some();
            assert_eq!(begun, interrupted && steps > 1, "step {steps}");
            if begun && steps % 2 == 0 {
                // Told of the old key only, the start finishes the change.
                settings.master_key = MasterKeySource::File(old_key.clone());
                folder.holds_all(&settings).await;
            }
            // What was not begun is begun again, with what was left of it.
            if !begun && interrupted {
                assert!(!stopped_after(&settings.data, to.clone(), u32::MAX).await);
            }
            settings.master_key = new.clone();
            folder.holds_all(&settings).await;
            folder.holds_all(&settings).await;
            settings.master_key = MasterKeySource::File(old_key.clone());
            let error = refused(&settings).await;
            assert!(error.contains("does not open") || error.contains("under a passphrase"), "{error}");
            if to.is_some() {
                assert!(!settings.data.join("ca/store.key").exists(), "the old key is gone");
            }
            if !interrupted {
                assert!(steps > 5, "only {steps} steps");
                break;
            }
            steps += 1;
        }
    }
}

fn program(arguments: &[&str], data: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark-appliance"));
    command.args(arguments).arg("--data").arg(data).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_killed_at_random_and_the_next_one_or_a_start_ends_it() {
    let folder = Folder::new().await;
    let key = folder.file("command.key", &"ab".repeat(32));
    // Slow enough that a kill meets it in any of its steps, whatever the machine does.
    let command = format!("command:sleep 0.05; cat {}", key.display());
    let mut begun = 0;
    for round in 0..12_u64 {
        let mut settings = folder.copy(&format!("data-{round}"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_tidemark-appliance"))
            .args(["key", "rotate", "--new", &command, "--data"])
            .arg(&settings.data)
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(40 + round * 15)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        settings.master_key = command.parse().unwrap();
        let pending = pending(&DataDir::open(&settings.data).unwrap()).unwrap().is_some();
        begun += u32::from(pending);
        let old_still_holds = !pending && settings.data.join("ca/store.key").exists();
        if old_still_holds || round % 2 == 0 {
            let output = program(&["key", "rotate", "--new", &command], &settings.data);
            let done_before = said(&output).contains("is the present one");
            assert!(output.status.success() || !old_still_holds || done_before, "{}", said(&output));
        }
        folder.holds_all(&settings).await;
        settings.master_key = MasterKeySource::Default;
        refused(&settings).await;
    }
    println!("{begun} of 12 kills came after the change began");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_key_stays_until_the_keys_of_a_log_that_neither_opens_are_back() {
    let folder = Folder::new().await;
    let phrase = folder.file("phrase", "correct horse battery staple\n");
    for (index, to) in [None, Some(MasterKeySource::PassphraseFile(phrase))].into_iter().enumerate() {
        let mut settings = folder.copy(&format!("damaged-{index}"));
        let data = settings.data.clone();
        assert!(stopped_after(&data, to.clone(), 2).await);
        settings.master_key = to.unwrap_or(MasterKeySource::Default);
        let vm = std::fs::read_dir(data.join("vms")).unwrap().flatten().next().unwrap().path();
        let keys = vm.join("journal/keys");
        let good = std::fs::read(&keys).unwrap();
        std::fs::write(&keys, &good[..good.len() - 1]).unwrap();
        for _ in 0..2 {
            let appliance = Appliance::start(&settings).await.unwrap();
            let mut site = Site::adopt(settings.clone(), appliance);
            let status = site.console().await.status(Empty {}).await.unwrap().into_inner();
            let unfinished = |text: &str| text.contains("master key is not finished");
            assert!(status.alarms.iter().any(|alarm| unfinished(&alarm.text)), "{:?}", status.alarms);
            site.stop().await;
        }
        assert!(data.join("ca/store.key").exists(), "the old key is there");
        let output = program(&["key", "rotate"], &data);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("is not finished"), "{}", said(&output));
        // The copy is under the old key. With it the change ends, and the alarm with it.
        std::fs::write(&keys, good).unwrap();
        folder.holds_all(&settings).await;
        let appliance = Appliance::start(&settings).await.unwrap();
        let mut site = Site::adopt(settings.clone(), appliance);
        let status = site.console().await.status(Empty {}).await.unwrap().into_inner();
        assert!(!status.alarms.iter().any(|alarm| alarm.text.contains("master key")), "{:?}", status.alarms);
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_begun_that_could_not_be_finished() {
    let folder = Folder::new().await;
    let settings = folder.copy("other");
    let data = settings.data.as_path();
    let shown = program(&["key", "show", "--json"], data);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["source"], &shown["kind"], &shown["logs"]),
        (&"default".into(), &"key".into(), &2.into()),
        "{shown}"
    );
    let present = format!("file:{}", data.join("ca/store.key").display());
    for (new, why) in [
        (present.as_str(), "it is the present one"),
        ("file:/nowhere/key", "/nowhere/key"),
        ("command:exit 3", "failed"),
        ("env:KEY", "'command:CMD'"),
    ] {
        let output = program(&["key", "rotate", "--new", new], data);
        assert_eq!(output.status.code(), Some(1), "{new}");
        assert!(said(&output).contains(why), "{new}: {}", said(&output));
    }
    // One log whose keys are another's: its history would be lost with the old key.
    let vms: Vec<_> = std::fs::read_dir(data.join("vms")).unwrap().flatten().collect();
    let keys = vms[0].path().join("journal/keys");
    let good = std::fs::read(&keys).unwrap();
    std::fs::write(&keys, &good[..good.len() - 1]).unwrap();
    let output = program(&["key", "rotate"], data);
    assert!(said(&output).contains("nothing was changed"), "{}", said(&output));
    assert_eq!(program(&["key", "show"], data).status.code(), Some(1));
    std::fs::write(&keys, good).unwrap();
    folder.holds_all(&settings).await;
    // No store, no folder, and a folder that is being served.
    let empty = folder.site.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(said(&program(&["key", "rotate"], &empty)).contains("no chunk store"));
    assert!(std::fs::read_dir(&empty).unwrap().next().is_none(), "nothing was made there");
    let appliance = Appliance::start(&settings).await.unwrap();
    assert!(said(&program(&["key", "rotate"], data)).contains("in use by another"));
    appliance.shutdown().await;
    let state = look(&DataDir::open(data).unwrap(), &MasterKeySource::Default).await.unwrap();
    assert_eq!((state.logs, state.unreadable.len(), state.changing_to), (2, 0, None));
}
