//! Compiles the schema with protox, so that no protoc is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let schema = root.join("sluice/v1/sluice.proto");
    println!("cargo:rerun-if-changed={}", schema.display());
    let descriptors = protox::compile([&schema], [&root])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.type_attribute(".", "#[derive(serde::Serialize)]");
    config.enum_attribute("sluice.v1.Envelope.body", "#[serde(rename_all = \"snake_case\")]");
    config.enum_attribute("sluice.v1.Envelope.body", "#[allow(clippy::large_enum_variant)]");
    for field in [
        "Genesis.log_uuid",
        "Fence.owner",
        "Job.prev_hash",
        "Job.coinbase1",
        "Job.coinbase2",
        "TemplateChunk.data",
        "TemplateBody.wtxids",
        "Verdict.header_hash",
        "Candidate.header",
        "Candidate.coinbase",
        "SolvedBlock.hash",
        "SolvedBlock.block",
        "BlockOutcome.hash",
        "DeadLetter.record",
    ] {
        config.field_attribute(field, "#[serde(serialize_with = \"crate::json::hex\")]");
    }
    for field in ["Job.merkle_branch", "TemplateBody.new_transactions"] {
        config.field_attribute(field, "#[serde(serialize_with = \"crate::json::hex_list\")]");
    }
    config.compile_fds(descriptors)?;
    Ok(())
}
