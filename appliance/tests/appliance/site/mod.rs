//! A real appliance on a loopback port in this process, and small clients that speak its protocol.

mod guest;
mod object;
mod tmpfs;

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tidemark_appliance::admin_context::AdminContext;
use tidemark_appliance::server::Appliance;
use tidemark_appliance::settings::Settings;
use tidemark_proto::tls::SERVER_NAME;
use tidemark_proto::token::Token;
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::enrolment_client::EnrolmentClient;
use tidemark_proto::v1::{
    CreateTokenRequest, Empty, EnrolRequest, EnrolResponse, ListVmsRequest, OpenViewRequest, ReadViewRequest,
    VmInfo, When,
};
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) use guest::{Guest, Stream};
pub(crate) use tmpfs::Tmpfs;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running appliance and its folder.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) settings: Settings,
    pub(crate) appliance: Option<Appliance>,
    process: Option<Child>,
}

/// A key and the request for its certificate, PEM.
pub(crate) fn key_and_csr() -> (String, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::new(Vec::<String>::new()).unwrap().serialize_request(&key).unwrap();
    (key.serialize_pem(), csr.pem().unwrap())
}

impl Site {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::local(&dir.path().join("data"));
        Self::start_with(dir, settings).await
    }

    pub(crate) async fn start_with(dir: TempDir, settings: Settings) -> Self {
        let _ = tracing_subscriber::fmt().with_env_filter("warn").with_test_writer().try_init();
        let appliance = Appliance::start(&settings).await.unwrap();
        Self { dir, settings, appliance: Some(appliance), process: None }
    }

    /// An appliance that runs already, on a folder that is another's to remove.
    pub(crate) fn adopt(settings: Settings, appliance: Appliance) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, settings, appliance: Some(appliance), process: None }
    }

    /// An appliance that is a process of its own, to be killed.
    pub(crate) async fn start_process(arguments: &[&str]) -> Self {
        Self::start_process_in(tempfile::tempdir().unwrap(), arguments).await
    }

    /// The same, with its data in `dir/data`.
    pub(crate) async fn start_process_in(dir: TempDir, arguments: &[&str]) -> Self {
        let settings = Settings::local(&dir.path().join("data"));
        let mut site = Self { dir, settings, appliance: None, process: None };
        site.spawn(arguments).await;
        site
    }

    /// Starts the process (again) and waits until it answers.
    pub(crate) async fn spawn(&mut self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark-appliance"));
        command.arg("--data").arg(&self.settings.data);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(arguments);
        self.process = Some(command.env("TIDEMARK_LOG", "warn").spawn().unwrap());
        for _ in 0..500 {
            if self.settings.data.join("admin.context").exists() {
                let context = self.context();
                let identity = Some((&context.certificate_pem[..], &context.key_pem[..]));
                if let Ok(channel) = self.channel(identity).await
                    && ConsoleClient::new(channel).status(Empty {}).await.is_ok()
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the appliance does not answer");
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks the process to end and gives its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let mut process = self.process.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        process.wait().unwrap().code()
    }

    pub(crate) fn appliance(&self) -> &Appliance {
        self.appliance.as_ref().unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.context().address.parse().unwrap()
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.appliance = Some(Appliance::start(&self.settings).await.unwrap());
    }

    /// Starts again without the catalog.
    pub(crate) async fn lose_catalog(&mut self) {
        self.stop().await;
        for entry in std::fs::read_dir(&self.settings.data).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("catalog.sqlite") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        self.restart().await;
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(appliance) = self.appliance.take() {
            appliance.shutdown().await;
        }
    }

    pub(crate) fn context(&self) -> AdminContext {
        let text = std::fs::read_to_string(self.settings.data.join("admin.context")).unwrap();
        toml::from_str(&text).unwrap()
    }

    /// A channel that trusts this appliance and shows the given certificate and key.
    pub(crate) async fn channel(
        &self,
        identity: Option<(&str, &str)>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.context().ca_pem))
            .domain_name(SERVER_NAME);
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }

    pub(crate) async fn console(&self) -> ConsoleClient<Channel> {
        let context = self.context();
        let channel = self.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
        ConsoleClient::new(channel)
    }

    pub(crate) async fn token(&self, vm: &str, replace: bool) -> Token {
        let request = CreateTokenRequest { vm_name: vm.into(), ttl_seconds: 0, replace };
        self.console().await.create_token(request).await.unwrap().into_inner().token.parse().unwrap()
    }

    /// Enrols with a fresh key; returns the answer and the key.
    pub(crate) async fn enrol(&self, token: &Token) -> Result<(EnrolResponse, String), Status> {
        let (key, csr_pem) = key_and_csr();
        let mut client = EnrolmentClient::new(self.channel(None).await.unwrap());
        let request = EnrolRequest {
            secret: token.secret.to_vec().into(),
            token_id: token.id.clone(),
            csr_pem,
            software: "test".into(),
        };
        Ok((client.enrol(request).await?.into_inner(), key))
    }

    /// A VM with one disk of `disk_bytes`, enrolled, not connected.
    pub(crate) async fn guest(&self, name: &str, disk_bytes: u64) -> Guest {
        let token = self.token(name, false).await;
        let (enrolled, key) = self.enrol(&token).await.unwrap();
        Guest::new(enrolled, key, disk_bytes)
    }

    /// All of the first disk of a VM or clone as of a point.
    pub(crate) async fn content(&self, vm: &str, at: Option<When>) -> Result<Vec<u8>, Status> {
        let mut console = self.console().await.max_decoding_message_size(64 << 20);
        let request = OpenViewRequest { vm: vm.into(), at, disk: String::new(), ..<_>::default() };
        let mut held = console.open_view(request).await?.into_inner();
        let view = held.message().await?.unwrap();
        let length = view.disks[0].size_bytes;
        let request = ReadViewRequest { view_id: view.view_id, disk: "disk-1".into(), offset: 0, length };
        let mut chunks = console.read_view(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            bytes.extend_from_slice(&chunk.data);
            bytes.resize(bytes.len() + usize::try_from(chunk.zero_bytes).unwrap(), 0);
        }
        Ok(bytes)
    }

    pub(crate) async fn vm(&self, name: &str) -> VmInfo {
        let request = ListVmsRequest { name: name.into() };
        self.console().await.list_vms(request).await.unwrap().into_inner().vms.remove(0)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
