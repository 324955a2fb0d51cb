//! JSON of strangers: bounded in size, depth and number of values, and no member twice.
//! *Hardened to untrusted peer.*
//!
//! It knows nothing of bundles. Invariant: what comes back says one thing only. A doubled member
//! (RFC 8259, 4 leaves open which one counts) could show one reader other keys than the next.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Deepest nesting that is read in a bundle document. The format needs five.
pub const JSON_DEPTH_MAX: usize = 16;
/// Most values of any kind in a bundle document; bounds memory beyond the bytes.
pub const JSON_VALUES_MAX: usize = 16_384;
/// Longest name of a member that an error shows, in characters.
const SHOWN_MAX: usize = 64;

/// Reads one document, to its end.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    let left = Cell::new(JSON_VALUES_MAX);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: JSON_DEPTH_MAX, left: &left }.deserialize(&mut reader);
    let value = value.map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict<'c> {
    depth: usize,
    left: &'c Cell<usize>,
}

impl<'c> Strict<'c> {
    /// For what is within this value.
    fn inner<E: Error>(self) -> Result<Strict<'c>, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Strict { depth, ..self }),
            None => Err(E::custom(format!("it is nested deeper than {JSON_DEPTH_MAX}"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => return Err(D::Error::custom(format!("it has more than {JSON_VALUES_MAX} values"))),
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if map.contains_key(&name) {
                let name: String = name.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
                return Err(A::Error::custom(format!("the member {name:?} stands twice")));
            }
            map.insert(name, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_doubled_too_deep_or_too_much_is_refused_and_its_neighbour_is_read() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        let many = |n: usize| format!("[{}]", vec!["0"; n].join(","));
        for (what, bad, good) in [
            ("doubled", r#"{"a":1,"a":1}"#.to_owned(), r#"{"a":1,"A":1}"#.to_owned()),
            ("doubled within", r#"{"a":[{"b":1,"b":2}]}"#.into(), r#"{"a":[{"b":1},{"b":2}]}"#.into()),
            ("doubled by an escape", r#"{"a":1,"\u0061":2}"#.into(), r#"{"a":1,"\u0062":2}"#.into()),
            ("too deep", deep(JSON_DEPTH_MAX + 1), deep(JSON_DEPTH_MAX)),
            ("far too deep", deep(100_000), deep(1)),
            ("too many values", many(JSON_VALUES_MAX), many(JSON_VALUES_MAX - 1)),
            ("something behind it", "{} {}".into(), "{} \n".into()),
            ("cut", r#"{"a":"#.into(), r#"{"a":-1.5}"#.into()),
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{what}");
            assert!(read(good.as_bytes()).is_ok(), "the neighbour of {what}: {:?}", read(good.as_bytes()));
        }
    }
}
