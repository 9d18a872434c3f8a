//! SVG: services and tasks as boxes, topics as labels on the edges between them, direct topics inside tasks.

use std::fmt::Write;

use super::layout::{Layout, layout};
use super::{Ends, Picture, PictureBox, topic_label};
use crate::graph::Topic;
use crate::spec::format_duration;

/// Width of a character, pixels, on the safe side.
const CHAR: i64 = 8;
const MARGIN: i64 = 24;
const TITLE: i64 = 28;
const OPERATOR: i64 = 34;
const DIRECT: i64 = 20;
const LANE: i64 = 10;
const PAD: i64 = 12;
const PILL: i64 = 24;

const STYLE: &str = "text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#1b1f24}\
.title{font-weight:600}.kind{fill:#57606a;font-size:10px}.small{font-size:10px;fill:#57606a}\
.task{fill:#f6f8fa;stroke:#8c959f}.service{fill:#ddf4ff;stroke:#0969da}.operator{fill:#fff;stroke:#57606a}\
.topic{fill:#fff8c5;stroke:#bf8700}.edge{fill:none;stroke:#57606a;stroke-width:1.4}\
.back{stroke:#8250df}.table{stroke-dasharray:5 4}.direct{fill:none;stroke:#1a7f37;stroke-width:1.6}";

/// A topic on its way between boxes.
struct Pill<'a> {
    topic: &'a Topic,
    label: String,
    ends: Ends,
}

pub(super) fn draw(picture: &Picture<'_>) -> String {
    let (direct, stored): (Vec<_>, Vec<_>) = picture.topics().into_iter().partition(|(topic, _)| topic.direct);
    let pills: Vec<Pill<'_>> =
        stored.into_iter().map(|(topic, ends)| Pill { topic, label: topic_label(topic), ends }).collect();
    let boxes = picture.boxes.len();
    let sizes: Vec<(i64, i64)> = picture
        .boxes
        .iter()
        .map(|it| box_size(picture, it, &direct))
        .chain(pills.iter().map(|pill| (text_width(&pill.label) + 2 * PAD, PILL)))
        .collect();
    let edges = edges(picture, &pills, boxes);
    let pairs: Vec<(usize, usize)> = edges.iter().map(|edge| (edge.from, edge.to)).collect();
    let laid = layout(&sizes, &pairs);
    let (width, height) = (laid.size.0 + 2 * MARGIN, laid.size.1 + 2 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
         <title>topology</title>\n<style>{STYLE}</style>\n<defs>{}{}{}</defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n<g transform=\"translate({MARGIN} {MARGIN})\">\n",
        marker("arrow", "#57606a"),
        marker("arrow-back", "#8250df"),
        marker("arrow-direct", "#1a7f37"),
    );
    for (index, edge) in edges.iter().enumerate() {
        draw_edge(&mut out, edge, index, &sizes, &laid);
    }
    for (it, (&corner, &size)) in picture.boxes.iter().zip(laid.corners.iter().zip(&sizes)) {
        draw_box(&mut out, picture, it, &direct, corner, size);
    }
    for (pill, (&corner, &size)) in pills.iter().zip(laid.corners.iter().zip(&sizes).skip(boxes)) {
        draw_pill(&mut out, pill, corner, size);
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn text_width(text: &str) -> i64 {
    text.chars().count() as i64 * CHAR
}

fn marker(id: &str, color: &str) -> String {
    format!(
        "<marker id=\"{id}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\" fill=\"{color}\"/></marker>"
    )
}

/// Direct topics that `node` writes.
fn written<'a, 'b>(direct: &'b [(&'a Topic, Ends)], node: usize) -> impl Iterator<Item = &'b (&'a Topic, Ends)> {
    direct.iter().filter(move |(_, ends)| ends.writers.contains(&node))
}

/// How many direct topics are inside of a box: each has a lane on its left.
fn lanes(it: &PictureBox, direct: &[(&Topic, Ends)]) -> i64 {
    it.nodes.iter().map(|&node| written(direct, node).count() as i64).sum()
}

fn box_size(picture: &Picture<'_>, it: &PictureBox, direct: &[(&Topic, Ends)]) -> (i64, i64) {
    let mut widest = text_width(&it.title);
    let mut height = TITLE;
    for &node in &it.nodes {
        let (name, kind) = picture.node_lines(node);
        widest = widest.max(text_width(&name)).max(kind.map_or(0, text_width));
        widest = widest.max(written(direct, node).map(|(topic, _)| text_width(&topic.name)).max().unwrap_or(0));
        height += OPERATOR + 8 + DIRECT * written(direct, node).count() as i64;
    }
    let lanes = lanes(it, direct) * LANE;
    if it.service { (widest + 2 * PAD, OPERATOR + 10) } else { (widest + 4 * PAD + lanes, height + 6) }
}

struct Edge {
    from: usize,
    to: usize,
    table: Option<String>,
}

/// From boxes to topics and on to boxes; pills follow the boxes in the numbering.
fn edges(picture: &Picture<'_>, pills: &[Pill<'_>], boxes: usize) -> Vec<Edge> {
    let mut out: Vec<Edge> = Vec::new();
    for (index, pill) in pills.iter().enumerate() {
        let pill_at = boxes + index;
        let mut add = |from, to, table| {
            let known = |edge: &Edge| edge.from == from && edge.to == to && edge.table == table;
            if !out.iter().any(known) {
                out.push(Edge { from, to, table });
            }
        };
        for writer in pill.ends.writers.iter().filter_map(|&node| picture.box_of(node)) {
            add(writer, pill_at, None);
        }
        for reader in pill.ends.readers.iter().filter_map(|&node| picture.box_of(node)) {
            add(pill_at, reader, None);
        }
        for (node, table) in &pill.ends.lookups {
            if let Some(reader) = picture.box_of(*node) {
                add(pill_at, reader, Some(table.clone()));
            }
        }
    }
    out
}

fn draw_edge(out: &mut String, edge: &Edge, index: usize, sizes: &[(i64, i64)], laid: &Layout) {
    let back = laid.backward.contains(&index);
    let side = |node: usize, right: bool| {
        let ((x, y), (width, height)) = (laid.corners[node], sizes[node]);
        (if right { x + width } else { x }, y + height / 2)
    };
    let mut points = vec![side(edge.from, !back)];
    points.extend(&laid.ways[index]);
    points.push(side(edge.to, back));
    let mut path = String::new();
    for (at, point) in points.iter().enumerate() {
        match at.checked_sub(1).and_then(|before| points.get(before)) {
            None => {
                let _ = write!(path, "M{} {}", point.0, point.1);
            }
            Some(before) => {
                let middle = (before.0 + point.0) / 2;
                let _ = write!(path, "C{middle} {} {middle} {} {} {}", before.1, point.1, point.0, point.1);
            }
        }
    }
    let classes =
        format!("edge{}{}", if back { " back" } else { "" }, if edge.table.is_some() { " table" } else { "" });
    let arrow = if back { "arrow-back" } else { "arrow" };
    let title = edge.table.as_ref().map(|table| format!("<title>table {}</title>", escape(table))).unwrap_or_default();
    let _ = writeln!(
        out,
        "<g class=\"way\">{title}<path class=\"{classes}\" d=\"{path}\" marker-end=\"url(#{arrow})\"/></g>"
    );
}

fn draw_box(
    out: &mut String,
    picture: &Picture<'_>,
    it: &PictureBox,
    direct: &[(&Topic, Ends)],
    (x, y): (i64, i64),
    (width, height): (i64, i64),
) {
    let class = if it.service { "service" } else { "task" };
    let radius = if it.service { height / 2 } else { 8 };
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\"/>"
    );
    if it.service {
        it.nodes.iter().for_each(|&node| node_text(out, picture, node, x + width / 2, y + height / 2));
        return;
    }
    let title = escape(&it.title);
    let _ = writeln!(out, "<text class=\"title\" x=\"{}\" y=\"{}\">task {title}</text>", x + PAD, y + 19);
    let lanes = lanes(it, direct) * LANE;
    let left = x + PAD + lanes;
    let inner = width - 2 * PAD - lanes;
    let mut top = y + TITLE;
    let mut places = Vec::new();
    let mut starts = Vec::new();
    for &node in &it.nodes {
        let _ = writeln!(
            out,
            "<rect class=\"operator\" x=\"{left}\" y=\"{top}\" width=\"{inner}\" height=\"{OPERATOR}\" rx=\"5\"/>"
        );
        node_text(out, picture, node, left + inner / 2, top + OPERATOR / 2);
        places.push((node, top + OPERATOR / 2));
        top += OPERATOR;
        for (topic, ends) in written(direct, node) {
            let _ = writeln!(
                out,
                "<text class=\"small\" x=\"{}\" y=\"{}\">{}</text>",
                left + 6,
                top + 14,
                escape(&topic.name)
            );
            starts.push((ends, top + 10));
            top += DIRECT;
        }
        top += 8;
    }
    for (lane, (ends, start)) in starts.iter().enumerate() {
        let at = left - LANE * (lane as i64 + 1);
        for (_, to) in places.iter().filter(|(node, _)| ends.readers.contains(node)) {
            let _ = writeln!(
                out,
                "<path class=\"direct\" d=\"M{} {start}H{at}V{to}H{left}\" marker-end=\"url(#arrow-direct)\"/>",
                left + 4
            );
        }
    }
}

/// A node's name, and its kind below it where that is another word.
fn node_text(out: &mut String, picture: &Picture<'_>, node: usize, x: i64, y: i64) {
    let (name, kind) = picture.node_lines(node);
    let first = if kind.is_some() { y - 2 } else { y + 4 };
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{first}\" text-anchor=\"middle\">{}</text>", escape(&name));
    if let Some(kind) = kind {
        let kind = escape(kind);
        let _ = writeln!(out, "<text class=\"kind\" x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{kind}</text>", y + 11);
    }
}

fn draw_pill(out: &mut String, pill: &Pill<'_>, (x, y): (i64, i64), (width, height): (i64, i64)) {
    let records: Vec<&str> = pill.topic.records.iter().map(|kind| kind.name()).collect();
    let kept = pill.topic.kept_for().map_or("for ever".to_owned(), |age| format!("for {}", format_duration(age)));
    let _ = writeln!(
        out,
        "<g class=\"pill\"><title>{}: {}; kept {kept}</title><rect class=\"topic\" x=\"{x}\" y=\"{y}\" width=\"{width}\" \
         height=\"{height}\" rx=\"12\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text></g>",
        escape(&pill.topic.name),
        records.join(", "),
        x + width / 2,
        y + height / 2 + 4,
        escape(&pill.label),
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
