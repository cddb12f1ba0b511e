//! Persons who are no administrators, as their consoles would call.

use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::roles_client::RolesClient;
use tidemark_proto::v1::sets_client::SetsClient;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    CreateSetRequest, Empty, IssueCertificateRequest, IssueCertificateResponse, OpenViewReply,
    OpenViewRequest, ReadViewRequest, RightRequest, ViewPurpose, When,
};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::site::{Site, key_and_csr};

pub(crate) const DISK_BYTES: u64 = 1 << 20;

pub(crate) async fn admin(site: &Site) -> Channel {
    let context = site.context();
    site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap()
}

/// A right as it is asked for; `target` is `set:NAME` or `vm:NAME`.
pub(crate) fn right(person: &str, right: &str, target: &str) -> RightRequest {
    let (kind, name) = target.split_once(':').unwrap();
    let (set, vm) = if kind == "set" { (name, "") } else { ("", name) };
    RightRequest { person: person.into(), right: right.into(), set: set.into(), vm: vm.into() }
}

pub(crate) async fn grant(site: &Site, person: &str, word: &str, target: &str) {
    RolesClient::new(admin(site).await).grant_right(right(person, word, target)).await.unwrap();
}

pub(crate) async fn revoke(site: &Site, person: &str, word: &str, target: &str) {
    RolesClient::new(admin(site).await).revoke_right(right(person, word, target)).await.unwrap();
}

pub(crate) async fn set(site: &Site, name: &str, rule: &str) {
    let request = CreateSetRequest { name: name.into(), rules: vec![rule.into()], ..<_>::default() };
    SetsClient::new(admin(site).await).create_set(request).await.unwrap();
}

/// Somebody with a certificate of a person.
pub(crate) struct Person {
    pub(crate) issued: IssueCertificateResponse,
    key: String,
}

impl Person {
    pub(crate) async fn of(site: &Site, name: &str) -> Self {
        Self::issue(site, name, 0).await.unwrap()
    }

    pub(crate) async fn issue(site: &Site, name: &str, validity_seconds: u64) -> Result<Self, Status> {
        let (key, csr_pem) = key_and_csr();
        let request = IssueCertificateRequest { person: name.into(), csr_pem, validity_seconds };
        let issued = RolesClient::new(admin(site).await).issue_certificate(request).await?.into_inner();
        Ok(Self { issued, key })
    }

    pub(crate) async fn channel(&self, site: &Site) -> Channel {
        site.channel(Some((&self.issued.certificate_pem, &self.key))).await.unwrap()
    }

    pub(crate) async fn console(&self, site: &Site) -> ConsoleClient<Channel> {
        ConsoleClient::new(self.channel(site).await)
    }

    pub(crate) async fn sets(&self, site: &Site) -> SetsClient<Channel> {
        SetsClient::new(self.channel(site).await)
    }

    pub(crate) async fn open(
        &self,
        site: &Site,
        vm: &str,
        purpose: ViewPurpose,
    ) -> Result<(OpenViewReply, Streaming<OpenViewReply>), Status> {
        let request =
            OpenViewRequest { vm: vm.into(), at: latest(), disk: String::new(), purpose: purpose.into() };
        let mut held = self.console(site).await.open_view(request).await?.into_inner();
        Ok((held.message().await?.unwrap(), held))
    }

    /// The first bytes of the first disk of a view.
    pub(crate) async fn read(&self, site: &Site, view_id: &str) -> Result<Vec<u8>, Status> {
        read(&mut self.console(site).await, view_id).await
    }
}

pub(crate) async fn read(console: &mut ConsoleClient<Channel>, view_id: &str) -> Result<Vec<u8>, Status> {
    let request = ReadViewRequest { view_id: view_id.into(), disk: "disk-1".into(), offset: 0, length: 512 };
    let chunk = console.read_view(request).await?.into_inner().message().await?.unwrap();
    Ok(chunk.data.to_vec())
}

pub(crate) fn latest() -> Option<When> {
    Some(When { point: Some(Point::Latest(true)) })
}

/// A VM whose first sector is `[value; 512]`.
pub(crate) async fn protected(site: &Site, name: &str, value: u8) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    let mut stream = guest.connect(site).await.unwrap();
    guest.protect(&mut stream).await;
    for frame in [guest.write(0, vec![value; 512]), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
}

/// Calls any method with an empty message, which is one of any kind.
pub(crate) async fn call(channel: &Channel, method: &'static str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Empty, Empty>::default();
    let (request, path) = (Request::new(Empty {}), PathAndQuery::from_static(method));
    grpc.server_streaming(request, path, codec).await?.into_inner().message().await.map(|_| ())
}
