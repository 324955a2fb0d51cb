//! The cases. Each is a short conversation with one fresh connection; what it says when it fails is
//! what was seen.

/// One case of a table.
macro_rules! case {
    ($requirement:literal, $versions:ident, $kind:ident, $needs:ident, $name:literal, $run:expr) => {
        $crate::registry::Case {
            requirement: $requirement,
            versions: $crate::registry::In::$versions,
            kind: $crate::registry::Kind::$kind,
            needs: $crate::registry::Needs::$needs,
            name: $name,
            run: $run,
        }
    };
}

/// One requirement of a table: its level is the same in both versions, or one for each.
macro_rules! requirement {
    ($number:literal, $versions:ident, $one:ident / $two:ident, $section:literal, $text:literal) => {
        $crate::registry::Requirement {
            number: $number,
            versions: $crate::registry::In::$versions,
            section: $section,
            text: $text,
            levels: ($crate::registry::Level::$one, $crate::registry::Level::$two),
        }
    };
    ($number:literal, $versions:ident, $level:ident, $section:literal, $text:literal) => {
        requirement!($number, $versions, $level / $level, $section, $text)
    };
}

pub(crate) mod consumer;
pub(crate) mod consumer_hostile;
pub(crate) mod consumer_link;
pub(crate) mod draft;
pub(crate) mod owner;
pub(crate) mod owner_changes;
pub(crate) mod owner_hostile;
pub(crate) mod transport;
