//! Compiles the schema with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    if std::env::var_os("CARGO_FEATURE_SERVICES").is_none() {
        return Ok(());
    }
    let files = ["schema/stream.proto", "schema/enrolment.proto", "schema/console.proto"];
    let descriptors = protox::compile(files, ["schema"])?;
    // Payloads stay reference-counted slices of the received buffer.
    tonic_prost_build::configure().bytes(".tidemark.v1").compile_fds(descriptors)?;
    Ok(())
}
