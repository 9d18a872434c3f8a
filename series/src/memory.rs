//! Time series in memory: for tests, and for runs whose points nobody looks at.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{Point, SeriesError, SeriesHealth, SeriesStore};

/// What makes two points the same: measurement, tags in the order of their names, time.
type Identity = (&'static str, Vec<(&'static str, String)>, u64);

/// Keeps the last point of each identity, as a server would.
#[derive(Debug, Default)]
pub struct MemorySeries {
    points: Mutex<BTreeMap<Identity, Point>>,
    written: AtomicU64,
    interrupted: AtomicBool,
}

impl MemorySeries {
    /// All points, ordered by measurement, tags and time.
    pub fn points(&self) -> Vec<Point> {
        self.points.lock().values().cloned().collect()
    }
}

impl SeriesStore for MemorySeries {
    fn write(&self, points: &[Point]) -> Result<(), SeriesError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(SeriesError::Interrupted);
        }
        let mut kept = self.points.lock();
        for point in points {
            let mut tags = point.tags.clone();
            tags.sort_unstable();
            let fields = &mut kept
                .entry((point.measurement, tags, point.time_ms))
                .or_insert_with(|| Point { fields: Vec::new(), ..point.clone() })
                .fields;
            for (name, value) in &point.fields {
                match fields.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => *known = *value,
                    None => fields.push((name, *value)),
                }
            }
        }
        self.written.fetch_add(points.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    fn health(&self) -> SeriesHealth {
        SeriesHealth { written: self.written.load(Ordering::Relaxed), ..SeriesHealth::default() }
    }
}
