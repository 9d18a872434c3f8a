//! Mermaid: rendered by many forges and editors where it stands in Markdown.

use std::fmt::Write;

use super::{Picture, topic_label};

pub(super) fn draw(picture: &Picture<'_>) -> String {
    let mut out = String::from("flowchart LR\n");
    for (index, it) in picture.boxes.iter().enumerate() {
        if it.service {
            it.nodes.iter().for_each(|&node| draw_node(&mut out, picture, node, "  ", ("([", "])")));
        } else {
            let _ = writeln!(out, "  subgraph b{index}[\"{}\"]", it.title);
            it.nodes.iter().for_each(|&node| draw_node(&mut out, picture, node, "    ", ("[", "]")));
            out.push_str("  end\n");
        }
    }
    for (at, (topic, ends)) in picture.topics().into_iter().enumerate() {
        let label = if topic.direct { topic.name.to_string() } else { topic_label(topic) };
        let (tail, head) = if topic.direct { ("==", "==>") } else { ("--", "-->") };
        for writer in &ends.writers {
            for reader in &ends.readers {
                let _ = writeln!(out, "  n{writer} {tail} \"{label}\" {head} n{reader}");
            }
            for (reader, table) in &ends.lookups {
                let _ = writeln!(out, "  n{writer} -. \"{table}\" .-> n{reader}");
            }
            if ends.readers.is_empty() && ends.lookups.is_empty() {
                let _ = writeln!(out, "  n{writer} -- \"{label}\" --> a{at}[(\"archive\")]");
            }
        }
    }
    out
}

fn draw_node(out: &mut String, picture: &Picture<'_>, node: usize, indent: &str, shape: (&str, &str)) {
    let (name, kind) = picture.node_lines(node);
    let label = match kind {
        Some(kind) => format!("{name}<br/>{kind}"),
        None => name,
    };
    let _ = writeln!(out, "{indent}n{node}{}\"{label}\"{}", shape.0, shape.1);
}
