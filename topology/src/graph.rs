//! The checked graph: what a topology file means, with every name resolved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sluice_log::{Retention, TopicSpec};
use sluice_proto::RecordKind;

use crate::kind::{Keyed, Kind, Parallel, Role, TableKind};
use crate::runtime::plan::{Destination, OperatorSpec, OutputWire, Plan, PortRef, StoredInput, TableFeed, TaskSpec};
use crate::selection::{self, Chosen};
use crate::settings::Settings;
use crate::spec::Config;

/// A topology that has passed every check.
pub struct Graph {
    /// Log, state, Bitcoin, ledger, HTTP and limits.
    pub config: Config,
    /// Topics by name.
    pub topics: Vec<Topic>,
    /// Broadcast tables in the order of the file.
    pub tables: Vec<Table>,
    /// Operators and services in topological order (what services read does not count), ties in the order of the file.
    pub nodes: Vec<Node>,
    /// Operators fused by direct topics, in topological order. Each runs as one task, or one for each partition.
    pub groups: Vec<Group>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Name in the log: that of the file, for a generation above 1 with `.gN` behind it.
    pub name: Arc<str>,
    /// Generation: each change of the number of partitions begins another one (docs/adr/0018). From 1.
    pub generation: u32,
    /// Number of partitions; for a direct topic, of the tasks it is inside of.
    pub partitions: u32,
    /// For how long records are kept.
    pub retention: Retention,
    /// Handed over inside a task, never stored.
    pub direct: bool,
    /// Kinds of record its writers write.
    pub records: BTreeSet<RecordKind>,
    /// What picks the partition.
    pub keyed: Keyed,
}

/// A broadcast table.
pub struct Table {
    /// Name.
    pub name: String,
    /// The name under which its state goes on: what `was` says, else its name.
    pub identity: String,
    /// Its kind.
    pub kind: &'static TableKind,
    /// The topic it is made from.
    pub topic: Arc<str>,
    /// Its settings.
    pub settings: Settings,
}

/// An operator or service.
pub struct Node {
    /// Name.
    pub name: String,
    /// The name under which what it has stored goes on: what `was` says, else its name. States, producers and epochs
    /// are called by it, so that a new name migrates nothing.
    pub identity: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// What it reads, by port in the order of its kind, then as in the file.
    pub inputs: Vec<Wire>,
    /// What it writes, likewise.
    pub outputs: Vec<Wire>,
    /// Names of the tables it looks things up in.
    pub tables: Vec<String>,
    /// Its settings.
    pub settings: Settings,
}

/// A port and a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The port.
    pub port: &'static str,
    /// The topic.
    pub topic: Arc<str>,
}

/// Operators that run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name: that of the first operator.
    pub name: String,
    /// Identity: that of the first operator.
    pub identity: String,
    /// Its operators, as indices in [`Graph::nodes`], in topological order.
    pub operators: Vec<usize>,
    /// One task, or one for each partition.
    pub parallel: Parallel,
    /// The partitions it works on; 0 alone for [`Parallel::Single`].
    pub partitions: Vec<u32>,
    /// How many partitions its first input has.
    pub of: u32,
    /// Generation of the topics it reads: 1, or more where one of them has changed its number of partitions.
    pub generation: u32,
}

/// No operator or service has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the topology has no operator {name:?}; it has {known}; NAME:0-3 stands for some partitions of one")]
pub struct UnknownName {
    /// The name.
    pub name: String,
    /// The names there are.
    pub known: String,
}

impl Node {
    /// Whether it is a service, with I/O of its own.
    pub fn is_service(&self) -> bool {
        matches!(self.kind.role, Role::Service)
    }

    /// The topic of input port `port`, if it is wired (the first, if it has several).
    pub fn input(&self, port: &str) -> Option<&Arc<str>> {
        self.inputs.iter().find(|wire| wire.port == port).map(|wire| &wire.topic)
    }

    /// The topic of output port `port`, if it is wired (the first, if it has several).
    pub fn output(&self, port: &str) -> Option<&Arc<str>> {
        self.outputs.iter().find(|wire| wire.port == port).map(|wire| &wire.topic)
    }
}

impl Group {
    /// Whether other instances work on the other partitions.
    pub fn is_partial(&self) -> bool {
        self.parallel == Parallel::PerPartition && self.partitions.len() as u32 != self.of
    }

    /// Name of the task on `partition` by the group's identity: it names its state, and its hash the producer of its
    /// records.
    pub fn task_name(&self, partition: u32) -> String {
        self.task_called(&self.identity, partition)
    }

    /// Name of the task on `partition` as people see it.
    pub fn task_shown(&self, partition: u32) -> String {
        self.task_called(&self.name, partition)
    }

    fn task_called(&self, group: &str, partition: u32) -> String {
        task_name(group, self.parallel, self.generation, partition)
    }
}

/// Name of a task: that of its first operator, the generation of what it reads, and its partition.
pub(crate) fn task_name(operator: &str, parallel: Parallel, generation: u32, partition: u32) -> String {
    let generation = if generation > 1 { format!("@{generation}") } else { String::new() };
    match parallel {
        Parallel::PerPartition => format!("{operator}{generation}.{partition}"),
        Parallel::Single => format!("{operator}{generation}"),
    }
}

/// What a topic of the file is called in the log.
pub fn log_name(topic: &str, generation: u32) -> Arc<str> {
    if generation > 1 { format!("{topic}.g{generation}").into() } else { topic.into() }
}

impl Graph {
    /// The topic called `name`.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.topics.iter().find(|topic| &*topic.name == name)
    }

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The operator or service called `name`.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The services, in topological order.
    pub fn services(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_service())
    }

    /// The services called `only`; all where `only` is empty. A service counts as a partition, number 0.
    pub fn services_of<'a>(&'a self, only: &'a [String]) -> impl Iterator<Item = &'a Node> {
        self.services().filter(move |node| selection::of(only, &node.name).is_some_and(|chosen| chosen.has(0)))
    }

    /// The tasks of this process: those that hold an operator named in `only` (`NAME`, or `NAME:0-3` for some of its partitions,
    /// see [`selection::parse`]), or all where `only` is empty; and the stored topics that they and the services named there
    /// touch.
    ///
    /// # Errors
    /// If `only` has a name that the topology has not.
    pub fn plan(&self, only: &[String]) -> Result<Plan, UnknownName> {
        let named = |text: &str| selection::parse(text).and_then(|(name, _)| self.node(name));
        if let Some(name) = only.iter().find(|name| named(name).is_none()) {
            let known: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(UnknownName { name: name.clone(), known: known.join(", ") });
        }
        let groups: Vec<(&Group, Chosen)> =
            self.groups.iter().filter_map(|group| Some((group, self.chosen(group, only)?))).collect();
        let mut touched = BTreeSet::new();
        let members = groups.iter().flat_map(|(group, _)| self.members(group));
        for node in members.chain(self.services_of(only)) {
            touched.extend(node.inputs.iter().chain(&node.outputs).map(|wire| &wire.topic));
            touched.extend(node.tables.iter().filter_map(|name| self.table(name)).map(|table| &table.topic));
        }
        Ok(Plan {
            network: self.config.bitcoin.network.as_str().to_owned(),
            topics: self.stored_topics().filter(|topic| touched.contains(&topic.name)).map(Topic::spec).collect(),
            tasks: groups
                .iter()
                .flat_map(|(group, chosen)| self.tasks(group).into_iter().filter(|task| chosen.has(task.partition)))
                .collect(),
        })
    }

    /// What `only` chooses of a group: what it chooses of any of its operators.
    pub fn chosen(&self, group: &Group, only: &[String]) -> Option<Chosen> {
        self.members(group).filter_map(|node| selection::of(only, &node.name)).reduce(Chosen::and)
    }

    /// The operators of a group.
    pub fn members<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Node> {
        group.operators.iter().filter_map(|&index| self.nodes.get(index))
    }

    /// The topics that the log stores.
    pub fn stored_topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter().filter(|topic| !topic.direct)
    }

    /// The tasks that read a topic of the graph, as they are in a generation of it with this many partitions. In its own
    /// generation they are those of [`Graph::plan`].
    ///
    /// # Errors
    /// In words, if a task cannot be told for another generation: the file shares out the partitions among instances,
    /// or a task reads another topic beside it.
    pub fn tasks_at(&self, topic: &Topic, generation: u32, partitions: u32) -> Result<Vec<TaskSpec>, String> {
        let mut all = Vec::new();
        for group in &self.groups {
            let tasks = self.tasks(group);
            let reads = |input: &StoredInput| input.topic == topic.name;
            let Some(one) = tasks.first().filter(|task| task.inputs.iter().any(reads)) else { continue };
            let name = &group.name;
            let numbers = match group.parallel {
                Parallel::Single => 0..1,
                Parallel::PerPartition if group.is_partial() => {
                    return Err(format!(
                        "{name} works on some partitions of {} only: leave out its `partitions` until the change is done",
                        topic.name
                    ));
                }
                Parallel::PerPartition if one.inputs.len() > 1 => {
                    return Err(format!("{name} reads other topics beside {}, partition by partition", topic.name));
                }
                Parallel::PerPartition => 0..partitions,
            };
            let named = topic.at(generation);
            let before = group.generation - (topic.generation - 1) + (generation - 1);
            all.extend(numbers.map(|number| TaskSpec {
                name: task_name(&group.identity, group.parallel, before, number),
                shown: task_name(name, group.parallel, before, number),
                partition: number,
                partitions: if group.parallel == Parallel::Single { one.partitions } else { partitions },
                inputs: inputs_at(one, topic, (&named, generation, partitions), group.parallel, number),
                ..one.clone()
            }));
        }
        Ok(all)
    }

    fn tasks(&self, group: &Group) -> Vec<TaskSpec> {
        let task = |&partition: &u32| TaskSpec {
            name: group.task_name(partition),
            shown: group.task_shown(partition),
            partition,
            partitions: group.of,
            inputs: self.task_inputs(group, partition),
            operators: self.members(group).map(|node| self.operator(node, group)).collect(),
            tables: self.feeds(group),
        };
        group.partitions.iter().map(task).collect()
    }

    /// What a task reads: topics in the order in which its operators name them.
    fn task_inputs(&self, group: &Group, partition: u32) -> Vec<StoredInput> {
        let mut inputs: Vec<StoredInput> = Vec::new();
        for (operator, node) in self.members(group).enumerate() {
            for wire in &node.inputs {
                let Some(topic) = self.topic(&wire.topic).filter(|topic| !topic.direct) else { continue };
                let to = PortRef { operator, port: wire.port };
                let priority = node.kind.inputs.iter().any(|input| input.name == wire.port && input.priority);
                let partitions = match group.parallel {
                    Parallel::PerPartition => partition..partition + 1,
                    Parallel::Single => 0..topic.partitions,
                };
                for partition in partitions {
                    add_input(&mut inputs, topic, partition, priority, to);
                }
            }
        }
        inputs
    }

    fn operator(&self, node: &Node, group: &Group) -> OperatorSpec {
        let wire = |port: &'static str| {
            let wires = node.outputs.iter().filter(|wire| wire.port == port);
            let to: Vec<_> = wires.flat_map(|wire| self.destinations(&wire.topic, group)).collect();
            (!to.is_empty()).then_some(OutputWire { port, to })
        };
        OperatorSpec {
            name: node.identity.clone(),
            shown: node.name.clone(),
            kind: node.kind,
            settings: node.settings.clone(),
            outputs: node.kind.outputs.iter().filter_map(|output| wire(output.name)).collect(),
        }
    }

    fn destinations(&self, topic: &Arc<str>, group: &Group) -> Vec<Destination> {
        match self.topic(topic) {
            Some(stored) if !stored.direct => {
                vec![Destination::Topic { topic: Arc::clone(topic), partitions: stored.partitions }]
            }
            _ => {
                let readers = self.members(group).enumerate().flat_map(|(operator, node)| {
                    let ports = node.inputs.iter().filter(|wire| wire.topic == *topic);
                    ports.map(move |wire| Destination::Direct(PortRef { operator, port: wire.port }))
                });
                readers.collect()
            }
        }
    }

    fn feeds(&self, group: &Group) -> Vec<TableFeed> {
        let used: BTreeSet<&String> = self.members(group).flat_map(|node| &node.tables).collect();
        let tables = self.tables.iter().filter(|table| used.contains(&table.name));
        let feed = |table: &Table| TableFeed {
            name: table.identity.clone(),
            shown: table.name.clone(),
            kind: table.kind,
            settings: table.settings.clone(),
            topic: Arc::clone(&table.topic),
        };
        tables.map(feed).collect()
    }
}

fn add_input(inputs: &mut Vec<StoredInput>, topic: &Topic, partition: u32, priority: bool, to: PortRef) {
    match inputs.iter_mut().find(|input| input.topic == topic.name && input.partition == partition) {
        Some(input) => {
            input.priority |= priority;
            input.to.push(to);
        }
        None => inputs.push(StoredInput {
            topic: Arc::clone(&topic.name),
            partition,
            partitions: topic.partitions,
            generation: topic.generation,
            priority,
            to: vec![to],
        }),
    }
}

/// The inputs of `task` with the partitions of another generation (name, number, count) of `topic` in place of those it
/// reads: its own, or all of them for a task that is alone.
fn inputs_at(
    task: &TaskSpec,
    topic: &Topic,
    (name, generation, partitions): (&Arc<str>, u32, u32),
    parallel: Parallel,
    number: u32,
) -> Vec<StoredInput> {
    let mut inputs = Vec::new();
    let mut done = false;
    for input in &task.inputs {
        if input.topic != topic.name {
            inputs.push(input.clone());
        } else if !std::mem::replace(&mut done, true) {
            let numbers = match parallel {
                Parallel::PerPartition => number..number + 1,
                Parallel::Single => 0..partitions,
            };
            inputs.extend(numbers.map(|partition| StoredInput {
                topic: Arc::clone(name),
                partition,
                partitions,
                generation,
                ..input.clone()
            }));
        }
    }
    inputs
}

impl Topic {
    /// Name in the file: without the generation.
    pub fn base(&self) -> &str {
        let suffix = format!(".g{}", self.generation);
        let base = self.name.strip_suffix(&suffix).filter(|_| self.generation > 1);
        base.unwrap_or(&self.name)
    }

    /// Name in the log of another generation of it.
    pub fn at(&self, generation: u32) -> Arc<str> {
        log_name(self.base(), generation)
    }

    /// The topic as the log is asked to create it.
    pub fn spec(&self) -> TopicSpec {
        TopicSpec { name: self.name.to_string(), partitions: self.partitions, retention: self.retention }
    }

    /// For how long records are kept; `None` for ever.
    pub fn kept_for(&self) -> Option<Duration> {
        self.retention.age
    }
}
