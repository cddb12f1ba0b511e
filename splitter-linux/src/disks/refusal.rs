//! Why something cannot be protected.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A refusal: one line that says what to do.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Not the super-user.
    #[error(
        "the splitter must run as root with CAP_BPF and CAP_PERFMON: run it with sudo or as a system service"
    )]
    NotRoot,
    /// Before the lowest line that is tested.
    #[error("kernel {found} is too old: the tap needs Linux {floor} or newer, upgrade the kernel")]
    KernelTooOld {
        /// What runs.
        found: String,
        /// What is needed.
        floor: &'static str,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no type information (/sys/kernel/btf/vmlinux is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF, as all current distributions have"
    )]
    NoBtf,
    /// Lockdown forbids reading kernel memory.
    #[error(
        "kernel lockdown is in confidentiality mode, which forbids the tap: boot with lockdown=integrity (Secure Boot stays on)"
    )]
    Lockdown,
    /// Another processor architecture.
    #[error("the tap is built for x86-64, this machine is {0}")]
    Architecture(&'static str),
    /// There is no such file.
    #[error("{path} cannot be opened: {source}")]
    Missing {
        /// What was asked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file, folder or character device.
    #[error("{0} is not a block device: name a whole disk such as /dev/vda")]
    NotBlock(PathBuf),
    /// A partition.
    #[error("{path} is a partition: protect the whole disk {whole}")]
    Partition {
        /// What was asked for.
        path: PathBuf,
        /// What to ask for.
        whole: String,
    },
    /// Device-mapper, md, bcache: something above other disks.
    #[error("{path} is stacked on other disks: protect {} instead", .leaves.join(" and "))]
    Stacked {
        /// What was asked for.
        path: PathBuf,
        /// The disks below.
        leaves: Vec<String>,
    },
    /// Not served through requests.
    #[error("{path} is a {kind} device, which passes no requests: it cannot be captured")]
    Unsupported {
        /// What was asked for.
        path: PathBuf,
        /// ram, zram, multipath head, …
        kind: String,
    },
    /// Zoned.
    #[error("{0} is a zoned disk, which is not supported")]
    Zoned(PathBuf),
    /// Integrity metadata.
    #[error("{0} carries integrity metadata (T10-PI), which would be lost: format it without to protect it")]
    Integrity(PathBuf),
    /// Peer-to-peer memory.
    #[error(
        "{path} shares a machine with published peer-to-peer memory ({device}), which the tap cannot read on this kernel: unpublish it or use Linux 6.17"
    )]
    PeerMemory {
        /// What was asked for.
        path: PathBuf,
        /// Who publishes.
        device: String,
    },
    /// Nothing in it.
    #[error("{0} is empty (no medium, or a loop device without a file)")]
    Empty(PathBuf),
    /// Two disks look the same.
    #[error(
        "{path} cannot be told from {other}: both are {identity}; give one another serial number, or another GPT identifier with `sgdisk -G`"
    )]
    Ambiguous {
        /// What was asked for.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What they share.
        identity: String,
    },
    /// One of two disks lies on the other.
    #[error(
        "{path} cannot be protected: {inner} is a loop device whose file lies on {outer}, and every write would be captured twice; protect only {outer}, which holds both, or move the file to a disk that is not protected"
    )]
    Nested {
        /// What was asked for.
        path: PathBuf,
        /// The loop device.
        inner: PathBuf,
        /// The disk of its file.
        outer: PathBuf,
    },
    /// Each write would make another.
    #[error(
        "{folder} lies on {disk}, which is protected, and every write to it would be captured again: name a folder on a disk that is not protected with --spool DIR"
    )]
    Feedback {
        /// The folder.
        folder: PathBuf,
        /// The protected disk.
        disk: PathBuf,
    },
    /// Which disk holds it cannot be told.
    #[error(
        "{folder} is on a file system of type {kind}, for which the disks below are not known: name a folder on a disk that is not protected with --spool DIR"
    )]
    NoDisk {
        /// The folder.
        folder: PathBuf,
        /// Its file system.
        kind: String,
    },
    /// No disk of that identity.
    #[error("no disk is {0}: attach it again, or end its protection with 'tidemark-splitter unprotect'")]
    Gone(String),
}
