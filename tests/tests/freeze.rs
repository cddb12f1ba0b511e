//! Bookmarks with a level: frozen file systems, hooks, and what becomes of them when the splitter dies meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::faults::Fault;
use tidemark_tests::freeze::{is_sound, needs_replay};
use tidemark_tests::mariadb::{self, MariaDb};
use tidemark_tests::postgres::{self, Postgres};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, program, skipped};

const VM: &str = "frozen";
const PROTECT_TIMEOUT: Duration = Duration::from_secs(90);
/// Nobody may wait for longer for a hold that goes as it should; most of it is what other tests take from the processors.
const STALL_MAX: Duration = Duration::from_secs(3);

/// A writer that finished nothing for so long is held, not just slow; the splitter gives up after two seconds.
const HELD: Duration = Duration::from_millis(900);

fn ext4(device: &Path) {
    output_of(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(device)).unwrap();
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Writes and syncs files until it is told to stop, and knows how long it had to wait for the last and the slowest.
#[derive(Default)]
struct Writer {
    stop: AtomicBool,
    finished: Mutex<Option<Instant>>,
    slowest: Mutex<Duration>,
}

impl Writer {
    fn run(&self, folder: &Path) {
        for number in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let began = Instant::now();
            let path = folder.join(format!("file-{}", number % 200));
            let mut file = File::create(path).unwrap();
            file.write_all(&number.to_le_bytes().repeat(500)).unwrap();
            file.sync_all().unwrap();
            *self.finished.lock().unwrap() = Some(Instant::now());
            let mut slowest = self.slowest.lock().unwrap();
            *slowest = slowest.max(began.elapsed());
        }
    }

    /// How long ago it last finished a file.
    fn idle(&self) -> Duration {
        self.finished.lock().unwrap().map_or(Duration::ZERO, |at| at.elapsed())
    }

    fn take_slowest(&self) -> Duration {
        std::mem::take(&mut self.slowest.lock().unwrap())
    }

    /// Waits until writers are held: the splitter stands still, and they do.
    fn wait_held(&self, stuck: &Path) {
        let began = Instant::now();
        while !stuck.exists() || self.idle() < HELD {
            assert!(began.elapsed() < Duration::from_secs(30), "writers are never held");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_going(&self, patience: Duration) -> Duration {
        let began = Instant::now();
        let before = *self.finished.lock().unwrap();
        while *self.finished.lock().unwrap() == before {
            assert!(began.elapsed() < patience, "writers wait for more than {patience:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        began.elapsed()
    }
}

struct StopOnDrop<'a>(&'a Writer);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn create(site: &Site, name: &str, level: &str, options: &[&str]) -> Value {
    let arguments = [&["bookmark", "create", name, "--vm", VM, "--consistency", level], options].concat();
    outside_gaps(|| site.cli_json(&arguments))
}

/// A short gap is no fault of a bookmark: some requests of this kernel are hidden from the tap. The command says so, and
/// makes none.
fn outside_gaps<T>(mut ask: impl FnMut() -> anyhow::Result<T>) -> T {
    for _ in 0..5 {
        match ask() {
            Err(error) if error.to_string().contains("this moment is not recoverable") => {
                println!("a gap; asking again");
                std::thread::sleep(Duration::from_millis(500));
            }
            other => return other.unwrap(),
        }
    }
    ask().unwrap()
}

fn refused(site: &Site, name: &str, level: &str) -> String {
    site.cli_refused(&["bookmark", "create", name, "--vm", VM, "--consistency", level]).unwrap()
}

fn point_of(site: &Site, name: &str) -> Option<String> {
    let points = site.points(VM).unwrap().points;
    let point = points.iter().find(|point| point["name"] == name)?;
    Some(point["consistency"].as_str().unwrap().to_owned())
}

/// A file system that was frozen needs no replay of its journal; the same one an instant later does.
#[test]
fn a_frozen_point_is_whole_without_a_replay() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let mut site = Site::start("freeze").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 64 << 20).unwrap();
    ext4(disk.device());
    let live = Mounted::mount(disk.device(), &site.path().join("live"), "rw").unwrap();
    // A file system in a file of the outer one: it must be frozen first, or its freeze waits for the outer one's thaw.
    let inner_disk = LoopDisk::create(&live.path().join("inner.img"), 16 << 20).unwrap();
    ext4(inner_disk.device());
    let inner = Mounted::mount(inner_disk.device(), &site.path().join("inner"), "rw").unwrap();
    let hooks = site.path().join("hooks.d");
    let arguments = ["--ring-mib", "64", "--hooks", hooks.to_str().unwrap()];
    let splitter = site.add_splitter(VM, &arguments).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
    let (outside, inside) = (Writer::default(), Writer::default());
    std::thread::scope(|scope| {
        let _stop = (StopOnDrop(&outside), StopOnDrop(&inside));
        scope.spawn(|| outside.run(live.path()));
        scope.spawn(|| inside.run(inner.path()));
        std::thread::sleep(Duration::from_millis(500));
        outside.take_slowest();
        for round in 0..3 {
            let name = format!("frozen-{round}");
            let made = create(&site, &name, "filesystem", &[]);
            assert_eq!((&made["achieved"], &made["reason"]), (&"filesystem".into(), &"".into()), "{made}");
            println!("{name}: held for {} us", made["hold_us"]);
            assert!(made["hold_us"].as_u64().unwrap() > 0);
            let later = create(&site, &format!("crash-{round}"), "crash", &[]);
            assert_eq!((&later["achieved"], &later["hold_us"]), (&"crash".into(), &0.into()));
        }
        println!("the slowest file took {:?}", outside.take_slowest());
        levels_are_told(&mut site, splitter, disk.device(), &hooks);
        assert!(outside.take_slowest() < STALL_MAX);
    });
    let mut replays = 0;
    for round in 0..3 {
        let image = site.image(VM, 0, &format!("bookmark:frozen-{round}")).unwrap();
        assert!(!needs_replay(&image), "frozen-{round}");
        is_sound(&image).unwrap();
        // The control: a point of the same load that nobody froze.
        let image = site.image(VM, 0, &format!("bookmark:crash-{round}")).unwrap();
        replays += usize::from(needs_replay(&image));
        assert_eq!(point_of(&site, &format!("frozen-{round}")).as_deref(), Some("filesystem"));
    }
    assert!(replays > 0, "an unfrozen point under load needs a replay");
    let found = site.cli_json(&["search", "--vm", VM, "--consistency", "filesystem"]).unwrap();
    assert!(found.to_string().contains("frozen-2") && !found.to_string().contains("crash-2"), "{found}");
    drop((inner, inner_disk, live));
    site.finish(&[]).unwrap();
}

/// Whether the hooks ran in their order and thawed in reverse: with one, then with one more that fails. Where a gap was met
/// they ran again.
fn in_order(log: &str) -> bool {
    let (whole, failed) =
        ("first freeze\nfirst thaw\n", "first freeze\nsecond freeze\nsecond thaw\nfirst thaw\n");
    log.starts_with(whole) && log.ends_with(failed) && log.replace(failed, "").replace(whole, "").is_empty()
}

/// The level that was not achieved is never claimed, and the reason is told.
fn levels_are_told(site: &mut Site, splitter: usize, device: &Path, hooks: &Path) {
    // No hook: application is more than was done.
    let why = refused(site, "app", "application");
    assert!(why.contains("no freeze hook is installed") && why.lines().count() == 1, "{why}");
    assert_eq!(point_of(site, "app"), None, "a level that was not achieved makes no bookmark");
    let lower = create(site, "app", "application", &["--allow-lower"]);
    assert_eq!((&lower["requested"], &lower["achieved"]), (&"application".into(), &"filesystem".into()));
    assert!(lower["reason"].as_str().unwrap().contains("no freeze hook"), "{lower}");
    assert_eq!(point_of(site, "app").as_deref(), Some("filesystem"));
    // Hooks, in order; a failing one lowers the level, and every thaw comes, in reverse.
    let log = hooks.with_extension("log");
    script(&hooks.join("10-first"), &format!("echo first $1 >>{}", log.display()));
    let whole = create(site, "hooked", "application", &[]);
    assert_eq!(whole["achieved"], "application", "{whole}");
    script(&hooks.join("20-second"), &format!("echo second $1 >>{}; [ $1 = thaw ]", log.display()));
    let why = refused(site, "hooked-2", "application");
    assert!(why.contains("20-second freeze failed"), "{why}");
    // The thaws run after the answer.
    let began = Instant::now();
    while !in_order(&fs::read_to_string(&log).unwrap()) {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    // A hook that others could change is not run.
    let before = fs::read_to_string(&log).unwrap();
    fs::set_permissions(hooks.join("20-second"), fs::Permissions::from_mode(0o777)).unwrap();
    let why = refused(site, "hooked-3", "application");
    assert!(why.contains("20-second is not run"), "{why}");
    assert_eq!(fs::read_to_string(&log).unwrap(), before);
    // Somebody writes past the file system.
    let raw = File::options().write(true).open(device).unwrap();
    let why = refused(site, "raw", "filesystem");
    assert!(why.contains("writes to") && why.contains(device.to_str().unwrap()), "{why}");
    let lower = create(site, "raw", "filesystem", &["--allow-lower"]);
    assert_eq!((&lower["achieved"], &lower["hold_us"]), (&"crash".into(), &0.into()), "{lower}");
    drop(raw);
    // In the guest: answered only when the point is offered, so that it can be opened at once.
    for number in 0..5 {
        let name = format!("inside-{number}");
        let command = ["bookmark", &name, "--consistency", "filesystem", "--json"];
        let said = outside_gaps(|| site.splitter(splitter)?.command(&command));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["achieved"], "filesystem", "{said}");
        let export = site.cli_json(&["export", VM, "--at", &format!("lsn:{}", said["lsn"])]).unwrap();
        site.cli(&["export", "stop", export[0]["id"].as_str().unwrap()]).unwrap();
        assert_eq!(point_of(site, &name).as_deref(), Some("filesystem"));
    }
}

/// A splitter that stands still once its writers are held, and a hook that makes it do so.
struct Stuck {
    site: Site,
    splitter: usize,
    live: Mounted,
    disk: LoopDisk,
    stuck: PathBuf,
    log: PathBuf,
}

impl Stuck {
    fn start(name: &str) -> Self {
        let mut site = Site::start(name).unwrap();
        let disk = LoopDisk::create(&site.path().join("disk"), 32 << 20).unwrap();
        ext4(disk.device());
        let live = Mounted::mount(disk.device(), &site.path().join("live"), "rw").unwrap();
        let hooks = site.path().join("hooks.d");
        let log = site.path().join("hooks.txt");
        let arguments = ["--ring-mib", "32", "--hooks", hooks.to_str().unwrap()];
        let splitter = site.add_splitter(VM, &arguments).unwrap();
        let running = site.splitter(splitter).unwrap();
        running.stop().unwrap();
        running.set_fault(Fault::Stuck);
        running.start().unwrap();
        let stuck = running.stuck_by();
        let (file, log_file) = (stuck.display(), log.display());
        let text =
            format!("echo $1 >>{log_file}\ncase $1 in freeze) : >{file} ;; thaw) rm -f {file} ;; esac");
        script(&hooks.join("stop"), &text);
        site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
        site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        Self { site, splitter, live, disk, stuck, log }
    }

    fn pid(&mut self) -> u32 {
        self.site.splitter(self.splitter).unwrap().daemon().unwrap().pid()
    }

    /// Asks for a bookmark in a process of its own.
    fn ask(&self, name: &str) -> std::process::Child {
        let context = self.site.data().join("admin.context");
        Command::new(program("tidemark").unwrap())
            .arg("--context")
            .arg(context)
            .args(["bookmark", "create", name, "--vm", VM, "--consistency", "application"])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn hooks_ran(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_hooks(&self, expected: &str) {
        let began = Instant::now();
        while self.hooks_ran() != expected && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.hooks_ran(), expected);
    }
}

fn refusal(asked: std::process::Child) -> String {
    let output = asked.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Killed between freeze and thaw: writers go on at once, and the hook's thaw runs.
#[test]
fn writers_go_on_when_the_splitter_is_killed_while_they_are_held() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let mut world = Stuck::start("hold-killed");
    let writer = Writer::default();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&writer);
        scope.spawn(|| writer.run(world.live.path()));
        std::thread::sleep(Duration::from_millis(300));
        // Nobody dies: the hold is given up after two seconds, and no level is claimed.
        let asked = world.ask("late");
        writer.wait_held(&world.stuck);
        let why = refusal(asked);
        println!("{}", why.trim());
        assert!(why.contains("could not place it within 2 s"), "{why}");
        world.wait_hooks("freeze\nthaw\n");
        // Somebody else thaws: what was placed is no frozen point.
        let asked = world.ask("broken");
        writer.wait_held(&world.stuck);
        output_of(Command::new("fsfreeze").arg("-u").arg(world.live.path())).unwrap();
        fs::remove_file(&world.stuck).unwrap();
        let why = refusal(asked);
        println!("{}", why.trim());
        assert!(why.contains("somebody else thawed"), "{why}");
        world.wait_hooks(&"freeze\nthaw\n".repeat(2));
        // The splitter is killed.
        let asked = world.ask("killed");
        writer.wait_held(&world.stuck);
        assert_eq!(world.hooks_ran(), "freeze\nthaw\nfreeze\nthaw\nfreeze\n");
        world.site.splitter(world.splitter).unwrap().kill().unwrap();
        let waited = writer.wait_going(Duration::from_secs(1));
        println!("killed: writers went on after {waited:?}");
        world.wait_hooks(&"freeze\nthaw\n".repeat(3));
        refusal(asked);
        assert!(!world.stuck.exists());
        // It comes back, and so do bookmarks.
        world.site.splitter(world.splitter).unwrap().start().unwrap();
        world.site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        assert_eq!(create(&world.site, "again", "filesystem", &[])["achieved"], "filesystem");
    });
    assert_eq!(["late", "broken", "killed"].map(|name| point_of(&world.site, name)), [None, None, None]);
    let Stuck { site, live, disk, .. } = world;
    drop(live);
    site.finish(&["connect", "stream", "reset", "bookmark"]).unwrap();
    drop(disk);
}

/// Stopped between freeze and thaw: writers go on at the deadline, and a splitter that goes on claims nothing.
#[test]
fn writers_go_on_at_the_deadline_when_the_splitter_is_stopped_while_they_are_held() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let mut world = Stuck::start("hold-stopped");
    let pid = nix::unistd::Pid::from_raw(world.pid() as i32);
    let writer = Writer::default();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&writer);
        scope.spawn(|| writer.run(world.live.path()));
        std::thread::sleep(Duration::from_millis(300));
        let asked = world.ask("stopped");
        writer.wait_held(&world.stuck);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let waited = writer.wait_going(Duration::from_secs(12));
        println!("stopped: writers went on after {waited:?}");
        assert!(waited > Duration::from_secs(5), "the watchdog, not the splitter, let them go");
        world.wait_hooks("freeze\nthaw\n");
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
        let why = refusal(asked);
        println!("{}", why.trim());
        assert!(why.contains("application"), "{why}");
        world.site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        assert_eq!(create(&world.site, "again", "filesystem", &[])["achieved"], "filesystem");
    });
    assert_eq!(world.hooks_ran(), "freeze\nthaw\n", "the splitter does not repeat what the watchdog did");
    assert_eq!(point_of(&world.site, "stopped"), None);
    let Stuck { site, live, disk, .. } = world;
    drop(live);
    site.finish(&["connect", "stream", "reset", "bookmark"]).unwrap();
    drop(disk);
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/hooks").join(name).canonicalize().unwrap()
}

/// Mounts a point's first disk at `there`.
fn with_recovered<T>(site: &Site, when: &str, there: &Path, use_it: impl FnOnce(&Path) -> T) -> T {
    let folder = there.with_extension("view");
    fs::create_dir(&folder).unwrap();
    let view = site.mount(VM, when, &folder).unwrap();
    let image = LoopDisk::attach(&folder.join("disk-1.raw"), &[]).unwrap();
    let mounted = Mounted::mount(image.device(), there, "rw").unwrap();
    let result = use_it(mounted.path());
    drop((mounted, image, view));
    result
}

/// The shipped hook for MariaDB: tables that no recovery mends are whole at an application point, and not at a crash point.
#[test]
fn mariadb_tables_without_transactions_are_whole_at_an_application_point() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    if let Some(reason) = mariadb::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut site = Site::start("mariadb").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 256 << 20).unwrap();
    ext4(disk.device());
    let live = Mounted::mount(disk.device(), &site.path().join("live"), "rw").unwrap();
    let database = MariaDb::create(live.path(), &site.path().join("live-run")).unwrap();
    let tables = "create database work; create table work.plain (number bigint primary key, text varchar(200), key (text)) \
                  engine=MyISAM; create table work.safe (number bigint primary key) engine=InnoDB";
    database.sql(tables).unwrap();
    let hooks = site.path().join("hooks.d");
    let arguments = ["--ring-mib", "64", "--hooks", hooks.to_str().unwrap()];
    let splitter = site.add_splitter(VM, &arguments).unwrap();
    let settings = format!(
        "export CLIENT_OPTIONS='{}' RUN_FOLDER={}\nexec {} \"$1\"",
        database.client_options(),
        site.path().join("hook-run").display(),
        shipped("mysql").display()
    );
    script(&hooks.join("mysql"), &settings);
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let rows: Vec<String> =
                    (0..50).map(|row| format!("({}, repeat('x{row}', 40))", number * 50 + row)).collect();
                let rows = rows.join(",");
                database
                    .sql(&format!(
                        "insert into work.plain values {rows}; insert into work.safe values ({number})"
                    ))
                    .unwrap();
                number += 1;
            }
            number
        });
        std::thread::sleep(Duration::from_secs(2));
        create(&site, "crash", "crash", &[]);
        for name in ["whole-0", "whole-1"] {
            let made = create(&site, name, "application", &[]);
            assert_eq!(made["achieved"], "application", "{made}");
            println!("{name}: held for {} us", made["hold_us"]);
            std::thread::sleep(Duration::from_millis(500));
        }
        stop.store(true, Ordering::Relaxed);
        println!("{} transactions", load.join().unwrap());
    });
    let status = |when: &str| {
        with_recovered(&site, &format!("bookmark:{when}"), &site.path().join(when), |there| {
            let run = site.path().join(format!("{when}-run"));
            let recovered = MariaDb::open(there, &run).unwrap();
            let checked = recovered.sql("check table work.plain, work.safe").unwrap();
            let rows =
                recovered.sql("select (select count(*) from work.plain), (select count(*) from work.safe)");
            recovered.stop().unwrap();
            let count =
                |rows: String| rows.split('\t').map(|count| count.parse().unwrap()).collect::<Vec<u64>>();
            (checked, rows.map(count))
        })
    };
    for name in ["whole-0", "whole-1"] {
        let (checked, rows) = status(name);
        let rows = rows.unwrap();
        assert!(!checked.contains("warning") && !checked.contains("error"), "{checked}");
        // Each statement is whole; a transaction of the other engine follows it.
        assert!(rows[0] % 50 == 0 && (rows[1] == rows[0] / 50 || rows[1] + 1 == rows[0] / 50), "{rows:?}");
        println!("{name}: {rows:?}");
    }
    let (checked, rows) = status("crash");
    println!("crash: {rows:?}\n{checked}");
    // The control: left open by a client, or not even that.
    let plain: Vec<_> = checked.lines().filter(|line| line.starts_with("work.plain")).collect();
    assert!(
        plain.iter().any(|line| line.contains("warning") || line.to_lowercase().contains("error")),
        "{checked}"
    );
    assert!(checked.lines().any(|line| line == "work.safe\tcheck\tstatus\tOK"), "{checked}");
    // A server that is gone: the hook says so.
    database.stop().unwrap();
    let why = refused(&site, "gone", "application");
    assert!(why.contains("mysql") && why.contains("does not answer"), "{why}");
    drop(live);
    // The client's own words are in the reason.
    site.finish(&["held for a bookmark"]).unwrap();
}

/// The shipped hook for PostgreSQL: a checkpoint right before the freeze, so there is nothing to replay but what came after.
#[test]
fn postgres_has_little_to_replay_at_an_application_point() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    if let Some(reason) = postgres::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut site = Site::start("postgres-hook").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 256 << 20).unwrap();
    ext4(disk.device());
    let live = Mounted::mount(disk.device(), &site.path().join("live"), "rw").unwrap();
    let run = site.path().join("live-run");
    let database = Postgres::create(live.path(), &run).unwrap();
    database.bench(&["-i", "-s", "1", "-q"]).unwrap();
    output_of(Command::new("sync").arg("-f").arg(live.path())).unwrap();
    let hooks = site.path().join("hooks.d");
    let arguments = ["--ring-mib", "64", "--hooks", hooks.to_str().unwrap()];
    let splitter = site.add_splitter(VM, &arguments).unwrap();
    let settings =
        format!("export SERVERS={}:5432\nexec {} \"$1\"", run.display(), shipped("postgresql").display());
    script(&hooks.join("postgresql"), &settings);
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
    std::thread::scope(|scope| {
        let bench = scope.spawn(|| database.bench(&["-c", "2", "-j", "1", "-T", "5"]));
        std::thread::sleep(Duration::from_secs(3));
        create(&site, "crash", "crash", &[]);
        let made = create(&site, "whole", "application", &[]);
        assert_eq!(made["achieved"], "application", "{made}");
        println!("whole: held for {} us", made["hold_us"]);
        bench.join().unwrap().unwrap();
    });
    // Bytes of the log from where recovery begins to the end of the log that is there.
    let replayed = |when: &str| {
        with_recovered(&site, &format!("bookmark:{when}"), &site.path().join(when), |there| {
            let run = site.path().join(format!("{when}-run"));
            let recovered = Postgres::open(there, &run).unwrap();
            recovered.check_bench_sums().unwrap();
            recovered.stop().unwrap();
            let log = fs::read_to_string(run.join("server.txt")).unwrap();
            let place = |words: &str| {
                let (_, rest) = log.split_once(words)?;
                let (high, low) = rest.split_whitespace().next()?.split_once('/')?;
                Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
            };
            match (place("redo starts at "), place("redo done at ")) {
                (Some(from), Some(to)) => to - from,
                _ => 0,
            }
        })
    };
    let (crash, whole) = (replayed("crash"), replayed("whole"));
    println!("replayed: {crash} bytes at a crash point, {whole} at an application point");
    assert!(whole * 4 < crash, "{whole} of {crash} bytes");
    database.stop().unwrap();
    let why = refused(&site, "gone", "application");
    assert!(why.contains("postgresql") && why.contains("no server listens"), "{why}");
    drop(live);
    site.finish(&[]).unwrap();
}
