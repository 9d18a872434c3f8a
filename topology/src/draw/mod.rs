//! Pictures of a graph: Mermaid, DOT, and SVG with a layout of its own. Equal graphs give equal bytes.

mod dot;
mod layout;
mod mermaid;
mod svg;

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::graph::{Graph, Topic};
use crate::kind::Parallel;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Mermaid flowchart.
    Mermaid,
    /// The language of Graphviz.
    Dot,
    /// An SVG picture.
    Svg,
}

/// A format that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("graphs are drawn as mermaid, dot or svg, not as {0:?}")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "mermaid" => Ok(Self::Mermaid),
            "dot" => Ok(Self::Dot),
            "svg" => Ok(Self::Svg),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

/// Draws `graph`.
pub fn draw(graph: &Graph, format: Format) -> String {
    let picture = Picture::of(graph);
    match format {
        Format::Mermaid => mermaid::draw(&picture),
        Format::Dot => dot::draw(&picture),
        Format::Svg => svg::draw(&picture),
    }
}

/// What all formats show: boxes (services, and tasks with their operators) and the topics between them.
struct Picture<'a> {
    graph: &'a Graph,
    boxes: Vec<PictureBox>,
}

/// A service, or a task.
struct PictureBox {
    /// Its title.
    title: String,
    /// Its operators or the service, as indices in [`Graph::nodes`].
    nodes: Vec<usize>,
    service: bool,
}

/// Who is at a topic, by index in [`Graph::nodes`].
#[derive(Default)]
struct Ends {
    writers: Vec<usize>,
    readers: Vec<usize>,
    /// Those that look things up in a table made from it, with the table's name.
    lookups: Vec<(usize, String)>,
}

impl<'a> Picture<'a> {
    fn of(graph: &'a Graph) -> Self {
        let services = graph.nodes.iter().enumerate().filter(|(_, node)| node.is_service());
        let services =
            services.map(|(index, node)| PictureBox { title: node.name.clone(), nodes: vec![index], service: true });
        let tasks = graph.groups.iter().map(|group| {
            let count = group.partitions.len();
            let title = match (group.parallel, group.partitions.first(), group.partitions.last()) {
                (Parallel::PerPartition, Some(first), Some(last)) if count < group.of as usize => {
                    format!("{} \u{d7} {count} (partitions {first}-{last})", group.name)
                }
                (Parallel::PerPartition, _, _) => format!("{} \u{d7} {count}", group.name),
                (Parallel::Single, _, _) => group.name.clone(),
            };
            PictureBox { title, nodes: group.operators.clone(), service: false }
        });
        Self { graph, boxes: services.chain(tasks).collect() }
    }

    /// The name of a node, and its kind where that is another word.
    fn node_lines(&self, node: usize) -> (String, Option<&'static str>) {
        match self.graph.nodes.get(node) {
            Some(node) => (node.name.clone(), (node.name != node.kind.name).then_some(node.kind.name)),
            None => (String::new(), None),
        }
    }

    /// Topics, each with its ends, by name.
    fn topics(&self) -> Vec<(&'a Topic, Ends)> {
        let mut ends: BTreeMap<&str, Ends> = BTreeMap::new();
        for (index, node) in self.graph.nodes.iter().enumerate() {
            for wire in &node.outputs {
                push(&mut ends.entry(&wire.topic).or_default().writers, index);
            }
            for wire in &node.inputs {
                push(&mut ends.entry(&wire.topic).or_default().readers, index);
            }
            for table in node.tables.iter().filter_map(|name| self.graph.table(name)) {
                ends.entry(&table.topic).or_default().lookups.push((index, table.name.clone()));
            }
        }
        let topics = self.graph.topics.iter();
        topics.map(|topic| (topic, ends.remove(&*topic.name).unwrap_or_default())).collect()
    }

    /// The box that holds a node.
    fn box_of(&self, node: usize) -> Option<usize> {
        self.boxes.iter().position(|it| it.nodes.contains(&node))
    }
}

fn push(list: &mut Vec<usize>, item: usize) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Name of a topic, with its partitions where there are several.
fn topic_label(topic: &Topic) -> String {
    match topic.partitions {
        1 => topic.name.to_string(),
        count => format!("{} \u{d7} {count}", topic.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GOOD, changed, graph};

    #[test]
    fn mermaid_has_tasks_operators_and_topics() {
        let text = draw(&graph(GOOD), Format::Mermaid);
        for part in [
            "flowchart LR\n",
            "subgraph b2[\"verify \u{d7} 8\"]",
            "n0([\"stratumd<br/>gateway\"])",
            "n0 -- \"share.submissions \u{d7} 8\" --> n2",
            "n2 == \"share.checked\" ==> n3",
            "n1 -. \"jobs\" .-> n2",
            "n4 -- \"difficulty.targets \u{d7} 8\" --> n0",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn dot_is_balanced_and_complete() {
        let text = draw(&graph(GOOD), Format::Dot);
        assert!(text.starts_with("digraph topology {") && text.ends_with("}\n"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        for part in
            ["subgraph cluster_b2", "n0 -> n2 [label=\"share.submissions \u{d7} 8\"", "style=bold", "style=dashed"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn svg_names_everything_once() {
        let graph = graph(GOOD);
        let text = draw(&graph, Format::Svg);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        for node in &graph.nodes {
            assert!(text.contains(&format!(">{}<", node.name)), "{} is not in the picture", node.name);
        }
        for topic in &graph.topics {
            let label = if topic.direct { topic.name.to_string() } else { topic_label(topic) };
            assert_eq!(text.matches(&format!(">{label}<")).count(), 1, "{label}");
        }
        for tag in ["g", "svg", "text", "title", "marker", "defs"] {
            let open = text.matches(&format!("<{tag} ")).count() + text.matches(&format!("<{tag}>")).count();
            assert_eq!(open, text.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn pictures_are_the_same_every_time_and_escaped() {
        for format in [Format::Mermaid, Format::Dot, Format::Svg] {
            assert_eq!(draw(&graph(GOOD), format), draw(&graph(GOOD), format));
            let split = changed(&[("share.checked:      { direct: true }", "share.checked:      { partitions: 8 }")]);
            assert_ne!(draw(&graph(GOOD), format), draw(&graph(&split), format));
        }
        assert_eq!("svg".parse(), Ok(Format::Svg));
        assert!("png".parse::<Format>().is_err());
    }
}
