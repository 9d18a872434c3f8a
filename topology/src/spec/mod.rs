//! Reading `topology.yaml`: text -> nodes with spans -> declarations with checked values.

mod caches;
mod config;
mod declare;
mod environment;
mod fields;
mod log;
mod node;
mod problem;
mod secret;
mod source;
mod value;

pub use caches::CacheConfig;
pub use config::{
    Bitcoin, BitcoinNode, Checkpoints, Config, Http, Ledger, Limits, RewardScheme, State, top_level_reference,
};
pub(crate) use declare::{Declarations, OperatorDecl, PortDecl, TableDecl, TopicDecl};
pub use environment::{Environment, Override};
pub use log::{FluvioConfig, KafkaConfig, LogConfig, Sasl, Tls};
pub use problem::{Note, Problem, Report};
pub(crate) use problem::{Problems, nearest, quoted_list};
pub use secret::{Secret, SecretError};
pub use source::{FileText, Position, Span};
pub(crate) use value::{HostPort, format_duration};
pub use value::{network, parse_duration};

pub(crate) use declare::declarations;
pub(crate) use fields::{Reader, default_value};
pub(crate) use node::{Entry, Node, Value, parse};
pub(crate) use value::expected;

/// A value and where the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it is written.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// `value` as written at `span`.
    pub(crate) fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}
