//! What a failpoint costs that is not set: it stands per group, batch, block or job.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sluice_failpoints::{Point, check, pass};

fn unset(c: &mut Criterion) {
    c.bench_function("check", |b| b.iter(|| check(black_box(Point::AppendBefore))));
    c.bench_function("pass", |b| b.iter(|| pass(black_box(Point::AnswersBefore))));
}

criterion_group!(benches, unset);
criterion_main!(benches);
