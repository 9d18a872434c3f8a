//! The figures and tables of docs/VARDIFF.md. With `SLUICE_REGENERATE` in the environment they are written, else compared.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::promises::{Course, Held, SHOWN, STEP, Spread};

/// Panels side by side.
const COLUMNS: usize = 3;
/// Size of a panel, pixels.
const PANEL: (f64, f64) = (300.0, 180.0);
/// What is drawn in: left, top, width, height within a panel.
const FRAME: (f64, f64, f64, f64) = (40.0, 26.0, 248.0, 124.0);
/// Doublings shown above and below the wanted rate.
const DOUBLINGS: f64 = 6.0;

/// Compares the docs with the measurements, or writes them.
pub(super) fn check(starts: &[Course], firsts: &[Course], changes: &[Course], held: &[Held]) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (name, courses) in [("start", starts), ("first", firsts), ("change", changes)] {
        settle(docs.join(format!("vardiff/{name}.svg")), &drawn(courses));
    }
    let page = docs.join("VARDIFF.md");
    let mut text = std::fs::read_to_string(&page).unwrap();
    for (name, table) in [
        ("start", courses(starts, [60, 120, 240])),
        ("first", courses(firsts, [60, 120, 240])),
        ("change", courses(changes, [60, 180, 240])),
        ("held", holds(held)),
    ] {
        text = with_table(&text, name, &table);
    }
    settle(page, &text);
}

/// Writes `right`, or holds the file to it.
fn settle(file: PathBuf, right: &str) {
    if std::env::var_os("SLUICE_REGENERATE").is_some() {
        std::fs::write(&file, right).unwrap();
    }
    let same = std::fs::read_to_string(&file).is_ok_and(|found| found == right);
    assert!(same, "{} is not what the simulation gives: see its last section", file.display());
}

/// `text` with this table between its marks.
fn with_table(text: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- table {name} -->\n"), format!("<!-- end {name} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    format!("{before}{begin}{table}{end}{after}")
}

fn percentiles(spread: &Spread) -> String {
    [5, 50, 95].map(|percent| format!("{:.2}", spread.at(percent))).join(" / ")
}

fn courses(courses: &[Course], seconds: [u64; 3]) -> String {
    let [first, second, third] = seconds;
    let mut out = format!(
        "| miner | after {first} s | after {second} s | after {third} s | its share rate then |\n|---|---|---|---|---|\n"
    );
    for course in courses {
        write!(out, "| {} |", course.case.name).unwrap();
        for spread in seconds.map(|after| course.after(after)) {
            write!(out, " {} / {} / {} |", spread.within(0.7..=1.3), spread.near(1.5), spread.near(2.0)).unwrap();
        }
        writeln!(out, " {} |", percentiles(course.after(third))).unwrap();
    }
    out
}

fn holds(held: &[Held]) -> String {
    let mut out = String::from(
        "| miner | share rate of half an hour | of it within 30 % | at its end | decisions |\n|---|---|---|---|---|\n",
    );
    for held in held {
        let (rate, moment) = (&held.rate, &held.moment);
        let within = [rate.within(0.7..=1.3), moment.within(0.7..=1.3), moment.near(1.5), moment.near(2.0)];
        let [held_within, near, factor, double] = within;
        let decisions = [50, 90].map(|percent| held.decisions.at(percent).to_string()).join(" / ");
        let shown = format!("{} | {held_within} | {near} / {factor} / {double} | {decisions}", percentiles(rate));
        writeln!(out, "| {} | {shown} |", held.name).unwrap();
    }
    out
}

fn drawn(courses: &[Course]) -> String {
    let rows = courses.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, PANEL.1 * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (number, course) in courses.iter().enumerate() {
        let at = ((number % COLUMNS) as f64 * PANEL.0, (number / COLUMNS) as f64 * PANEL.1);
        writeln!(out, "<g transform=\"translate({},{})\">", at.0, at.1).unwrap();
        panel(&mut out, course);
        out.push_str("</g>\n");
    }
    out + "</svg>\n"
}

/// Height of a share rate.
fn y(rate: f64) -> f64 {
    let (_, top, _, height) = FRAME;
    top + height * (0.5 - rate.log2().clamp(-DOUBLINGS, DOUBLINGS) / (2.0 * DOUBLINGS))
}

fn panel(out: &mut String, course: &Course) {
    let (left, top, width, height) = FRAME;
    let lead = course.lead();
    let x = |seconds: u64| left + width * seconds as f64 / (lead + SHOWN) as f64;
    writeln!(out, "<text x=\"{left}\" y=\"16\" font-weight=\"bold\">{}</text>", course.case.name).unwrap();
    let (above, below) = (y(1.3), y(0.7));
    let near = below - above;
    writeln!(out, "<rect x=\"{left}\" y=\"{above:.1}\" width=\"{width}\" height=\"{near:.1}\" fill=\"#d9ead3\"/>")
        .unwrap();
    for (label, rate) in [("64", 64.0), ("8", 8.0), ("1", 1.0), ("1/8", 0.125), ("1/64", 1.0 / 64.0)] {
        let (at, text) = (y(rate), y(rate) + 4.0);
        writeln!(out, "<path d=\"M{left},{at:.1}h{width}\" stroke=\"#ddd\"/>").unwrap();
        writeln!(out, "<text x=\"{}\" y=\"{text:.1}\" text-anchor=\"end\">{label}</text>", left - 4.0).unwrap();
    }
    for minute in 0..=SHOWN / 60 {
        let (at, bottom) = (x(lead + minute * 60), top + height);
        writeln!(out, "<path d=\"M{at:.1},{top}v{height}\" stroke=\"#ddd\"/>").unwrap();
        writeln!(out, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{minute}</text>", bottom + 14.0).unwrap();
    }
    let line = |percent: usize| {
        let looks = course.looks.iter().zip(0..);
        looks
            .map(move |(spread, look)| format!("{:.1},{:.1}", x(look * STEP), y(spread.at(percent))))
            .collect::<Vec<_>>()
    };
    let band: Vec<String> = line(5).into_iter().chain(line(95).into_iter().rev()).collect();
    writeln!(out, "<path d=\"M{}z\" fill=\"#3d85c6\" fill-opacity=\"0.3\"/>", band.join("L")).unwrap();
    writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"#0b5394\" stroke-width=\"1.5\"/>", line(50).join("L"))
        .unwrap();
}
