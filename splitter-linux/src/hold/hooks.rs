//! Freeze hooks: what applications do before their disks are held, and after.
//!
//! Three kinds are honoured, in this order before a freeze and in the reverse one after the thaw:
//! - every executable file in the folder of hooks (`/etc/tidemark/hooks.d`), by name, with the argument `freeze` or `thaw`;
//! - those of QEMU's guest agent, `/etc/qemu/fsfreeze-hook.d`, likewise;
//! - `/usr/sbin/pre-freeze-script` and `/usr/sbin/post-thaw-script`, without an argument.
//!
//! Only files that nobody but root can change are run: they run as root. A thaw is owed from the moment at which its
//! freeze is started, also when that fails; it may come twice (from the agent and from the watchdog), so it must bear that.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where hooks are looked for.
pub const HOOKS_FOLDER: &str = "/etc/tidemark/hooks.d";

const QEMU_FOLDER: &str = "/etc/qemu/fsfreeze-hook.d";
const PRE_FREEZE: &str = "/usr/sbin/pre-freeze-script";
const POST_THAW: &str = "/usr/sbin/post-thaw-script";

/// How long one hook may take. A checkpoint of a busy database takes seconds; beyond it the hook is killed with all it
/// started, and counts as failed.
const HOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// How long all freeze hooks may take together. Beyond it no further one is started: the first ones' applications wait.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(30);

/// Hooks run at most; with more none is run.
const HOOKS_MAX: usize = 128;

/// Between looks at a running hook.
const LOOK: Duration = Duration::from_millis(5);

/// Names that package managers and editors leave behind; they are no hooks.
const LEFT_BEHIND: [&str; 8] =
    ["~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".dpkg-old", ".dpkg-dist"];

/// What is to be run, and what must not be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hooks {
    /// In the order of their freezes.
    pub(super) run: Vec<PathBuf>,
    /// Why a file that is there is not run.
    pub(super) refused: Vec<String>,
}

/// Looks for hooks.
pub(super) fn find(folder: &Path) -> Hooks {
    find_below(folder, Path::new("/"))
}

fn find_below(folder: &Path, root: &Path) -> Hooks {
    let mut hooks = Hooks::default();
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    for folder in [folder.to_owned(), below(QEMU_FOLDER)] {
        collect(&folder, &mut hooks);
    }
    let single = below(PRE_FREEZE);
    if is_executable(&single) {
        take(&single, &mut hooks);
    }
    if hooks.run.len() > HOOKS_MAX {
        hooks.refused.push(format!("there are more than {HOOKS_MAX} hooks"));
    }
    hooks
}

fn collect(folder: &Path, hooks: &mut Hooks) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    if !names.is_empty()
        && let Err(why) = check_owner(folder)
    {
        hooks.refused.push(why);
        return;
    }
    for name in names {
        let text = name.to_string_lossy();
        let path = folder.join(&name);
        if !text.starts_with('.')
            && !LEFT_BEHIND.iter().any(|end| text.ends_with(end))
            && is_executable(&path)
        {
            take(&path, hooks);
        }
    }
}

fn take(path: &Path, hooks: &mut Hooks) {
    match check_owner(path) {
        Ok(()) => hooks.run.push(path.to_owned()),
        Err(why) => hooks.refused.push(why),
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
}

/// Nobody but root can change it: what it is, and for a link what it leads to.
fn check_owner(path: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    let found = fs::metadata(&real).map_err(|error| format!("{}: {error}", real.display()))?;
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        return Err(format!(
            "{} is not run: it must belong to root and be writable by nobody else (chown root, chmod go-w)",
            path.display()
        ));
    }
    Ok(())
}

/// Runs the freeze hooks in order. `owe` is called before each; where it fails the hook does not run.
///
/// # Errors
/// The first failure. The hooks before it, and the failed one itself, have a thaw owed.
pub(super) fn freeze(
    hooks: &[PathBuf],
    mut owe: impl FnMut(&Path) -> Result<(), String>,
) -> Result<(), String> {
    let until = Instant::now() + FREEZE_TIMEOUT;
    for hook in hooks {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("the freeze hooks took {} s", FREEZE_TIMEOUT.as_secs()));
        }
        owe(hook)?;
        let argument = (!hook.ends_with("pre-freeze-script")).then_some("freeze");
        run(hook, argument, left.min(HOOK_TIMEOUT))?;
    }
    Ok(())
}

/// Runs the thaw of hooks whose freeze was started, in reverse order; all of them, whatever fails.
pub(super) fn thaw(hooks: &[PathBuf]) -> Vec<String> {
    hooks.iter().rev().filter_map(|hook| thaw_one(hook).err()).collect()
}

/// The thaw of one hook, from the watchdog, which has nobody to tell.
pub(super) fn thaw_quietly(hook: &Path) {
    let _ = thaw_one(hook);
}

fn thaw_one(hook: &Path) -> Result<(), String> {
    if !hook.ends_with("pre-freeze-script") {
        return run(hook, Some("thaw"), HOOK_TIMEOUT);
    }
    let name = Path::new(POST_THAW).file_name().unwrap_or_default();
    let pair = hook.with_file_name(name);
    if !is_executable(&pair) {
        return Ok(());
    }
    check_owner(&pair)?;
    run(&pair, None, HOOK_TIMEOUT)
}

fn run(hook: &Path, argument: Option<&str>, timeout: Duration) -> Result<(), String> {
    let said = said_file().map_err(|error| format!("{}: {error}", hook.display()))?;
    let errors = said.try_clone().map_err(|error| format!("{}: {error}", hook.display()))?;
    let what = || format!("hook {} {}", hook.display(), argument.unwrap_or_default()).trim_end().to_owned();
    let mut child = Command::new("/bin/sh")
        // The agent is never chosen for lack of memory; what a hook starts may be.
        .args(["-c", "echo 0 2>/dev/null >/proc/self/oom_score_adj; exec \"$@\"", "hook"])
        .arg(hook)
        .args(argument)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", what()))?;
    match wait(&mut child, timeout) {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(format!("{} failed ({status}){}", what(), last_words(said))),
        Some(Err(error)) => Err(format!("{} was lost: {error}", what())),
        None => Err(format!("{} took longer than {} s", what(), timeout.as_secs())),
    }
}

/// Waits for the end; kills the whole group at the time-out.
fn wait(child: &mut Child, timeout: Duration) -> Option<std::io::Result<std::process::ExitStatus>> {
    let until = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(Ok(status)),
            Err(error) => return Some(Err(error)),
            Ok(None) if Instant::now() >= until => break,
            Ok(None) => std::thread::sleep(LOOK),
        }
    }
    if let Ok(group) = i32::try_from(child.id()) {
        let _ =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = child.wait();
    None
}

/// What a hook says goes to memory: a pipe would be held open by whatever the hook leaves running.
fn said_file() -> std::io::Result<File> {
    // SAFETY: the name is a C string and the result is checked.
    let file = unsafe { libc::memfd_create(c"tidemark-hook".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it; nothing else owns it.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// The last line, shortened.
fn last_words(mut said: File) -> String {
    let mut bytes = Vec::new();
    let read = said.rewind().and_then(|()| said.take(64 << 10).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) if read.is_ok() => {
            let line: String = line.trim().chars().filter(|c| !c.is_control()).take(200).collect();
            format!(": {line}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            println!("skipped: only files of root are hooks");
        }
        root
    }

    #[test]
    fn hooks_run_in_order_and_thaw_in_reverse_also_after_a_failure() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (log, folder) = (root.path().join("log"), root.path().join("hooks.d"));
        let note = |word: &str| format!("echo {word} $1 >>{}", log.display());
        script(&folder.join("20-b"), &note("b"));
        script(&folder.join("10-a"), &note("a"));
        script(&root.path().join("etc/qemu/fsfreeze-hook.d/c"), &note("c"));
        script(
            &root.path().join("usr/sbin/pre-freeze-script"),
            &format!("{}; echo no >&2; exit 3", note("pre")),
        );
        script(&root.path().join("usr/sbin/post-thaw-script"), &note("post"));
        for left in [".hidden", "x~", "y.dpkg-old", "z.rpmsave"] {
            script(&folder.join(left), &note(left));
        }
        fs::write(folder.join("README"), "not executable").unwrap();
        let hooks = find_below(&folder, root.path());
        assert_eq!(hooks.refused, Vec::<String>::new());
        let mut owed = Vec::new();
        let failed = freeze(&hooks.run, |hook| {
            owed.push(hook.to_owned());
            Ok(())
        });
        let failed = failed.unwrap_err();
        assert!(failed.contains("pre-freeze-script") && failed.ends_with(": no"), "{failed}");
        assert_eq!(thaw(&owed), Vec::<String>::new());
        let ran = fs::read_to_string(&log).unwrap();
        let ran: Vec<_> = ran.lines().map(str::trim).collect();
        let expected = ["a freeze", "b freeze", "c freeze", "pre", "post", "c thaw", "b thaw", "a thaw"];
        assert_eq!(ran, expected);
    }

    #[test]
    fn what_others_could_change_is_refused_by_name() {
        if !is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("hooks.d");
        script(&folder.join("good"), "true");
        script(&folder.join("open"), "true");
        script(&folder.join("foreign"), "true");
        fs::set_permissions(folder.join("open"), fs::Permissions::from_mode(0o775)).unwrap();
        std::os::unix::fs::chown(folder.join("foreign"), Some(65534), None).unwrap();
        std::os::unix::fs::symlink(folder.join("foreign"), folder.join("link")).unwrap();
        let hooks = find_below(&folder, root.path());
        assert_eq!(hooks.run, [folder.join("good")]);
        assert_eq!(hooks.refused.len(), 3, "{:?}", hooks.refused);
        assert!(hooks.refused.iter().all(|why| why.contains("chmod go-w")), "{:?}", hooks.refused);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let hooks = find_below(&folder, root.path());
        assert_eq!((hooks.run.len(), hooks.refused.len()), (0, 1));
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_with_what_it_started() {
        let root = tempfile::tempdir().unwrap();
        let (hook, started) = (root.path().join("slow"), root.path().join("started"));
        script(&hook, &format!("sleep 60 & echo $! >{}; wait", started.display()));
        let began = Instant::now();
        let error = run(&hook, Some("freeze"), Duration::from_millis(400)).unwrap_err();
        assert!(error.contains("longer"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10));
        let child: i32 = fs::read_to_string(&started).unwrap().trim().parse().unwrap();
        let state = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let until = Instant::now() + Duration::from_secs(5);
        while !state().is_empty() && !state().contains(") Z") && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        assert!(state().is_empty() || state().contains(") Z"), "{}", state());
    }

    /// What a hook leaves running on purpose (a session that holds a lock) does not keep us waiting.
    #[test]
    fn a_hook_may_leave_something_running() {
        let root = tempfile::tempdir().unwrap();
        let hook = root.path().join("leaves");
        script(&hook, "sleep 20 & exit 0");
        let began = Instant::now();
        run(&hook, Some("freeze"), HOOK_TIMEOUT).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
