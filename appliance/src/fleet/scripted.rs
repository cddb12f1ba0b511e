//! VMs of tests: without a journal, with a session that a script answers for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tidemark_journal::attest::SigningKey;
use tidemark_journal::view::BaseImages;
use tidemark_proto::ids::{DiskId, VmId};
use tidemark_proto::version::PROTOCOL_MAX;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Command, LogKeys, SessionHandle, Vm, VmLog};

struct NoImages;

impl fmt::Debug for NoImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoImages")
    }
}

impl BaseImages for NoImages {
    fn read(
        &self,
        _: DiskId,
        _: &[u8],
        _: u64,
        _: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Err("there are none".into())
    }
}

/// A VM whose journal is down.
pub(crate) fn vm(name: &str) -> Arc<Vm> {
    let signer = Arc::new(SigningKey::from_seed(&[7; 32]).unwrap());
    let keys = LogKeys { signer, master: None };
    let id = VmId::random();
    let log = VmLog::open(id, Path::new("/dev/null/nowhere"), Arc::new(NoImages), keys);
    Arc::new(Vm::new(id, name.to_owned(), log))
}

/// Begins a session; what it is commanded comes out.
pub(crate) fn connect(vm: &Arc<Vm>) -> mpsc::Receiver<Command> {
    let (commands, receiver) = mpsc::channel(64);
    vm.begin_session(SessionHandle {
        id: 1,
        boot_id: String::new(),
        capture_id: Vec::new(),
        software: String::new(),
        protocol: PROTOCOL_MAX,
        commands,
        last_message_us: Arc::new(AtomicU64::new(0)),
        done: CancellationToken::new(),
    });
    receiver
}
