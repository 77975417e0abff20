//! Notes which compiler builds the program, for `garage stats`.

use std::process::Command;

fn main() {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = Command::new(compiler).arg("--version").output().ok().and_then(|output| String::from_utf8(output.stdout).ok());
    // "rustc 1.95.0 (…)"
    let version = told.as_deref().and_then(|text| text.split_whitespace().nth(1)).unwrap_or("unknown");
    println!("cargo::rustc-env=GARAGE_RUSTC_VERSION={version}");
    println!("cargo::rerun-if-changed=build.rs");
}
