//! Values and rows as both databases give and take them.

use sluice_mining::Sats;
use sluice_proto::EventTime;

use crate::error::{LedgerError, Result};
use crate::score::Score;

/// A value of a column or parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    /// NUMERIC(39, 0) in PostgreSQL, 16 bytes big-endian in SQLite.
    Wide(u128),
}

impl Value {
    /// A number that must fit the database's 64 bits with sign.
    pub(crate) fn int(value: u64) -> Result<Self> {
        i64::try_from(value).map(Self::Int).map_err(|_| LedgerError::Overflow("a number for the database"))
    }

    pub(crate) fn text(value: &str) -> Self {
        Self::Text(value.to_owned())
    }

    pub(crate) fn hash(value: &[u8; 32]) -> Self {
        Self::Bytes(value.to_vec())
    }

    pub(crate) fn time(value: EventTime) -> Result<Self> {
        Self::int(value.nanos())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<Sats> for Value {
    fn from(value: Sats) -> Self {
        // At most MAX_MONEY, far below 2^63.
        Self::Int(value.get() as i64)
    }
}

impl From<Score> for Value {
    fn from(value: Score) -> Self {
        Self::Wide(value.get())
    }
}

/// A row of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row(pub(crate) Vec<Value>);

impl Row {
    pub(crate) fn get(&self, column: usize) -> &Value {
        self.0.get(column).unwrap_or(&Value::Null)
    }

    fn wrong<T>(&self, column: usize, wanted: &str) -> Result<T> {
        let found = self.get(column);
        Err(LedgerError::Inconsistent(format!("column {column} of an answer holds {found:?} where {wanted} belongs")))
    }

    /// A whole number; an empty sum counts as 0.
    pub(crate) fn i64(&self, column: usize) -> Result<i64> {
        match self.get(column) {
            Value::Int(value) => Ok(*value),
            Value::Wide(value) => i64::try_from(*value).or_else(|_| self.wrong(column, "a 64-bit number")),
            _ => self.wrong(column, "a number"),
        }
    }

    pub(crate) fn u64(&self, column: usize) -> Result<u64> {
        u64::try_from(self.i64(column)?).or_else(|_| self.wrong(column, "a number of 0 or more"))
    }

    pub(crate) fn u32(&self, column: usize) -> Result<u32> {
        u32::try_from(self.i64(column)?).or_else(|_| self.wrong(column, "a 32-bit number"))
    }

    pub(crate) fn text(&self, column: usize) -> Result<&str> {
        match self.get(column) {
            Value::Text(text) => Ok(text),
            _ => self.wrong(column, "text"),
        }
    }

    pub(crate) fn bytes<const N: usize>(&self, column: usize) -> Result<[u8; N]> {
        match self.get(column) {
            Value::Bytes(bytes) => bytes.as_slice().try_into().or_else(|_| self.wrong(column, "a hash")),
            _ => self.wrong(column, "bytes"),
        }
    }

    pub(crate) fn score(&self, column: usize) -> Result<Score> {
        match self.get(column) {
            Value::Wide(value) => Ok(Score::new(*value)),
            Value::Bytes(_) => Ok(Score::new(u128::from_be_bytes(self.bytes(column)?))),
            _ => self.wrong(column, "a score"),
        }
    }

    pub(crate) fn sats(&self, column: usize) -> Result<Sats> {
        Sats::new(self.u64(column)?).map_or_else(|| self.wrong(column, "an amount of satoshis"), Ok)
    }

    pub(crate) fn time(&self, column: usize) -> Result<EventTime> {
        Ok(EventTime::from_nanos(self.u64(column)?))
    }

    pub(crate) fn is_null(&self, column: usize) -> bool {
        *self.get(column) == Value::Null
    }
}
