//! Real and simulated parts for tests and the demo.

pub mod postgres;
