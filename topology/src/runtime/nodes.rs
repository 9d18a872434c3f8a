//! The operators of a task and the wires between them.

use std::time::Instant;

use sluice_proto::RecordKind;
use sluice_state::{TableSpec, Tables};

use super::error::TaskError;
use super::outbox::Outbox;
use super::plan::{Destination, OperatorSpec, PortRef, TaskSpec};
use crate::operator::{
    BuildContext, Context, Emission, Externals, Input, Lookups, Operator, OperatorError, StateView, is_same,
};

/// An operator in its place.
pub(crate) struct Node {
    /// As people see it.
    pub(crate) name: String,
    pub(crate) operator: Box<dyn Operator>,
    ports: Vec<Port>,
    /// Names of the ports that lead nowhere.
    unwired: Vec<&'static str>,
    first_table: usize,
    pub(crate) processed: u64,
    pub(crate) emitted: u64,
    pub(crate) busy_ns: u64,
}

/// An output port: what may leave by it and where it leads.
struct Port {
    name: &'static str,
    writes: &'static [RecordKind],
    to: Vec<Route>,
}

/// The end of a wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    /// Index of a topic in the [`Outbox`].
    Stored(usize),
    /// A port of an operator of this task.
    Direct(PortRef),
}

/// The task's state tables, operator by operator, as its state is opened with.
pub fn state_tables(spec: &TaskSpec) -> Vec<TableSpec> {
    let of_operator = |operator: &OperatorSpec| {
        let name = operator.name.clone();
        operator.kind.state.iter().map(move |table| table.spec(&name))
    };
    spec.operators.iter().flat_map(of_operator).collect()
}

/// Builds the operators of a task; the outbox learns the topics they write to.
pub(crate) fn build(
    spec: &TaskSpec,
    network: &str,
    externals: &Externals,
    tables: &Tables,
    outbox: &mut Outbox,
) -> Result<Vec<Node>, TaskError> {
    let mut nodes = Vec::with_capacity(spec.operators.len());
    let mut first_table = 0;
    for operator in &spec.operators {
        let context = BuildContext {
            name: &operator.shown,
            settings: &operator.settings,
            network,
            partition: spec.partition,
            partitions: spec.partitions,
            externals,
        };
        let Some(make) = operator.kind.role.build() else {
            let what = format!("{} is a service", operator.shown);
            return Err(TaskError::Plan { task: spec.shown.clone(), what });
        };
        let ports = ports(operator, tables, outbox)?;
        nodes.push(Node {
            name: operator.shown.clone(),
            operator: make(&context).map_err(|error| TaskError::Build { name: operator.shown.clone(), error })?,
            unwired: ports.iter().filter(|port| port.to.is_empty()).map(|port| port.name).collect(),
            ports,
            first_table,
            processed: 0,
            emitted: 0,
            busy_ns: 0,
        });
        first_table += operator.kind.state.len();
    }
    Ok(nodes)
}

fn ports(operator: &OperatorSpec, tables: &Tables, outbox: &mut Outbox) -> Result<Vec<Port>, TaskError> {
    let mut ports = Vec::with_capacity(operator.kind.outputs.len());
    for output in operator.kind.outputs {
        let wires = operator.outputs.iter().filter(|wire| wire.port == output.name).flat_map(|wire| &wire.to);
        let mut to = Vec::new();
        for destination in wires {
            to.push(match destination {
                Destination::Topic { topic, partitions } => Route::Stored(outbox.topic(tables, topic, *partitions)?),
                Destination::Direct(port) => Route::Direct(*port),
            });
        }
        ports.push(Port { name: output.name, writes: output.writes, to });
    }
    Ok(ports)
}

impl Node {
    /// Gives the operator one record; what it sends is added to `out`. With `timed`, the time it takes counts for this
    /// many records.
    pub(crate) fn process(
        &mut self,
        input: &Input<'_>,
        tables: &mut Tables,
        lookups: &Lookups,
        out: &mut Vec<Emission>,
        timed: Option<u64>,
    ) -> Result<(), Box<OperatorError>> {
        let begun = timed.map(|weight| (weight, Instant::now()));
        let before = out.len();
        let mut context = Context::new(StateView::new(tables, self.first_table), lookups, out).unwired(&self.unwired);
        // The error is large and rare: it is not carried along what is done for every record.
        if let Err(error) = self.operator.process(input, &mut context) {
            return Err(Box::new(error));
        }
        self.processed += 1;
        self.emitted += (out.len() - before) as u64;
        if let Some((weight, begun)) = begun {
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.busy_ns = self.busy_ns.saturating_add(nanos.saturating_mul(weight));
        }
        Ok(())
    }

    /// The end of a batch: see [`Operator::settle`].
    pub(crate) fn settle(&mut self, tables: &mut Tables) -> Result<(), OperatorError> {
        self.operator.settle(&mut StateView::new(tables, self.first_table))
    }

    /// Where what the operator sent goes; nowhere if the port is not wired.
    pub(crate) fn routes(&self, emission: &Emission) -> Result<&[Route], OperatorError> {
        let port = self.ports.iter().find(|port| is_same(port.name, emission.port));
        let port = port.ok_or_else(|| OperatorError::Bug(format!("{} has no output {}", self.name, emission.port)))?;
        let kind = RecordKind::of(&emission.body);
        if port.writes.contains(&kind) {
            return Ok(&port.to);
        }
        Err(OperatorError::Bug(format!(
            "{}.{} sends a {}, which it does not declare",
            self.name,
            port.name,
            kind.name()
        )))
    }
}
