//! Names resolved: who writes and reads each topic, and which operators are fused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::RecordKind;

use crate::graph::log_name;
use crate::kind::{InputSpec, Keyed, OutputSpec, Parallel, Role};
use crate::settings::SettingValue;
use crate::spec::{Declarations, OperatorDecl, PortDecl, Problems, Span, TableDecl, TopicDecl, nearest, quoted_list};

/// An end of a topic: a port of an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Index of the operator.
    pub operator: usize,
    /// Index of the port in its kind's list.
    pub port: usize,
    /// Where the file says so.
    pub span: Span,
}

/// Who is at a topic.
#[derive(Debug, Default)]
pub(crate) struct TopicUse {
    /// Its writers.
    pub writers: Vec<End>,
    /// Its readers.
    pub readers: Vec<End>,
    /// Tables made from it.
    pub feeds: Vec<usize>,
    /// Not all of its writers and readers may be known, because of another problem.
    pub doubtful: bool,
}

/// The declarations with names resolved. Indices are those of the declarations.
pub(crate) struct Wiring<'a> {
    /// What the file declares.
    pub decl: &'a Declarations,
    /// By topic.
    pub uses: Vec<TopicUse>,
    /// Fused operators, each group in the order of the file; services are alone.
    pub groups: Vec<Vec<usize>>,
}

impl<'a> Wiring<'a> {
    /// Resolves all names; those that do not exist are problems.
    pub(crate) fn resolve(decl: &'a Declarations, problems: &mut Problems) -> Self {
        let uses = decl
            .topics
            .iter()
            .map(|topic| TopicUse { doubtful: decl.doubtful.contains(&topic.name.value), ..TopicUse::default() });
        let mut wiring = Self { decl, uses: uses.collect(), groups: Vec::new() };
        for (operator, declared) in decl.operators.iter().enumerate() {
            for input in &declared.inputs {
                if let Some(topic) = wiring.find(&input.topic.value, input.topic.span, problems) {
                    wiring.uses[topic].readers.push(End { operator, port: input.port, span: input.topic.span });
                }
            }
            for output in &declared.outputs {
                if let Some(topic) = wiring.find(&output.topic.value, output.topic.span, problems) {
                    wiring.uses[topic].writers.push(End { operator, port: output.port, span: output.topic.span });
                }
            }
        }
        for (index, table) in decl.tables.iter().enumerate() {
            let Some(from) = &table.from else { continue };
            if let Some(topic) = wiring.find(&from.value, from.span, problems) {
                wiring.uses[topic].feeds.push(index);
            }
        }
        wiring.groups = wiring.fuse();
        wiring
    }

    fn find(&mut self, name: &str, span: Span, problems: &mut Problems) -> Option<usize> {
        let found = self.decl.topics.iter().position(|topic| topic.name.value == name);
        if found.is_none() {
            let names = || self.decl.topics.iter().map(|topic| topic.name.value.as_str());
            let near = nearest(name, names());
            let hint = match near {
                Some(near) => format!("did you mean `{near}`? Otherwise declare it under `topics`: `{name}: {{}}`"),
                None => format!("declare it under `topics`: `{name}: {{}}`; declared are {}", quoted_list(names())),
            };
            problems.add("topic.unknown", span, format!("topic `{name}` is not declared"), hint);
            let near = near.and_then(|near| self.decl.topics.iter().position(|topic| topic.name.value == near));
            if let Some(near) = near {
                self.uses[near].doubtful = true;
            }
        }
        found
    }

    /// Index of a declared topic.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.decl.topics.iter().position(|topic| topic.name.value == name)
    }

    /// Operators joined by direct topics, in the order of the file.
    fn fuse(&self) -> Vec<Vec<usize>> {
        let count = self.decl.operators.len();
        let mut group: Vec<usize> = (0..count).collect();
        for (_, ends) in self.topics().filter(|(topic, _)| topic.direct()) {
            let all = ends.writers.iter().chain(&ends.readers).map(|end| end.operator);
            let members: Vec<usize> = all.filter(|&operator| !self.is_service(operator)).collect();
            let Some(least) = members.iter().map(|&member| group[member]).min() else { continue };
            let merged: BTreeSet<usize> = members.iter().map(|&member| group[member]).collect();
            for id in group.iter_mut().filter(|id| merged.contains(id)) {
                *id = least;
            }
        }
        let ids: BTreeSet<usize> = group.iter().copied().collect();
        ids.iter().map(|id| (0..count).filter(|&operator| group[operator] == *id).collect()).collect()
    }

    /// The operator of an index.
    pub(crate) fn operator(&self, index: usize) -> &'a OperatorDecl {
        &self.decl.operators[index]
    }

    /// Whether an operator is a service.
    pub(crate) fn is_service(&self, operator: usize) -> bool {
        matches!(self.operator(operator).kind.role, Role::Service)
    }

    /// Whether an operator runs once per partition.
    pub(crate) fn per_partition(&self, operator: usize) -> bool {
        !self.is_service(operator) && self.operator(operator).kind.parallel == Parallel::PerPartition
    }

    /// The input port of an end.
    pub(crate) fn input(&self, end: &End) -> &'static InputSpec {
        &self.operator(end.operator).kind.inputs[end.port]
    }

    /// The output port of an end.
    pub(crate) fn output(&self, end: &End) -> &'static OutputSpec {
        &self.operator(end.operator).kind.outputs[end.port]
    }

    /// Topics and their uses.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (&'a TopicDecl, &TopicUse)> {
        self.decl.topics.iter().zip(&self.uses)
    }

    /// Topics wired to the inputs of an operator: index, port and place.
    pub(crate) fn inputs_of(&self, operator: usize) -> Vec<(usize, &'a PortDecl)> {
        let ports = self.operator(operator).inputs.iter();
        ports.filter_map(|port| Some((self.index_of(&port.topic.value)?, port))).collect()
    }

    /// Topics wired to the outputs of an operator.
    pub(crate) fn outputs_of(&self, operator: usize) -> Vec<(usize, &'a PortDecl)> {
        let ports = self.operator(operator).outputs.iter();
        ports.filter_map(|port| Some((self.index_of(&port.topic.value)?, port))).collect()
    }

    /// Index of a table.
    pub(crate) fn table(&self, name: &str) -> Option<usize> {
        self.decl.tables.iter().position(|table| table.name.value == name)
    }

    /// The group an operator belongs to.
    pub(crate) fn group_of(&self, operator: usize) -> &[usize] {
        self.groups.iter().find(|group| group.contains(&operator)).map_or(&[], Vec::as_slice)
    }

    /// Kinds of record that the writers of a topic write.
    pub(crate) fn records(&self, topic: usize) -> BTreeSet<RecordKind> {
        self.uses[topic].writers.iter().flat_map(|end| self.output(end).writes).copied().collect()
    }

    /// Whether every reader of a topic takes what it carries.
    pub(crate) fn fits(&self, topic: usize) -> bool {
        let carried = self.records(topic);
        let takes = |end: &End| carried.iter().all(|kind| self.input(end).accepts.contains(kind));
        self.uses[topic].readers.iter().all(takes)
    }

    /// What picks the partition of a topic, by its first writer.
    pub(crate) fn keyed(&self, topic: usize) -> Option<Keyed> {
        self.uses[topic].writers.first().map(|end| self.output(end).keyed)
    }

    /// How many partitions a topic has; for a direct one, the tasks it is inside of. `None` where that cannot be
    /// told, because of another problem.
    pub(crate) fn partitions(&self, topic: usize) -> Option<u32> {
        self.partitions_within(topic, self.decl.topics.len())
    }

    fn partitions_within(&self, topic: usize, steps: usize) -> Option<u32> {
        let declared = &self.decl.topics[topic];
        if !declared.direct() {
            return Some(declared.partitions().unwrap_or(1));
        }
        let writer = self.uses[topic].writers.first()?.operator;
        if !self.per_partition(writer) {
            return Some(1);
        }
        let (source, _) = *self.inputs_of(writer).first()?;
        self.partitions_within(source, steps.checked_sub(1)?)
    }

    /// Stored topics that a group reads, by index.
    pub(crate) fn stored_inputs(&self, group: &[usize]) -> BTreeSet<usize> {
        let all = group.iter().flat_map(|&operator| self.inputs_of(operator)).map(|(topic, _)| topic);
        all.filter(|&topic| !self.decl.topics[topic].direct()).collect()
    }

    /// Stored topics that the input of an operator comes from, within its task.
    pub(crate) fn stored_upstream(&self, operator: usize) -> BTreeSet<usize> {
        let mut stored = BTreeSet::new();
        let mut seen = BTreeSet::from([operator]);
        let mut open = vec![operator];
        while let Some(operator) = open.pop() {
            for (topic, _) in self.inputs_of(operator) {
                if !self.decl.topics[topic].direct() {
                    stored.insert(topic);
                    continue;
                }
                let writers = self.uses[topic].writers.iter().map(|end| end.operator);
                open.extend(writers.filter(|&writer| !self.is_service(writer) && seen.insert(writer)));
            }
        }
        stored
    }

    /// Name in the log of the topic that the file calls `name`.
    pub(crate) fn log_name(&self, name: &str) -> Arc<str> {
        self.index_of(name).map_or_else(|| Arc::from(name), |topic| self.decl.topics[topic].log_name())
    }

    /// Generation of what a group reads: it grows with that of each of its stored inputs.
    pub(crate) fn generation_of(&self, group: &[usize]) -> u32 {
        let later = |topic: &usize| self.decl.topics[*topic].generation() - 1;
        1 + self.stored_inputs(group).iter().map(later).sum::<u32>()
    }

    /// Stored topics that a group writes, by index.
    pub(crate) fn stored_outputs(&self, group: &[usize]) -> BTreeSet<usize> {
        let all = group.iter().flat_map(|&operator| self.outputs_of(operator)).map(|(topic, _)| topic);
        all.filter(|&topic| !self.decl.topics[topic].direct()).collect()
    }
}

impl TopicDecl {
    /// Never stored.
    pub(crate) fn direct(&self) -> bool {
        self.located.settings.flag("direct")
    }

    /// Partitions as declared.
    pub(crate) fn partitions(&self) -> Option<u32> {
        self.located.settings.get("partitions")?;
        u32::try_from(self.located.settings.integer("partitions")).ok()
    }

    /// Generation as declared, from 1.
    pub(crate) fn generation(&self) -> u32 {
        u32::try_from(self.located.settings.integer("generation")).unwrap_or(1)
    }

    /// Name in the log.
    pub(crate) fn log_name(&self) -> Arc<str> {
        log_name(&self.name.value, self.generation())
    }

    /// Retention as declared; `None` for ever.
    pub(crate) fn retention(&self) -> Option<Duration> {
        duration(&self.located.settings, "retention")
    }

    /// Where `setting` is written, or the topic's name.
    pub(crate) fn span(&self, setting: &str) -> Span {
        self.located.span(setting, self.name.span)
    }
}

impl TableDecl {
    /// Its setting `keep`, if its kind has one.
    pub(crate) fn keep(&self) -> Option<Duration> {
        duration(&self.located.settings, "keep")
    }
}

/// A duration that is set.
pub(crate) fn duration(settings: &crate::settings::Settings, name: &str) -> Option<Duration> {
    match settings.get(name) {
        Some(SettingValue::Duration(value)) => Some(*value),
        _ => None,
    }
}
