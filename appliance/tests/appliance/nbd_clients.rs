//! The NBD server against the clients that people use: libnbd (`nbdinfo`, `nbdcopy`), `qemu-img`, `qemu-io` and fio.
//! A client that is not installed is skipped by name.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use tidemark_appliance::export::{ExportSource, Exports, SourceExtent};
use tidemark_proto::v1::ExportInfo;

/// A volume in memory: blocks of 64 KiB, two of three with data.
struct Ram(Vec<u8>);

const BLOCK: usize = 64 << 10;
const SIZE: usize = 24 << 20;

impl Ram {
    fn new(seed: u64) -> Self {
        let mut bytes = vec![0; SIZE];
        let mut state = seed | 1;
        for (index, block) in bytes.chunks_mut(BLOCK).enumerate() {
            if index % 3 != 0 {
                for word in block.chunks_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
            }
        }
        Self(bytes)
    }
}

impl ExportSource for Ram {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let range = start..start + buffer.len();
        let bytes = self.0.get(range).ok_or_else(|| io::Error::other("beyond the end"))?;
        // The last block is damaged.
        if start + buffer.len() > SIZE - BLOCK && self.0[SIZE - 1] == 0xEE {
            return Err(io::Error::other("checksum mismatch"));
        }
        buffer.copy_from_slice(bytes);
        Ok(())
    }
    fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
        let (mut at, end) = (offset, offset + length);
        let mut extents = Vec::new();
        while at < end {
            let block = at / BLOCK as u64;
            let next = ((block + 1) * BLOCK as u64).min(end);
            extents.push(SourceExtent { length: next - at, zero: block.is_multiple_of(3) });
            at = next;
        }
        Ok(extents)
    }
}

/// An appliance's exports with a run time of their own, so that clients can block.
struct Server {
    runtime: tokio::runtime::Runtime,
    exports: Exports,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let exports = Exports::new(folder.path().join("exports"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, exports, folder }
    }

    fn export(&self, source: Ram, tls: &str) -> ExportInfo {
        let started = self.exports.start_source("web-1", "disk-1", 7, Arc::new(source), tls);
        self.runtime.block_on(started).unwrap()
    }

    /// The credentials as the console writes them; returns the folder.
    fn credentials(&self, info: &ExportInfo) -> String {
        let folder = self.folder.path().join(&info.id);
        std::fs::create_dir(&folder).unwrap();
        for (name, pem) in [
            ("ca-cert.pem", &info.ca_pem),
            ("client-cert.pem", &info.client_certificate_pem),
            ("client-key.pem", &info.client_key_pem),
        ] {
            std::fs::write(folder.join(name), pem).unwrap();
        }
        folder.display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn socket_of(info: &ExportInfo) -> String {
    info.uri.split_once("?socket=").unwrap().1.to_owned()
}

/// Runs a client; `None` when it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// Runs a client that must succeed; returns what it printed.
fn succeed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = run(program, arguments)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    Some(stdout)
}

fn fail(program: &str, arguments: &[&str]) {
    if let Some(output) = run(program, arguments) {
        assert!(!output.status.success(), "{program} {arguments:?} should have failed");
    }
}

#[test]
fn libnbd_reads_every_byte_and_sees_the_holes() {
    let server = Server::start();
    let expected = Ram::new(1).0;
    let info = server.export(Ram::new(1), "");
    assert_eq!(Path::new(&socket_of(&info)).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    if let Some(json) = succeed("nbdinfo", &["--json", &info.uri]) {
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let export = &json["exports"][0];
        assert_eq!(json["protocol"], "newstyle-fixed");
        assert_eq!(json["structured"], true);
        assert_eq!(export["export-size"], SIZE);
        assert_eq!((&export["is_read_only"], &export["can_multi_conn"]), (&true.into(), &true.into()));
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }
    if let Some(map) = succeed("nbdinfo", &["--map", "--json", &info.uri]) {
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        assert_eq!((&map[0]["length"], &map[0]["type"]), (&BLOCK.into(), &3.into()));
        assert_eq!((&map[1]["length"], &map[1]["type"]), (&(2 * BLOCK).into(), &0.into()));
    }
    assert!(succeed("nbdinfo", &["--list", &info.uri]).is_none_or(|list| list.contains("disk-1")));
    for arguments in
        [&[][..], &["--connections=4", "--requests=32"], &["--synchronous"], &["--request-size=33554432"]]
    {
        let copy = server.file("copy.raw");
        let all = [arguments, &[&info.uri, &copy]].concat();
        if succeed("nbdcopy", &all).is_some() {
            assert!(std::fs::read(&copy).unwrap() == expected, "{arguments:?}");
            std::fs::remove_file(copy).unwrap();
        }
    }
    server.runtime.block_on(server.exports.stop(&info.id)).unwrap();
    assert!(!Path::new(&socket_of(&info)).exists());
    fail("nbdinfo", &[&info.uri]);
}

#[test]
fn qemu_and_fio_read_and_cannot_write() {
    let server = Server::start();
    let info = server.export(Ram::new(2), "");
    let (plain, copy) = (server.file("plain.raw"), server.file("copy.qcow2"));
    std::fs::write(&plain, Ram::new(2).0).unwrap();
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", &plain, &info.uri]);
    if succeed("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &info.uri, &copy]).is_some() {
        succeed("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &plain, &copy]);
    }
    if let Some(map) = succeed("qemu-img", &["map", "-f", "raw", "--output=json", &info.uri]) {
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        assert_eq!((&map[0]["zero"], &map[0]["length"]), (&true.into(), &BLOCK.into()));
    }
    succeed("qemu-io", &["-r", "-f", "raw", "-c", "read 100 4096", "-c", "read -P 0 0 65536", &info.uri]);
    fail("qemu-io", &["-f", "raw", "-c", "write 0 512", &info.uri]);
    let uri = format!("--uri=nbd+unix:///disk-1?socket={}", socket_of(&info));
    if run("fio", &["--enghelp=nbd"]).is_some_and(|output| output.status.success()) {
        let arguments = [
            "--name=t",
            "--ioengine=nbd",
            "--rw=randread",
            "--bs=4k",
            "--iodepth=16",
            "--size=24m",
            "--output-format=json",
            &uri,
        ];
        succeed("fio", &arguments);
    }
}

#[test]
fn tls_lets_in_the_client_of_this_export_and_nobody_else() {
    let server = Server::start();
    let info = server.export(Ram::new(3), "127.0.0.1");
    let other = server.export(Ram::new(4), "127.0.0.1");
    let (own, foreign) = (server.credentials(&info), server.credentials(&other));
    let with = |folder: &str| format!("{}?tls-certificates={folder}", info.uri);
    let copy = server.file("copy.raw");
    if succeed("nbdcopy", &[&with(&own), &copy]).is_some() {
        assert!(std::fs::read(&copy).unwrap() == Ram::new(3).0);
    }
    fail("nbdinfo", &[&with(&foreign)]);
    // The foreign client's certificate with the right authority: only the server can refuse this one.
    let mixed = server.file("mixed");
    std::fs::create_dir(&mixed).unwrap();
    std::fs::copy(format!("{own}/ca-cert.pem"), format!("{mixed}/ca-cert.pem")).unwrap();
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::copy(format!("{foreign}/{name}"), format!("{mixed}/{name}")).unwrap();
    }
    fail("nbdinfo", &[&with(&mixed)]);
    fail("nbdinfo", &[&info.uri.replace("nbds://", "nbd://")]);
    let address = info.uri.split('/').nth(2).unwrap();
    let (host, port) = address.split_once(':').unwrap();
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={own}");
    let image = format!("driver=nbd,host={host},port={port},export=disk-1,tls-creds=tls0");
    if let Some(text) = succeed("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]) {
        assert!(text.contains("24 MiB"), "{text}");
    }
    let list = server.runtime.block_on(server.exports.list());
    assert!(list.len() == 2 && list.iter().all(|info| info.client_key_pem.is_empty()));
}

#[test]
fn addresses_that_clients_cannot_name_are_refused() {
    let server = Server::start();
    for address in ["0.0.0.0", "[::]:0", "nowhere.invalid", "192.0.2.1:1", ":5"] {
        let started = server.exports.start_source("v", "disk-1", 1, Arc::new(Ram(vec![0; 512])), address);
        assert!(server.runtime.block_on(started).is_err(), "{address}");
    }
}

#[test]
fn a_damaged_block_is_an_error_and_no_data() {
    let server = Server::start();
    let mut source = Ram::new(5);
    source.0[SIZE - 1] = 0xEE;
    let info = server.export(source, "");
    fail("nbdcopy", &[&info.uri, "null:"]);
    succeed("qemu-io", &["-r", "-f", "raw", "-c", "read 0 65536", &info.uri]);
}

/// A client of our own, for what polite ones do not say.
fn connect(info: &ExportInfo) -> UnixStream {
    let mut stream = UnixStream::connect(socket_of(info)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream
}

fn is_closed(mut stream: impl Read) -> bool {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).is_err() || rest.is_empty()
}

#[test]
fn hostile_clients_are_disconnected_and_the_export_lives() {
    let server = Server::start();
    let info = server.export(Ram::new(6), "");
    // Not NBD; a huge option; a huge write; a broken request; a client that leaves in the middle.
    let mut stream = connect(&info);
    stream.write_all(&[0xFF; 4096]).unwrap();
    assert!(is_closed(stream));
    let mut stream = connect(&info);
    stream.write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").unwrap();
    assert!(is_closed(stream));
    for hostile in [
        &b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\xff\xff\xff\xff"[..],
        &b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..],
    ] {
        let mut stream = connect(&info);
        // EXPORT_NAME of the empty name: 10 bytes of answer, then transmission.
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        stream.write_all(hostile).unwrap();
        assert!(is_closed(stream));
    }
    // Refusals that keep the connection: a write with its data, beyond the end, an unknown command, nothing at all.
    let mut stream = transmission(&info);
    let mut errors = Vec::new();
    for (kind, offset, length) in [
        (1u16, 0u64, 512u32),
        (0, u64::MAX, 512),
        (0, SIZE as u64, 1),
        (99, 0, 1),
        (0, 0, 0),
        (7, 0, 512),
        (4, 0, 512),
        (3, 0, 0),
    ] {
        let mut request = request(kind, 5, offset, length);
        if kind == 1 {
            request.extend([7; 512]);
        }
        stream.write_all(&request).unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], [0x67, 0x44, 0x66, 0x98]);
        errors.push(u32::from_be_bytes(reply[4..8].try_into().unwrap()));
    }
    assert_eq!(errors, [1, 22, 22, 95, 22, 22, 1, 0]);
    drop(stream);
    // More connections than an export has: the last ones are closed, earlier ones work on.
    let held: Vec<UnixStream> = (0..16).map(|_| connect(&info)).collect();
    let mut extra = UnixStream::connect(socket_of(&info)).unwrap();
    assert_eq!(extra.read(&mut [0; 18]).unwrap_or(0), 0);
    drop(held);
    std::thread::sleep(std::time::Duration::from_millis(200));
    succeed("nbdinfo", &[&info.uri]);
}

#[test]
fn a_client_that_does_not_read_cannot_keep_an_export_from_stopping() {
    let server = Server::start();
    let info = server.export(Ram::new(7), "");
    let mut stream = transmission(&info);
    for cookie in 0..64 {
        stream.write_all(&request(0, cookie, 0, 1 << 20)).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let started = std::time::Instant::now();
    server.runtime.block_on(server.exports.stop(&info.id)).unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
}

/// A request of the transmission phase.
fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut request = b"\x25\x60\x95\x13\0\0".to_vec();
    request.extend(command.to_be_bytes());
    request.extend(cookie.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(length.to_be_bytes());
    request
}

/// Into the transmission phase with simple replies.
fn transmission(info: &ExportInfo) -> UnixStream {
    let mut stream = connect(info);
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

#[test]
fn requests_that_arrive_together_are_all_answered_once() {
    let server = Server::start();
    let content = Ram::new(9).0;
    let info = server.export(Ram::new(9), "");
    let mut stream = transmission(&info);
    // Small and large ones, a flush and a refusal, in one piece, and the farewell behind them.
    let lengths = [512, 4096, 32 << 10, 1 << 20];
    let mut sent = Vec::new();
    let mut expected = std::collections::BTreeMap::new();
    for cookie in 0..200_u64 {
        let (offset, length) = (cookie * 100_000, lengths[usize::try_from(cookie % 4).unwrap()]);
        sent.extend(request(0, cookie, offset, length));
        expected.insert(cookie, (0, usize::try_from(offset).unwrap(), length as usize));
    }
    sent.extend(request(3, 1000, 0, 0));
    expected.insert(1000, (0, 0, 0));
    sent.extend(request(0, 1001, SIZE as u64, 4096));
    expected.insert(1001, (22, 0, 0));
    sent.extend(request(2, 1002, 0, 0));
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    while !expected.is_empty() {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        let (error, offset, length) = expected.remove(&cookie).expect("one answer to each request");
        assert_eq!(u32::from_be_bytes(head[4..8].try_into().unwrap()), error, "request {cookie}");
        let mut data = vec![0; length];
        stream.read_exact(&mut data).unwrap();
        assert!(data == content[offset..offset + length], "request {cookie}");
    }
    sender.join().unwrap();
    assert!(is_closed(stream), "the farewell ends the connection");
}

/// A disk: each read waits for another one that waits beside it.
#[derive(Default)]
struct Waiting {
    readers: std::sync::Mutex<usize>,
    changed: std::sync::Condvar,
}

impl ExportSource for Waiting {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(1);
        if offset == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            return Ok(());
        }
        let mut readers = self.readers.lock().unwrap();
        *readers += 1;
        self.changed.notify_all();
        let limit = std::time::Duration::from_secs(20);
        let waited = self.changed.wait_timeout_while(readers, limit, |readers| *readers < 2).unwrap().1;
        if waited.timed_out() { Err(io::Error::other("no other read came")) } else { Ok(()) }
    }
    fn extents(&self, _offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
        Ok(vec![SourceExtent { length, zero: false }])
    }
}

#[test]
fn small_reads_wait_for_a_disk_beside_each_other() {
    let server = Server::start();
    let started = server.exports.start_source("v", "disk-1", 1, Arc::new(Waiting::default()), "");
    let info = server.runtime.block_on(started).unwrap();
    let mut stream = transmission(&info);
    // The first is slow where it arrives; the next two are only answered if they run at the same time.
    let sent = [request(0, 1, 0, 512), request(0, 2, 4096, 512), request(0, 3, 8192, 512)].concat();
    stream.write_all(&sent).unwrap();
    for _ in 0..3 {
        let mut reply = [0; 16 + 512];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4]);
    }
}

#[test]
fn a_plain_tcp_client_of_a_tls_export_learns_nothing() {
    let server = Server::start();
    let info = server.export(Ram::new(8), "localhost");
    let port: u16 = info.uri.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(("localhost", port)).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..16], [0x80, 0, 0, 5], "ERR_TLS_REQD");
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("exports");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("0badcafe.sock"), "").unwrap();
    let _exports = Exports::new(dir.clone());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

/// A raw file, as `qemu-nbd` serves it.
struct Plain(std::fs::File, u64);

impl ExportSource for Plain {
    fn size(&self) -> u64 {
        self.1
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
    fn extents(&self, _offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
        Ok(vec![SourceExtent { length, zero: false }])
    }
}

/// Not part of the gate: `cargo test --release --test appliance nbd_clients -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, to be run on a quiet machine"]
fn sequential_reads_against_qemu_nbd() {
    const BYTES: u64 = 1 << 30;
    let server = Server::start();
    let plain = server.file("plain.raw");
    let mut file = std::fs::File::create(&plain).unwrap();
    let block: Vec<u8> = Ram::new(1).0.into_iter().filter(|byte| *byte != 0).collect();
    let mut written = 0;
    while written < BYTES {
        let now = block.len().min(usize::try_from(BYTES - written).unwrap());
        file.write_all(&block[..now]).unwrap();
        written += now as u64;
    }
    drop(file);
    let source = Plain(std::fs::File::open(&plain).unwrap(), BYTES);
    let started = server.exports.start_source("v", "disk-1", 1, Arc::new(source), "");
    let info = server.runtime.block_on(started).unwrap();
    let socket = server.file("qemu.sock");
    let qemu = ["-r", "-t", "-f", "raw", "-e", "8", "-k", &socket, &plain];
    let Ok(mut qemu) = Command::new("qemu-nbd").args(qemu).spawn() else {
        eprintln!("SKIPPED: qemu-nbd is not installed");
        return;
    };
    while !Path::new(&socket).exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let theirs = format!("nbd+unix:///?socket={socket}");
    for arguments in [&[][..], &["--connections=1"]] {
        let mut best = [f64::MAX; 2];
        for _ in 0..4 {
            for (best, uri) in best.iter_mut().zip([&info.uri, &theirs]) {
                let started = std::time::Instant::now();
                succeed("nbdcopy", &[arguments, &[uri, "null:"]].concat());
                *best = best.min(started.elapsed().as_secs_f64());
            }
        }
        let [ours, theirs] = best.map(|seconds| (BYTES as f64) / seconds / 1e6);
        eprintln!(
            "nbdcopy {arguments:?}: ours {ours:.0} MB/s, qemu-nbd {theirs:.0} MB/s, ratio {:.2}",
            ours / theirs
        );
    }
    qemu.kill().unwrap();
    qemu.wait().unwrap();
}
