//! Values and rows in PostgreSQL's binary format.

use std::error::Error;

use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::numeric;
use crate::sql::{Row, Value};

type BoxError = Box<dyn Error + Sync + Send>;

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, BoxError> {
        match (self, ty) {
            (Self::Null, _) => return Ok(IsNull::Yes),
            (Self::Int(value), &Type::INT8) => out.extend_from_slice(&value.to_be_bytes()),
            (Self::Text(text), &Type::TEXT) => out.extend_from_slice(text.as_bytes()),
            (Self::Bytes(bytes), &Type::BYTEA) => out.extend_from_slice(bytes),
            (Self::Wide(value), &Type::NUMERIC) => numeric::encode(*value, out),
            (value, ty) => return Err(format!("{value:?} is no {ty}").into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::INT8 | Type::TEXT | Type::BYTEA | Type::NUMERIC)
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> std::result::Result<Self, BoxError> {
        Ok(match *ty {
            Type::INT8 => Self::Int(i64::from_be_bytes(raw.try_into()?)),
            Type::TEXT => Self::Text(std::str::from_utf8(raw)?.to_owned()),
            Type::BYTEA => Self::Bytes(raw.to_vec()),
            Type::NUMERIC => Self::Wide(numeric::decode(raw)?),
            ref other => return Err(format!("a column of type {other}").into()),
        })
    }

    fn from_sql_null(_: &Type) -> std::result::Result<Self, BoxError> {
        Ok(Self::Null)
    }

    fn accepts(ty: &Type) -> bool {
        <Self as ToSql>::accepts(ty)
    }
}

/// All columns of a row.
pub(super) fn read_row(row: &tokio_postgres::Row) -> std::result::Result<Row, tokio_postgres::Error> {
    (0..row.len()).map(|column| row.try_get(column)).collect::<std::result::Result<_, _>>().map(Row)
}
