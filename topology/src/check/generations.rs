//! Generations of topics (docs/adr/0018): which topics may have changed their number of partitions.

use sluice_proto::RecordKind;

use super::wiring::Wiring;
use crate::kind::Keyed;
use crate::spec::Problems;

pub(crate) fn check(wiring: &Wiring<'_>, problems: &mut Problems) {
    for topic in 0..wiring.decl.topics.len() {
        if wiring.decl.topics[topic].generation() > 1 {
            of_sources(wiring, topic, problems);
            followed(wiring, topic, problems);
        }
        named_alone(wiring, topic, problems);
    }
}

/// A generation is made of the one before it by copying what sources wrote, by session.
fn of_sources(wiring: &Wiring<'_>, topic: usize, problems: &mut Problems) {
    let declared = &wiring.decl.topics[topic];
    let (name, span) = (&declared.name.value, declared.span("generation"));
    if declared.direct() {
        let hint = "remove `generation`, and `partitions` with it: a direct topic follows what its task reads";
        problems.add("generation.direct", span, format!("`{name}` is direct: it has no generations"), hint);
        return;
    }
    let uses = &wiring.uses[topic];
    let by_source = uses.writers.iter().all(|end| wiring.is_service(end.operator));
    let by_session = wiring.keyed(topic).is_none_or(|keyed| keyed == Keyed::Session);
    if !(uses.doubtful || by_source && by_session && uses.feeds.is_empty()) {
        let message = format!("`{name}` cannot have another generation than 1: its records cannot be shared out again");
        let hint = "remove `generation`: only what gateways write by session, such as share.submissions, can change \
                    its number of partitions";
        problems.add("generation.kind", span, message, hint);
    }
}

/// What a task keeps partition by partition is warmed by its own history: a task behind a stored topic would have none.
fn followed(wiring: &Wiring<'_>, topic: usize, problems: &mut Problems) {
    let carries = wiring.records(topic);
    for reader in &wiring.uses[topic].readers {
        for &operator in wiring.group_of(reader.operator) {
            for (written, port) in wiring.outputs_of(operator) {
                let declared = &wiring.decl.topics[written];
                let writes = wiring.operator(operator).kind.outputs[port.port].writes;
                let passes_time = carries.contains(&RecordKind::Tick) && writes.contains(&RecordKind::Tick);
                if declared.direct() || !passes_time {
                    continue;
                }
                let message = format!(
                    "`{}` is stored, partitioned like `{}`, whose number of partitions has changed",
                    declared.name.value, wiring.decl.topics[topic].name.value
                );
                let hint =
                    "make it `direct: true`: what reads it is then warmed with the history of the new partitions";
                let problem = problems.add("generation.stored", port.topic.span, message, hint);
                problem.note(wiring.decl.topics[topic].span("generation"), "changed here");
            }
        }
    }
}

/// No two topics share a name in the log.
fn named_alone(wiring: &Wiring<'_>, topic: usize, problems: &mut Problems) {
    let declared = &wiring.decl.topics[topic];
    let name = declared.log_name();
    let other = wiring.decl.topics[..topic].iter().find(|other| other.log_name() == name);
    if let Some(other) = other {
        let message = format!("`{}` and `{}` are both called {name} in the log", other.name.value, declared.name.value);
        let problem = problems.add("generation.name", declared.name.span, message, "rename one of them");
        problem.note(other.name.span, "the other one");
    }
}
