//! The digest: a hash tree over the keys and raw bytes of what an owner said.
//!
//! Equal roots prove equal sets (extensions text, section 2). There is no homomorphic sum in it,
//! because sums of hashes can be forged by a tenant of the owner's mesh. The digest is taken
//! before alias and policy, and knows no versions, nonces or contexts.
//!
//! Formats, all integers big-endian, `lp(x)` = length of x as 8 bytes, then x:
//! - `kh = SHA-256("hamlet/key/1" || key)`, `leaf = SHA-256("hamlet/leaf/1" || lp(type_url) || lp(key) || lp(value))`
//! - a bucket is numbered by the first 15 bits of `kh`; its hash is
//!   `SHA-256(n as 4 bytes || (kh || leaf) sorted by kh)`, 32 zero bytes when empty
//! - a node is `SHA-256` of its 32 children, 32 zero bytes when all of them are empty
//! - `root = SHA-256("hamlet/root/1" || lp(type_url) || count as 8 bytes || top node)`

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::durable::Hash32;
use crate::seeded::{SeededBug, is_on, least_level};

/// Number of buckets: 32 to the third.
pub const BUCKETS: u32 = 32_768;
/// Bytes of a hash that only locates a difference.
pub const CUT_BYTES: usize = 8;
/// Children of a node.
const FAN: u32 = 32;
const EMPTY: Hash32 = [0; 32];

fn lp(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// The hash that places a key in the tree.
pub fn key_hash(key: &str) -> Hash32 {
    Sha256::new().chain_update(b"hamlet/key/1").chain_update(key.as_bytes()).finalize().into()
}

/// The leaf of one entry: type, key and `Any.value` exactly as on the wire.
pub fn leaf(type_url: &str, key: &str, value: &[u8]) -> Hash32 {
    let mut hasher = Sha256::new_with_prefix(b"hamlet/leaf/1");
    lp(&mut hasher, type_url.as_bytes());
    lp(&mut hasher, key.as_bytes());
    lp(&mut hasher, value);
    hasher.finalize().into()
}

/// How finely two digests are compared: by 32, 1,024 or 32,768 hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The 32 nodes below the top.
    One,
    /// 1,024 nodes.
    Two,
    /// The buckets themselves.
    Three,
}

impl Level {
    /// The smallest level with at most four keys a hash on average; [`Level::Three`] for more.
    pub fn for_count(count: u64) -> Level {
        let level = match count {
            0..=128 => Level::One,
            129..=4_096 => Level::Two,
            _ => Level::Three,
        };
        level.max(Level::from_number(least_level()).unwrap_or(Level::One))
    }

    /// The next finer level; nothing is below the buckets.
    pub fn finer(self) -> Option<Level> {
        Level::from_number(self.number() + 1)
    }

    /// 1, 2 or 3, as on the wire.
    pub fn number(self) -> u32 {
        match self {
            Level::One => 1,
            Level::Two => 2,
            Level::Three => 3,
        }
    }

    /// The level of a number on the wire.
    pub fn from_number(number: u32) -> Option<Level> {
        [Level::One, Level::Two, Level::Three].into_iter().find(|l| l.number() == number)
    }

    /// How many hashes it has.
    pub fn nodes(self) -> usize {
        match self {
            Level::One => 32,
            Level::Two => 1_024,
            Level::Three => BUCKETS as usize,
        }
    }

    fn node_of(self, bucket: u16) -> usize {
        usize::from(bucket) / (BUCKETS as usize / self.nodes())
    }
}

/// Some nodes of one level: what a round is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    level: Level,
    // Node n is bit n % 8, counted from the lowest, of byte n / 8.
    bits: Vec<u8>,
}

impl Scope {
    /// No node.
    pub fn empty(level: Level) -> Scope {
        Scope { level, bits: vec![0; level.nodes() / 8] }
    }

    /// Every node.
    pub fn whole(level: Level) -> Scope {
        Scope { level, bits: vec![0xff; level.nodes() / 8] }
    }

    /// All children of its nodes, at the next finer level; nothing is below the buckets.
    pub fn children(&self) -> Option<Scope> {
        let mut children = Scope::empty(self.level.finer()?);
        for (node, bits) in children.bits.chunks_mut(FAN as usize / 8).enumerate() {
            if self.has(node) {
                bits.fill(0xff);
            }
        }
        Some(children)
    }

    /// The scope of a bitmap on the wire; `None` if it hasn't a bit for each node.
    pub fn from_bytes(level: Level, bits: &[u8]) -> Option<Scope> {
        (bits.len() == level.nodes() / 8).then(|| Scope { level, bits: bits.to_vec() })
    }

    /// The bitmap: node n is bit n % 8, counted from the lowest, of byte n / 8.
    pub fn bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Its level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Number of nodes in it.
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|b| b.count_ones()).sum()
    }

    /// Whether a bucket lies in it.
    pub fn contains(&self, bucket: u16) -> bool {
        self.has(self.level.node_of(bucket))
    }

    fn has(&self, node: usize) -> bool {
        self.bits.get(node / 8).is_some_and(|byte| byte & (1 << (node % 8)) != 0)
    }

    /// The nodes in it, in order.
    fn nodes(&self) -> impl Iterator<Item = usize> {
        (0..self.level.nodes()).filter(|node| self.has(*node))
    }

    fn add(&mut self, node: usize) {
        if let Some(byte) = self.bits.get_mut(node / 8) {
            *byte |= 1 << (node % 8);
        }
    }
}

/// A set of (key, leaf) pairs whose root is computed lazily: a change costs its bucket only.
#[derive(Debug, Clone)]
pub struct DigestTree {
    type_url: String,
    count: u64,
    buckets: BTreeMap<u16, Vec<(Hash32, Hash32)>>,
    // Computed hashes of non-empty buckets and of the nodes above them: level 3 is the buckets,
    // level 1 the 32 nodes below the top.
    level3: BTreeMap<u16, Hash32>,
    level2: BTreeMap<u16, Hash32>,
    level1: BTreeMap<u16, Hash32>,
    dirty: BTreeSet<u16>,
}

impl DigestTree {
    /// An empty set of resources of one type.
    pub fn new(type_url: &str) -> DigestTree {
        DigestTree {
            type_url: type_url.to_owned(),
            count: 0,
            buckets: BTreeMap::new(),
            level3: BTreeMap::new(),
            level2: BTreeMap::new(),
            level1: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// How many keys are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The type of the resources.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// Sets the leaf of a key.
    pub fn insert(&mut self, key: &str, leaf: Hash32) {
        self.insert_hashed(key_hash(key), leaf);
    }

    /// The same for a key whose [`key_hash`] is known.
    pub fn insert_hashed(&mut self, kh: Hash32, leaf: Hash32) {
        let bucket = bucket_of(&kh);
        let entries = self.buckets.entry(bucket).or_default();
        match entries.binary_search_by(|(k, _)| k.cmp(&kh)) {
            Ok(at) if entries[at].1 == leaf => return,
            Ok(at) => entries[at].1 = leaf,
            Err(at) => {
                entries.insert(at, (kh, leaf));
                self.count += 1;
            }
        }
        self.dirty.insert(bucket);
    }

    /// Removes a key; unknown keys are fine.
    pub fn remove(&mut self, key: &str) {
        let kh = key_hash(key);
        let bucket = bucket_of(&kh);
        let Some(entries) = self.buckets.get_mut(&bucket) else { return };
        if let Ok(at) = entries.binary_search_by(|(k, _)| k.cmp(&kh)) {
            entries.remove(at);
            self.count -= 1;
            self.dirty.insert(bucket);
            if entries.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
    }

    /// The root over all entries. Only buckets that changed since the last call are hashed.
    pub fn root(&mut self) -> Hash32 {
        self.settle();
        let top = if is_on(SeededBug::XorDigest) { self.sum() } else { node(&self.level1, 0) };
        let mut hasher = Sha256::new_with_prefix(b"hamlet/root/1");
        lp(&mut hasher, self.type_url.as_bytes());
        hasher.update(self.count.to_be_bytes());
        hasher.update(top);
        hasher.finalize().into()
    }

    /// Hashes of some nodes in order, cut to [`CUT_BYTES`] each.
    pub fn cut_hashes(&mut self, among: &Scope) -> Vec<u8> {
        self.settle();
        let hashes = self.level(among.level);
        let mut out = Vec::with_capacity(among.count() as usize * CUT_BYTES);
        for node in among.nodes() {
            let hash = hashes.get(&(node as u16)).unwrap_or(&EMPTY);
            out.extend_from_slice(&hash[..CUT_BYTES]);
        }
        out
    }

    /// Which of some nodes have other hashes than `theirs`: the cut hashes of `among` in order.
    /// `None` if they are not as many.
    pub fn differing(&mut self, among: &Scope, theirs: &[u8]) -> Option<Scope> {
        if theirs.len() != among.count() as usize * CUT_BYTES {
            return None;
        }
        let ours = self.cut_hashes(among);
        let mut scope = Scope::empty(among.level);
        let pairs = ours.chunks(CUT_BYTES).zip(theirs.chunks(CUT_BYTES));
        for (node, (a, b)) in among.nodes().zip(pairs) {
            if a != b {
                scope.add(node);
            }
        }
        Some(scope)
    }

    fn level(&self, level: Level) -> &BTreeMap<u16, Hash32> {
        match level {
            Level::One => &self.level1,
            Level::Two => &self.level2,
            Level::Three => &self.level3,
        }
    }

    /// What a digest must not be; only a seeded bug asks for it.
    fn sum(&self) -> Hash32 {
        let mut sum = EMPTY;
        for (_, leaf) in self.buckets.values().flatten() {
            sum.iter_mut().zip(leaf).for_each(|(s, l)| *s ^= l);
        }
        sum
    }

    fn settle(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        for &bucket in &dirty {
            let hash = self.buckets.get(&bucket).map_or(EMPTY, |entries| bucket_hash(entries));
            put(&mut self.level3, bucket, hash);
        }
        let parents: BTreeSet<u16> = dirty.iter().map(|b| b / FAN as u16).collect();
        for &parent in &parents {
            let hash = node(&self.level3, parent);
            put(&mut self.level2, parent, hash);
        }
        let grand: BTreeSet<u16> = parents.iter().map(|p| p / FAN as u16).collect();
        for &parent in &grand {
            let hash = node(&self.level2, parent);
            put(&mut self.level1, parent, hash);
        }
    }
}

/// The bucket of a key, from its [`key_hash`].
pub fn bucket_of(kh: &Hash32) -> u16 {
    u16::from_be_bytes([kh[0], kh[1]]) >> 1
}

fn bucket_hash(entries: &[(Hash32, Hash32)]) -> Hash32 {
    let mut hasher = Sha256::new_with_prefix((entries.len() as u32).to_be_bytes());
    for (kh, leaf) in entries {
        hasher.update(kh);
        hasher.update(leaf);
    }
    hasher.finalize().into()
}

fn put(level: &mut BTreeMap<u16, Hash32>, at: u16, hash: Hash32) {
    if hash == EMPTY {
        level.remove(&at);
    } else {
        level.insert(at, hash);
    }
}

fn node(children: &BTreeMap<u16, Hash32>, parent: u16) -> Hash32 {
    let first = u32::from(parent) * FAN;
    let range = first as u16..=(first + FAN - 1) as u16;
    if children.range(range).next().is_none() {
        return EMPTY;
    }
    let mut hasher = Sha256::new();
    for at in first..first + FAN {
        hasher.update(children.get(&(at as u16)).unwrap_or(&EMPTY));
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(entries: &[(&str, &str)]) -> DigestTree {
        let mut t = DigestTree::new("t");
        for (k, v) in entries {
            t.insert(k, leaf("t", k, v.as_bytes()));
        }
        t
    }

    #[test]
    fn the_root_binds_type_count_keys_and_values() {
        let base = tree(&[("a", "1"), ("b", "2")]).root();
        assert_eq!(base, tree(&[("b", "2"), ("a", "1")]).root());
        assert_ne!(base, tree(&[("a", "2"), ("b", "1")]).root());
        assert_ne!(base, tree(&[("a", "1")]).root());
        assert_ne!(DigestTree::new("t").root(), DigestTree::new("u").root());
        assert_ne!(leaf("t", "ab", b"c"), leaf("t", "a", b"bc"));
    }

    /// Computed independently with Python's hashlib from the formats in the module docs.
    #[test]
    fn the_root_of_known_sets_is_the_documented_one() {
        let hex = |h: Hash32| h.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(DigestTree::new("t").root()), include_str!("testdata/digest_empty.hex").trim());
        let entries: Vec<(String, String)> =
            (0..300).map(|i| (format!("svc-{i}"), format!("value {i}"))).collect();
        let mut t = DigestTree::new("type.example/t");
        for (k, v) in &entries {
            t.insert(k, leaf("type.example/t", k, v.as_bytes()));
        }
        assert_eq!(hex(t.root()), include_str!("testdata/digest_300.hex").trim());
    }

    #[test]
    fn differing_nodes_of_every_level_hold_exactly_the_keys_that_differ() {
        let many: Vec<(String, String)> = (0..5_000).map(|i| (format!("k{i}"), i.to_string())).collect();
        let pairs: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let (mut a, mut b) = (tree(&pairs), tree(&pairs));
        b.remove("k7");
        b.insert("k8", leaf("t", "k8", b"other"));
        b.insert("new", leaf("t", "new", b"1"));
        for level in [Level::One, Level::Two, Level::Three] {
            let all = Scope::whole(level);
            let theirs = b.cut_hashes(&all);
            let scope = a.differing(&all, &theirs).unwrap();
            assert!((1..=3).contains(&scope.count()));
            for key in ["k7", "k8", "new"] {
                assert!(scope.contains(bucket_of(&key_hash(key))), "{key} at {level:?}");
            }
            assert_eq!(Scope::from_bytes(level, scope.bytes()), Some(scope.clone()));
            assert_eq!(Scope::from_bytes(level, &scope.bytes()[1..]), None);
            assert_eq!(a.differing(&all, &theirs[8..]), None);
            let same = b.cut_hashes(&all);
            assert_eq!(b.differing(&all, &same).unwrap().count(), 0);
        }
    }

    #[test]
    fn going_down_through_what_differs_ends_where_comparing_all_buckets_does() {
        let many: Vec<(String, String)> = (0..5_000).map(|i| (format!("k{i}"), i.to_string())).collect();
        let pairs: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let (mut a, mut b) = (tree(&pairs), tree(&pairs[..4_980]));
        b.insert("k8", leaf("t", "k8", b"other"));
        let all = Scope::whole(Level::Three);
        let wanted = a.differing(&all, &b.cut_hashes(&all)).unwrap();
        let (mut among, mut exchanged) = (Scope::whole(Level::One), 0);
        let found = loop {
            let theirs = b.cut_hashes(&among);
            assert_eq!(theirs.len(), among.count() as usize * CUT_BYTES);
            exchanged += theirs.len();
            let scope = a.differing(&among, &theirs).unwrap();
            match scope.children() {
                Some(children) => among = children,
                None => break scope,
            }
        };
        assert_eq!(found, wanted);
        assert!(exchanged < 16_384, "{exchanged} B for 21 keys, of 262,144 B of buckets");
        let none = Scope::empty(Level::Two).children().unwrap();
        assert_eq!((none.level(), none.count()), (Level::Three, 0));
        assert!(a.cut_hashes(&none).is_empty());
    }

    #[test]
    fn the_level_is_the_smallest_with_four_keys_a_hash() {
        for (count, level) in [(0, 1), (128, 1), (129, 2), (4_096, 2), (4_097, 3), (1_000_000, 3)] {
            assert_eq!(Level::for_count(count).number(), level, "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_order_of_inserts_and_removes_gives_the_root_of_what_is_left(
            ops in proptest::collection::vec((0u8..20, 0u8..3, any::<bool>(), any::<bool>()), 0..80)
        ) {
            let mut incremental = DigestTree::new("t");
            let mut model = BTreeMap::new();
            for (key, value, insert, look) in ops {
                let key = key.to_string();
                if insert {
                    incremental.insert(&key, leaf("t", &key, &[value]));
                    model.insert(key, value);
                } else {
                    incremental.remove(&key);
                    model.remove(&key);
                }
                if look { incremental.root(); }
            }
            let mut fresh = DigestTree::new("t");
            for (k, v) in &model { fresh.insert(k, leaf("t", k, &[*v])); }
            prop_assert_eq!(incremental.count(), model.len() as u64);
            prop_assert_eq!(incremental.root(), fresh.root());
        }
    }
}
