//! Hostile clients, at the level of processes and sockets.

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

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tidemark_proto::v1;
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::splitter_client::SplitterClient;
use tidemark_tests::site::{Site, Splitter, skipped};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// What refused strangers leave in the log of the appliance.
const EXPECTED: &[&str] = &["refused", "token", "TLS", "tls", "handshake", "certificate", "enrol", "denied"];

/// A splitter of this site that is not enrolled.
fn stranger(site: &Site, vm: &str) -> Splitter {
    Splitter::new(vm, site.path(), site.pins(), &[])
}

/// A TLS channel that trusts the appliance and shows no certificate.
async fn anonymous(site: &Site) -> Channel {
    let context = std::fs::read_to_string(site.data().join("admin.context")).unwrap();
    let context: toml::Table = context.parse().unwrap();
    let ca = Certificate::from_pem(context["ca_pem"].as_str().unwrap());
    let port = site.address().rsplit_once(':').unwrap().1;
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name(tidemark_proto::tls::SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.unwrap()
}

#[test]
fn tokens_work_once_in_time_and_only_at_home() {
    if skipped("splitter states") {
        return;
    }
    let site = Site::start("tokens").unwrap();
    // Replayed.
    let token = site.token("vm-a", &[]).unwrap();
    stranger(&site, "vm-a").enrol(site.address(), &token).unwrap();
    let replayed = stranger(&site, "vm-a2").enrol(site.address(), &token).unwrap_err();
    println!("replayed: {replayed:#}");
    // Expired.
    let token = site.token("vm-b", &["--ttl", "1s"]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let expired = stranger(&site, "vm-b").enrol(site.address(), &token).unwrap_err();
    println!("expired: {expired:#}");
    // Revoked.
    let token = site.token("vm-c", &[]).unwrap();
    let list = site.cli_json(&["token", "list"]).unwrap();
    let entry =
        list.as_array().unwrap().iter().find(|entry| entry["vm"] == "vm-c" || entry["vm_name"] == "vm-c");
    site.cli(&["token", "revoke", entry.unwrap()["id"].as_str().unwrap()]).unwrap();
    let revoked = stranger(&site, "vm-c").enrol(site.address(), &token).unwrap_err();
    println!("revoked: {revoked:#}");
    // Another appliance's: the pinned CA does not fit.
    let other = Site::start("tokens-other").unwrap();
    let foreign = other.token("vm-d", &[]).unwrap();
    let refused = stranger(&site, "vm-d").enrol(site.address(), &foreign).unwrap_err();
    println!("foreign: {refused:#}");
    // A token is not a guess.
    let mut guess = site.token("vm-e", &[]).unwrap();
    let last = if guess.pop() == Some('a') { 'b' } else { 'a' };
    guess.push(last);
    assert!(stranger(&site, "vm-e").enrol(site.address(), &guess).is_err());
    other.finish(EXPECTED).unwrap();
    site.finish(EXPECTED).unwrap();
}

#[test]
fn strangers_get_nothing_and_harm_nothing() {
    if skipped("splitter states") {
        return;
    }
    let site = Site::start("strangers").unwrap();
    // Plain text, garbage, half a TLS record, and silence.
    for words in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        b"\x16\x03\x01\x40\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(site.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let _ = stream.write_all(words);
        let mut answer = [0; 512];
        let read = stream.read(&mut answer).unwrap_or(0);
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(!text.contains("200"), "a plain-text client was answered: {text}");
    }
    let silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(site.address()).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = anonymous(&site).await;
        let mut console = ConsoleClient::new(channel.clone());
        let refused = console.list_vms(v1::ListVmsRequest::default()).await.unwrap_err();
        println!("console without a certificate: {refused}");
        assert!(
            matches!(refused.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied),
            "{refused}"
        );
        let mut splitter = SplitterClient::new(channel);
        let refused = splitter.renew(v1::RenewRequest::default()).await.unwrap_err();
        assert!(
            matches!(refused.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied),
            "{refused}"
        );
    });
    // The console still works while 64 strangers hold connections open.
    site.cli(&["vm", "list"]).unwrap();
    drop(silent);
    site.finish(EXPECTED).unwrap();
}
