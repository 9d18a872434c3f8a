//! What the runtime is told to run: the checked graph, cut into tasks, with every name resolved.

use std::fmt::Write;
use std::sync::Arc;

use sluice_log::TopicSpec;

use crate::kind::{Kind, Role, TableKind};
use crate::settings::Settings;

/// The part of a topology that runs as tasks in this process.
pub struct Plan {
    /// Chain: "main", "test", "testnet4", "signet" or "regtest".
    pub network: String,
    /// Every stored topic that a task or service of this process touches; the runtime creates those that are missing.
    pub topics: Vec<TopicSpec>,
    /// The tasks, each a fused group of operators on one partition.
    pub tasks: Vec<TaskSpec>,
}

/// A task: operators that run in one thread, one after the other, above one state (DESIGN 5).
#[derive(Clone)]
pub struct TaskSpec {
    /// Its name, unique in the topology and the same in every process that ever runs it: it names the state, and its
    /// hash is the producer in the coordinates of its outputs. For instance `verify.3` for the group that begins with
    /// the operator `verify` on partition 3. It goes by the operator's identity (see [`crate::Node::identity`]).
    pub name: String,
    /// Its name as people see it: by the operator's name.
    pub shown: String,
    /// The partition it works on; 0 for [`crate::Parallel::Single`].
    pub partition: u32,
    /// How many partitions its first input has.
    pub partitions: u32,
    /// What it reads from the log, each partition of each topic once.
    pub inputs: Vec<StoredInput>,
    /// Its operators in topological order: a direct edge leads from a smaller index to a greater one.
    pub operators: Vec<OperatorSpec>,
    /// Broadcast tables that its operators look things up in; at most one of each kind.
    pub tables: Vec<TableFeed>,
}

/// A partition of a stored topic that a task reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredInput {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// How many partitions the topic has.
    pub partitions: u32,
    /// Its generation, from 1. Not part of the wiring: the topic's name in the log says it.
    pub generation: u32,
    /// Is read before inputs without priority, within the starvation bound.
    pub priority: bool,
    /// The ports that get each record, in this order.
    pub to: Vec<PortRef>,
}

/// An input port of one of the task's operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRef {
    /// Index of the operator in [`TaskSpec::operators`].
    pub operator: usize,
    /// Name of the port, as in the operator's [`crate::InputSpec`]s.
    pub port: &'static str,
}

/// An operator of a task.
#[derive(Clone)]
pub struct OperatorSpec {
    /// Its identity: it names its state tables (see [`crate::Node::identity`]).
    pub name: String,
    /// Name in the YAML.
    pub shown: String,
    /// Its kind, whose role is not [`crate::Role::Service`].
    pub kind: &'static Kind,
    /// Its settings.
    pub settings: Settings,
    /// Where its output ports lead. A port of the kind that is not listed leads nowhere.
    pub outputs: Vec<OutputWire>,
}

/// Where an output port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputWire {
    /// Name of the port, as in the operator's [`crate::OutputSpec`]s.
    pub port: &'static str,
    /// Each record goes to all of these, in this order.
    pub to: Vec<Destination>,
}

/// The end of a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A stored topic.
    Topic {
        /// Its name.
        topic: Arc<str>,
        /// How many partitions it has.
        partitions: u32,
    },
    /// An operator of the same task, by a direct topic: handed over without being encoded.
    Direct(PortRef),
}

/// A broadcast table of a task.
#[derive(Clone)]
pub struct TableFeed {
    /// Its identity (see [`crate::Table::identity`]).
    pub name: String,
    /// Name in the YAML.
    pub shown: String,
    /// Its kind.
    pub kind: &'static TableKind,
    /// Its settings.
    pub settings: Settings,
    /// The topic it is made from, which has one partition.
    pub topic: Arc<str>,
}

/// The operators that a wiring names: see [`TaskSpec::wiring`].
pub(crate) fn operators_of(wiring: &str) -> impl Iterator<Item = &str> {
    wiring.lines().filter_map(|line| Some(line.strip_prefix("operator ")?.split_once(' ')?.0))
}

impl Plan {
    /// [`Plan::topics`], and those that tasks have without a line in the YAML.
    pub fn all_topics(&self) -> Vec<TopicSpec> {
        self.topics.iter().cloned().chain(super::letters::topics(self)).collect()
    }
}

impl TaskSpec {
    /// Whether one of its operators depends on answers from outside: then repeating its input does not repeat its
    /// outputs, and it writes on lanes of a source.
    pub fn is_world(&self) -> bool {
        self.operators.iter().any(|operator| operator.kind.role.is_world())
    }

    /// Whether nobody is paid by what its operators do: then a record that it cannot process goes to the dead letters.
    pub fn is_statistics(&self) -> bool {
        self.operators.iter().all(|operator| operator.kind.role.is_statistics())
    }

    /// [`Self::inputs`], and the topic of redriven letters where it puts records with the dead letters.
    pub(super) fn all_inputs(&self) -> Vec<StoredInput> {
        let redriven = self.is_statistics().then(super::letters::redriven_input);
        self.inputs.iter().cloned().chain(redriven).collect()
    }

    /// The operator that does more than the log and the state can tell, and so is neither followed nor replayed, with the
    /// reason; `None` if all that the task does can be repeated.
    pub fn acts_outside(&self) -> Option<(&str, &'static str)> {
        self.operators.iter().find_map(|operator| match operator.kind.role {
            Role::World(_) => Some((operator.shown.as_str(), "what it writes depends on answers from outside")),
            Role::Effects(_) | Role::Export(_) => {
                Some((operator.shown.as_str(), "what it does is kept outside of its state"))
            }
            Role::Operator(_) | Role::Statistics(_) | Role::Service => None,
        })
    }

    /// Whether what it writes may depend on which of its inputs it reads first: the order is written down then.
    pub(super) fn depends_on_order(&self) -> bool {
        let mut wires = self.operators.iter().flat_map(|operator| &operator.outputs).flat_map(|wire| &wire.to);
        let writes = wires.any(|to| matches!(to, Destination::Topic { .. }));
        writes && !self.is_world() && self.all_inputs().len() > 1
    }

    /// How the task is wired, as far as the meaning of its state depends on it: inputs, operators, direct edges and
    /// tables. It is part of the state's lineage. Stored outputs are not in it: a port may get one more reader without
    /// making the state foreign.
    pub fn wiring(&self) -> String {
        let mut text = String::new();
        for input in &self.inputs {
            let _ = write!(text, "input {}/{} of {}", input.topic, input.partition, input.partitions);
            input.to.iter().for_each(|port| self.write_port(&mut text, port));
            text.push('\n');
        }
        for table in &self.tables {
            let _ = writeln!(text, "table {} of kind {} from {}", table.name, table.kind.name, table.topic);
        }
        for operator in &self.operators {
            let _ = writeln!(text, "operator {} of kind {}", operator.name, operator.kind.name);
            for wire in &operator.outputs {
                for destination in &wire.to {
                    if let Destination::Direct(port) = destination {
                        let _ = write!(text, "direct {}.{}", operator.name, wire.port);
                        self.write_port(&mut text, port);
                        text.push('\n');
                    }
                }
            }
        }
        text
    }

    fn write_port(&self, text: &mut String, port: &PortRef) {
        let operator = self.operators.get(port.operator).map_or("?", |operator| operator.name.as_str());
        let _ = write!(text, " > {operator}.{}", port.port);
    }
}
