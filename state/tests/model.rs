//! Random operations on [`Tables`] against a plain map (invariant S2: the state is a function of the operations, and
//! its digest a function of the state).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_state::{Digest, Lineage, MemoryLimits, StateEnv, TableSpec, Tables, row_hash};

#[derive(Clone, Debug)]
enum Op {
    Put(usize, Vec<u8>, Vec<u8>),
    PutOver(usize, Vec<u8>, Vec<u8>),
    Insert(usize, Vec<u8>, Vec<u8>),
    Delete(usize, Vec<u8>),
    Expire(Vec<u8>),
    Scan(usize, Vec<u8>, Option<Vec<u8>>),
    Commit,
    Rollback,
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    (0u8..6, proptest::collection::vec(0u8..3, 0..3)).prop_map(|(group, rest)| [vec![group], rest].concat())
}

fn op() -> impl Strategy<Value = Op> {
    let value = || proptest::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        4 => (0..2usize, key(), value()).prop_map(|(table, key, value)| Op::Put(table, key, value)),
        2 => (0..2usize, key(), value()).prop_map(|(table, key, value)| Op::PutOver(table, key, value)),
        3 => (0..2usize, key(), value()).prop_map(|(table, key, value)| Op::Insert(table, key, value)),
        3 => (0..2usize, key()).prop_map(|(table, key)| Op::Delete(table, key)),
        1 => (0u8..7).prop_map(|group| Op::Expire(vec![group])),
        2 => (0..2usize, key(), proptest::option::of(key())).prop_map(|(table, from, to)| Op::Scan(table, from, to)),
        2 => Just(Op::Commit),
        1 => Just(Op::Rollback),
        1 => Just(Op::Reopen),
    ]
}

type Model = [BTreeMap<Vec<u8>, Vec<u8>>; 2];

fn specs() -> Vec<TableSpec> {
    vec![TableSpec::plain("a.plain"), TableSpec::grouped("a.grouped", 1)]
}

fn lineage() -> Lineage {
    Lineage { task: "model".into(), log_uuid: [1; 16], wiring: String::new() }
}

fn digest_of(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Digest {
    let mut scratch = Vec::new();
    rows.iter().fold(Digest::default(), |sum, (key, value)| sum.plus(row_hash(&mut scratch, key, value)))
}

fn rows_of(tables: &Tables, table: usize, from: &[u8], to: Option<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    tables
        .scan(table, from, to, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })
        .unwrap();
    rows
}

fn check(tables: &Tables, model: &Model) {
    for (index, rows) in model.iter().enumerate() {
        assert_eq!(tables.digest(index).unwrap(), digest_of(rows));
        assert_eq!(tables.rows(index).unwrap(), rows.len() as u64);
        let expected: Vec<_> = rows.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(rows_of(tables, index, b"", None), expected);
    }
}

fn run(env: &StateEnv, ops: &[Op]) {
    let mut tables = env.open(specs(), &lineage()).unwrap();
    let mut model = Model::default();
    let mut committed = Model::default();
    for op in ops {
        match op {
            Op::Put(table, key, value) => {
                tables.put(*table, key, value).unwrap();
                model[*table].insert(key.clone(), value.clone());
            }
            Op::PutOver(table, key, value) => {
                let mut hash = |value: &Vec<u8>| row_hash(&mut Vec::new(), key, value);
                let (old, new) = (model[*table].get(key).map(&mut hash), hash(value));
                assert_eq!(tables.put_over(*table, key, old, value).unwrap(), new);
                model[*table].insert(key.clone(), value.clone());
            }
            Op::Insert(table, key, value) => {
                let fresh = !model[*table].contains_key(key);
                assert_eq!(tables.insert(*table, key, value).unwrap(), fresh);
                model[*table].entry(key.clone()).or_insert_with(|| value.clone());
            }
            Op::Delete(table, key) => {
                tables.delete(*table, key).unwrap();
                model[*table].remove(key);
                assert_eq!(tables.get(*table, key).unwrap(), None);
            }
            Op::Expire(prefix) => {
                tables.expire_below(1, prefix).unwrap();
                model[1] = model[1].split_off(prefix);
            }
            Op::Scan(table, from, to) => {
                let expected: Vec<_> = model[*table]
                    .iter()
                    .filter(|(key, _)| *key >= from && to.as_ref().is_none_or(|to| *key < to))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                assert_eq!(rows_of(&tables, *table, from, to.as_deref()), expected);
            }
            Op::Commit => {
                tables.commit().unwrap();
                committed = model.clone();
            }
            Op::Rollback => {
                tables.rollback().unwrap();
                model = committed.clone();
            }
            Op::Reopen => {
                drop(tables);
                tables = env.open(specs(), &lineage()).unwrap();
                model = committed.clone();
            }
        }
        for (table, rows) in model.iter().enumerate() {
            for (key, value) in rows {
                assert_eq!(tables.get(table, key).unwrap().as_deref(), Some(value.as_slice()));
            }
        }
        check(&tables, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn s2_memory_state_equals_the_model(ops in proptest::collection::vec(op(), 0..60)) {
        run(&StateEnv::in_memory(), &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn s2_rocksdb_state_equals_the_model(ops in proptest::collection::vec(op(), 0..60)) {
        let dir = tempfile::tempdir().unwrap();
        let limits = MemoryLimits { cache: 4 << 20, write_buffers: 1 << 20 };
        run(&StateEnv::on_disk(dir.path(), limits).unwrap(), &ops);
    }
}
