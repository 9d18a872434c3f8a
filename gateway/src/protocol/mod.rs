//! Stratum V1 on the wire: lines in, lines out.

pub(crate) mod configure;
pub(crate) mod lines;
pub(crate) mod password;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod submit;
