//! Broadcast tables: every task that looks something up keeps its own copy, fed by a topic of one partition.

pub mod job_table;
pub mod template_table;
