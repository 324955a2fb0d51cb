//! Lists and errors: the envelope every answer travels in, and how one thing is found by name.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The kinds that can be listed, watched and described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Other meshes that we know.
    Peers,
    /// Local and imported services.
    Services,
    /// What we make visible, and to whom.
    Publications,
    /// What we accept, and from whom.
    Imports,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Peers, Kind::Services, Kind::Publications, Kind::Imports];

    /// The path segment and plural: `peers`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Peers => "peers",
            Kind::Services => "services",
            Kind::Publications => "publications",
            Kind::Imports => "imports",
        }
    }

    /// The singular: `peer`.
    pub fn singular(self) -> &'static str {
        self.plural().trim_end_matches('s')
    }
}

/// Something that is listed under a name.
pub trait Listed: Serialize + DeserializeOwned + Clone + Send + 'static {
    /// Its kind.
    const KIND: Kind;
    /// Its name: unique within its kind, and the order of lists.
    fn name(&self) -> &str;
    /// Other names it answers to when no [`name`](Listed::name) matches; they may be ambiguous.
    fn aliases(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// A list as the API gives it, ordered by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// `peers`, `services`, `publications` or `imports`.
    pub kind: Kind,
    /// The entries, ordered by name.
    pub items: Vec<T>,
}

impl<T: Listed> List<T> {
    /// A list in its order.
    pub fn of(mut items: Vec<T>) -> List<T> {
        items.sort_by(|a, b| a.name().cmp(b.name()));
        List { kind: T::KIND, items }
    }
}

/// What [`find`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// Exactly one.
    One(T),
    /// Several answer to that alias; their names.
    Several(Vec<String>),
    /// None.
    None,
}

/// Finds an item by its name, else by an alias that only one item has.
pub fn find<T: Listed>(items: Vec<T>, name: &str) -> Found<T> {
    let mut alias = Vec::new();
    for item in items {
        if item.name() == name {
            return Found::One(item);
        }
        if item.aliases().contains(&name) {
            alias.push(item);
        }
    }
    match alias.len() {
        0 => Found::None,
        1 => alias.pop().map_or(Found::None, Found::One),
        _ => Found::Several(alias.iter().map(|i| i.name().to_owned()).collect()),
    }
}

/// What a program branches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// No such path, or nothing of that name (404).
    NotFound,
    /// Several things answer to that name (409).
    Ambiguous,
    /// The path exists but not with this method (405).
    Method,
    /// The configuration can't be used; the last good one stays in force (422).
    Configuration,
    /// The request makes no sense (400).
    Request,
}

/// An error as the API gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// What to branch on.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// With [`ErrorCode::Ambiguous`]: the names to choose from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// With [`ErrorCode::Configuration`]: what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problems: Option<super::ReloadProblems>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}
