//! Compiles the schema with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    if std::env::var_os("CARGO_FEATURE_MESSAGES").is_none() {
        return Ok(());
    }
    let files = [
        "schema/level.proto",
        "schema/barrier.proto",
        "schema/stream.proto",
        "schema/compare.proto",
        "schema/verify.proto",
        "schema/enrolment.proto",
        "schema/console.proto",
        "schema/jobs.proto",
        "schema/history.proto",
        "schema/retention.proto",
        "schema/clones.proto",
        "schema/search.proto",
        "schema/objects.proto",
        "schema/attest.proto",
        "schema/restore.proto",
        "schema/sets.proto",
        "schema/roles.proto",
    ];
    let descriptors = protox::compile(files, ["schema"])?;
    let mut methods = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("methods.rs"), format!("&{methods:?}"))?;
    // Payloads stay reference-counted slices of the received buffer.
    let services = std::env::var_os("CARGO_FEATURE_SERVICES").is_some();
    tonic_prost_build::configure()
        .bytes(".tidemark.v1")
        .build_client(services)
        .build_server(services)
        .compile_fds(descriptors)?;
    Ok(())
}
