//! Builds the eBPF programs with clang and hands them to the crate as object files in `OUT_DIR`.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 2] = ["tap", "calibrate"];

fn main() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?);
    println!("cargo::rerun-if-changed=src/bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    for name in SOURCES {
        compile(
            &clang,
            &Path::new("src/bpf").join(format!("{name}.bpf.c")),
            &out.join(format!("{name}.bpf.o")),
        )?;
    }
    Ok(())
}

/// `-g` is not for debugging: the relocations (CO-RE) and the map definitions are in the BTF that it makes.
fn compile(clang: &str, source: &Path, object: &Path) -> Result<(), String> {
    let status = Command::new(clang)
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-Wno-unused-function", "-c"])
        .arg(source)
        .arg("-o")
        .arg(object)
        .status()
        .map_err(|error| format!("cannot run {clang}: {error}; install clang 14 or newer, or set CLANG"))?;
    if status.success() { Ok(()) } else { Err(format!("{clang} could not compile {}", source.display())) }
}
