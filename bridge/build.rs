//! Compiles the gRPC interface in pure Rust: no protoc is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/flow.proto");
    let files = protox::compile(["flow.proto"], ["proto"])?;
    // For reflection.
    let descriptor = PathBuf::from(std::env::var("OUT_DIR")?).join("flow_descriptor.bin");
    std::fs::write(descriptor, files.encode_to_vec())?;
    tonic_prost_build::configure().build_client(false).compile_fds(files)?;
    Ok(())
}
