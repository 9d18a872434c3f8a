//! One module a command.

pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod dead_letters;
pub(crate) mod demo;
pub(crate) mod graph;
pub(crate) mod kinds;
pub(crate) mod plan;
pub(crate) mod replay;
pub(crate) mod rescale;
pub(crate) mod run;
pub(crate) mod state;
pub(crate) mod swarm;
pub(crate) mod tap;
