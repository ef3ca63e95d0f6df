//! One row as SQLite writes it: a header of serial types, then the columns' bytes.
//!
//! Owns that every length is checked before it is believed; never knows what a column means.

use rusqlite::types::Value;

use super::varint;
use crate::plant::{self, Fault};

/// The widest table has 27 columns; a header that claims more than this is not one of ours.
const COLUMNS_MAX: usize = 64;

/// The serial types of a record's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// One serial type a column.
    pub(super) types: Vec<u64>,
    /// Bytes the header takes.
    len: usize,
}

impl Header {
    /// Reads the header at the front of a payload, which may be cut off behind it.
    pub(super) fn read(payload: &[u8]) -> Option<Header> {
        let (len, mut at) = varint::read(payload)?;
        let len = usize::try_from(len).ok()?;
        let bytes = payload.get(..len)?;
        let mut types = Vec::new();
        while at < len {
            let (kind, taken) = varint::read(bytes.get(at..)?)?;
            if types.len() == COLUMNS_MAX {
                return None;
            }
            types.push(kind);
            at += taken;
        }
        (at == len).then_some(Header { types, len })
    }

    /// Bytes of the whole record; `None` where a length has no meaning.
    pub(super) fn record_bytes(&self) -> Option<usize> {
        self.types.iter().try_fold(self.len, |sum, kind| sum.checked_add(size(*kind)?))
    }
}

/// All columns of a whole payload; `None` unless its lengths add up to exactly its bytes.
pub(super) fn decode(payload: &[u8]) -> Option<Vec<Value>> {
    let header = Header::read(payload)?;
    if header.record_bytes()? != payload.len() {
        return None;
    }
    let mut at = header.len;
    let mut values = Vec::with_capacity(header.types.len());
    for kind in header.types {
        let (start, len) = (at, size(kind)?);
        let mut end = at.checked_add(len)?;
        at = end;
        if plant::is(Fault::OffByOneInALength) {
            end += 1;
        }
        values.push(value(kind, payload.get(start..end)?)?);
    }
    Some(values)
}

/// The first column, where it is an integer; the payload may be cut off behind it.
pub(super) fn first_integer(payload: &[u8]) -> Option<i64> {
    let header = Header::read(payload)?;
    let kind = *header.types.first()?;
    let bytes = payload.get(header.len..header.len.checked_add(size(kind)?)?)?;
    match value(kind, bytes)? {
        Value::Integer(n) => Some(n),
        _ => None,
    }
}

/// Bytes of a column.
fn size(kind: u64) -> Option<usize> {
    match kind {
        0 | 8 | 9 => Some(0),
        1..=4 => Some(kind as usize),
        5 => Some(6),
        6 | 7 => Some(8),
        10 | 11 => None,
        _ => usize::try_from((kind - 12) / 2).ok(),
    }
}

fn value(kind: u64, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        0 => Value::Null,
        8 => Value::Integer(0),
        9 => Value::Integer(1),
        1..=6 => Value::Integer(integer(bytes)),
        7 => Value::Real(f64::from_be_bytes(bytes.try_into().ok()?)),
        10 | 11 => return None,
        _ if kind.is_multiple_of(2) => Value::Blob(bytes.to_vec()),
        // The spool writes UTF-8 only; other bytes are damage.
        _ => Value::Text(String::from_utf8(bytes.to_vec()).ok()?),
    })
}

/// A big-endian two's complement number of up to eight bytes.
fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |sum, byte| sum << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read() {
        let payload = [8, 0, 1, 2, 8, 9, 15, 16, 0xff, 0x01, 0x00, b'a', 7, 8];
        let expected = [
            Value::Null,
            Value::Integer(-1),
            Value::Integer(256),
            Value::Integer(0),
            Value::Integer(1),
            Value::Text("a".into()),
            Value::Blob(vec![7, 8]),
        ];
        assert_eq!(decode(&payload).unwrap(), expected);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        for payload in [&[2, 15][..], &[2, 15, b'a', b'b'], &[3, 15], &[2, 10], &[2, 0xff], &[1, 0], &[2, 15, 0xff]] {
            assert_eq!(decode(payload), None, "{payload:x?}");
        }
    }
}
