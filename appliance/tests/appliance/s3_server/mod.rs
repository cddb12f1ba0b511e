//! A real S3-compatible server on loopback, which a test may kill, and whose files it may damage.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_appliance::packs::{Access, ObjectFolder, ObjectPlace, PacksError, PieceCache, Remote};
use tokio::runtime::Handle;

pub(crate) const KEY_ID: &str = "test-key";
pub(crate) const SECRET: &str = "test-secret";
pub(crate) const BUCKET: &str = "packs-bucket";

/// The server's program, as `tests/run` installs it; `None`, with the reason printed, where it is not.
fn program() -> Option<PathBuf> {
    let this = std::env::current_exe().unwrap();
    let named = std::env::var_os("TIDEMARK_S3_SERVER").map(PathBuf::from);
    let installed = this.ancestors().map(|folder| folder.join("s3-server/bin/s3s-fs"));
    let found = named.into_iter().chain(installed).find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: no S3-compatible server is installed; `tests/run --install` installs one");
    }
    found
}

pub(crate) struct S3Server {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl S3Server {
    pub(crate) fn start() -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { program, folder, port, process: None };
        server.restart();
        Some(server)
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(&self.program);
        command.args(["--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--access-key", KEY_ID, "--secret-key", SECRET]).arg(self.folder.path());
        command.env("RUST_LOG", "error").stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The file of an object.
    pub(crate) fn file(&self, object: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(object)
    }

    pub(crate) fn access(&self) -> Access {
        let endpoint = self.endpoint();
        let value = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some(KEY_ID.to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some(SECRET.to_owned()),
            "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
            _ => None,
        };
        Access::from_environment(value).unwrap()
    }

    /// The packs below a prefix, taken for an appliance.
    pub(crate) fn take(
        &self,
        runtime: &Handle,
        prefix: &str,
        appliance: &str,
        cache: Option<&Path>,
    ) -> Result<Arc<ObjectFolder>, PacksError> {
        let place = ObjectPlace { bucket: BUCKET.to_owned(), prefix: prefix.to_owned() };
        let client = Arc::new(self.access().client(&place).unwrap());
        let remote = Remote::new(client, runtime.clone(), &place);
        let cache = cache.map(|folder| PieceCache::open(folder, 64 << 20).unwrap());
        ObjectFolder::take(remote, cache, appliance, 1).map(Arc::new)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.kill();
    }
}
