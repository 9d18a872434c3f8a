//! Log lines, to stderr.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::cli::{Common, LogFormat};

/// Starts logging to stderr.
///
/// # Errors
/// If the filter cannot be read.
pub(crate) fn start(common: &Common) -> anyhow::Result<()> {
    start_to(common, BoxMakeWriter::new(std::io::stderr))
}

/// Starts logging to `writer`.
///
/// # Errors
/// If the filter cannot be read.
pub(crate) fn start_to(common: &Common, writer: BoxMakeWriter) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&common.log)
        .with_context(|| format!("--log `{}` is no level (such as info) and no list of them by module", common.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match common.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
