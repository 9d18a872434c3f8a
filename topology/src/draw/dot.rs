//! DOT, for Graphviz.

use std::fmt::Write;

use super::{Picture, topic_label};

pub(super) fn draw(picture: &Picture<'_>) -> String {
    let mut out = String::from(
        "digraph topology {\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n  edge \
         [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for (index, it) in picture.boxes.iter().enumerate() {
        if it.service {
            it.nodes.iter().for_each(|&node| draw_node(&mut out, picture, node, "  ", ", style=\"rounded,filled\""));
        } else {
            let _ = writeln!(out, "  subgraph cluster_b{index} {{\n    label=\"{}\";", it.title);
            it.nodes.iter().for_each(|&node| draw_node(&mut out, picture, node, "    ", ""));
            out.push_str("  }\n");
        }
    }
    for (at, (topic, ends)) in picture.topics().into_iter().enumerate() {
        let label = if topic.direct { topic.name.to_string() } else { topic_label(topic) };
        let style = if topic.direct { ", style=bold" } else { "" };
        for writer in &ends.writers {
            for reader in &ends.readers {
                let _ = writeln!(out, "  n{writer} -> n{reader} [label=\"{label}\"{style}];");
            }
            for (reader, table) in &ends.lookups {
                let _ = writeln!(out, "  n{writer} -> n{reader} [label=\"{table}\", style=dashed];");
            }
            if ends.readers.is_empty() && ends.lookups.is_empty() {
                let _ = writeln!(out, "  a{at} [label=\"archive\", shape=cylinder];");
                let _ = writeln!(out, "  n{writer} -> a{at} [label=\"{label}\"];");
            }
        }
    }
    out.push_str("}\n");
    out
}

fn draw_node(out: &mut String, picture: &Picture<'_>, node: usize, indent: &str, style: &str) {
    let (name, kind) = picture.node_lines(node);
    let label = match kind {
        Some(kind) => format!("{name}\\n{kind}"),
        None => name,
    };
    let _ = writeln!(out, "{indent}n{node} [label=\"{label}\"{style}];");
}
