//! Compiles the gRPC interface in pure Rust: no protoc is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/flow.proto");
    let files = protox::compile(["flow.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("flow_descriptor.bin");
    tonic_prost_build::configure()
        .build_client(false)
        .file_descriptor_set_path(&out)
        .compile_fds(files)?;
    Ok(())
}
