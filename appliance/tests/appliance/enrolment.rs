//! Tokens, certificates, and who may call what.

use std::io::{Read, Write};
use std::time::Duration;

use crate::site::{Site, key_and_csr};
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::splitter_client::SplitterClient;
use tidemark_proto::v1::{
    AdminRenewRequest, Empty, ListCertificatesRequest, ListTokensRequest, ListVmsRequest, RenewRequest,
    RevokeCertificateRequest, RevokeTokenRequest, splitter_message,
};
use tonic::Code;

#[tokio::test]
async fn a_token_enrols_once_and_its_misuse_has_its_own_message() {
    let site = Site::start().await;
    let token = site.token("web-1", false).await;
    assert_eq!(token.ca_sha256, site.appliance().core().authority.sha256(), "the token pins this CA");
    let (enrolled, _) = site.enrol(&token).await.unwrap();
    assert_eq!(enrolled.vm_name, "web-1");
    let used = site.enrol(&token).await.unwrap_err();
    assert!(used.message().contains("has been used"), "{used}");

    let mut wrong = site.token("web-2", false).await;
    wrong.secret[31] ^= 1;
    let refused = site.enrol(&wrong).await.unwrap_err();
    assert!(refused.message().contains("not issued by this appliance"), "{refused}");
    let other = Site::start().await;
    let foreign = other.token("web-2", false).await;
    let refused = site.enrol(&foreign).await.unwrap_err();
    assert!(refused.message().contains("not issued by this appliance"), "{refused}");

    let revoked = site.token("web-3", false).await;
    let mut console = site.console().await;
    console.revoke_token(RevokeTokenRequest { id: revoked.id.clone() }).await.unwrap();
    let refused = site.enrol(&revoked).await.unwrap_err();
    assert!(refused.message().contains("was revoked"), "{refused}");

    let request =
        tidemark_proto::v1::CreateTokenRequest { vm_name: "web-4".into(), ttl_seconds: 1, replace: false };
    let short = console.create_token(request).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = site.enrol(&short.token.parse().unwrap()).await.unwrap_err();
    assert!(refused.message().contains("has expired"), "{refused}");

    let states: Vec<_> = console.list_tokens(ListTokensRequest {}).await.unwrap().into_inner().tokens;
    let state = |id: &str| states.iter().find(|token| token.id == id).unwrap().state.clone();
    assert_eq!(
        (state(&token.id), state(&revoked.id), state(&short.id)),
        ("used".into(), "revoked".into(), "expired".into())
    );
}

#[tokio::test]
async fn a_name_is_enrolled_once_and_replaced_only_on_request() {
    let site = Site::start().await;
    let (first, second) = (site.token("db", false).await, site.token("db", false).await);
    site.enrol(&first).await.unwrap();
    let taken = site.enrol(&second).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let mut console = site.console().await;
    let request =
        |replace| tidemark_proto::v1::CreateTokenRequest { vm_name: "db".into(), ttl_seconds: 0, replace };
    assert!(console.create_token(request(false)).await.unwrap_err().message().contains("--replace"));
    let mut none = request(true);
    none.vm_name = "nobody".into();
    assert!(console.create_token(none).await.unwrap_err().message().contains("leave --replace out"));
    let mut bad = request(false);
    bad.vm_name = "../etc".into();
    assert_eq!(console.create_token(bad).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn garbage_requests_are_refused_and_attempts_are_limited() {
    let site = Site::start().await;
    let token = site.token("web", false).await;
    let mut client =
        tidemark_proto::v1::enrolment_client::EnrolmentClient::new(site.channel(None).await.unwrap());
    let mut request = tidemark_proto::v1::EnrolRequest {
        secret: token.secret.to_vec().into(),
        token_id: token.id.clone(),
        csr_pem: "garbage".into(),
        software: "test".into(),
    };
    let refused = client.enrol(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    request.csr_pem = "x".repeat(1 << 20);
    assert!(client.enrol(request.clone()).await.is_err());
    // The token was not used up by requests that could not be signed.
    site.enrol(&token).await.unwrap();
    request.csr_pem.clear();
    let mut limited = None;
    for _ in 0..60 {
        let refused = client.enrol(request.clone()).await.unwrap_err();
        if refused.code() == Code::ResourceExhausted {
            limited = Some(refused);
        }
    }
    assert!(limited.unwrap().message().contains("wait a minute"));
}

#[tokio::test]
async fn plain_text_gets_nothing_and_no_certificate_gets_only_enrolment() {
    let site = Site::start().await;
    let address = site.address();
    for words in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 64]] {
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(words).unwrap();
            let mut answer = Vec::new();
            // A reset is as good as an end.
            let _ = stream.read_to_end(&mut answer);
            answer
        });
        assert!(answer.await.unwrap().is_empty());
    }
    let channel = site.channel(None).await.unwrap();
    let refused = ConsoleClient::new(channel.clone()).list_vms(ListVmsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = SplitterClient::new(channel).renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn certificates_of_one_role_or_appliance_do_not_serve_another() {
    let site = Site::start().await;
    let guest = site.guest("a", 1 << 20).await;
    let channel = site.channel(Some((&guest.certificate, &guest.key))).await.unwrap();
    let refused = ConsoleClient::new(channel).status(Empty {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    let refused = SplitterClient::new(channel).renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Another appliance's administrator: TLS itself refuses.
    let other = Site::start().await.context();
    let refused = match site.channel(Some((&other.certificate_pem, &other.key_pem))).await {
        Err(_) => true,
        Ok(channel) => ConsoleClient::new(channel).status(Empty {}).await.is_err(),
    };
    assert!(refused);
}

#[tokio::test]
async fn renewed_certificates_work_and_revoked_ones_are_cut_off() {
    let site = Site::start().await;
    let mut guest = site.guest("a", 1 << 20).await;
    let channel = site.channel(Some((&guest.certificate, &guest.key))).await.unwrap();
    let (key, csr_pem) = key_and_csr();
    let renewed = SplitterClient::new(channel).renew(RenewRequest { csr_pem }).await.unwrap().into_inner();
    (guest.certificate, guest.key) = (renewed.certificate_pem, key);
    let mut stream = guest.connect(&site).await.unwrap();

    let mut console = site.console().await;
    let listed =
        console.list_certificates(ListCertificatesRequest {}).await.unwrap().into_inner().certificates;
    let of_vm: Vec<_> = listed.iter().filter(|certificate| certificate.subject == "a").collect();
    assert_eq!(of_vm.len(), 2);
    for certificate in of_vm {
        console
            .revoke_certificate(RevokeCertificateRequest { serial: certificate.serial.clone() })
            .await
            .unwrap();
    }
    let goodbye = stream.goodbye().await;
    assert!(goodbye.reason.contains("revoked") && !goodbye.retry, "{goodbye:?}");
    let refused = guest.open(&site, splitter_message::Body::Hello(guest.hello())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let missing =
        console.revoke_certificate(RevokeCertificateRequest { serial: "00".into() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn an_administrator_renews_and_a_revoked_one_is_refused() {
    let mut site = Site::start().await;
    let mut console = site.console().await;
    let (key, csr_pem) = key_and_csr();
    let renewed = console.renew_admin(AdminRenewRequest { csr_pem }).await.unwrap().into_inner();
    let channel = site.channel(Some((&renewed.certificate_pem, &key))).await.unwrap();
    let mut second = ConsoleClient::new(channel);
    let listed =
        second.list_certificates(ListCertificatesRequest {}).await.unwrap().into_inner().certificates;
    let oldest = listed.last().unwrap();
    second.revoke_certificate(RevokeCertificateRequest { serial: oldest.serial.clone() }).await.unwrap();
    let refused = console.status(Empty {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "the revoked one");
    // Whoever owns the data folder gets a new one with the next start.
    drop((console, second));
    site.restart().await;
    site.console().await.status(Empty {}).await.unwrap();
}
