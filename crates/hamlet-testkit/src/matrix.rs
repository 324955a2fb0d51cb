//! Ten authorities by ten trust domains: every authority signs for every domain, and only the
//! diagonal is genuine.
//!
//! It checks nothing: that is the business of what is tested.

use hamlet_core::PeerName;
use hamlet_identity::PeerTrust;

use crate::pki::{LeafSpec, TestCa, TestLeaf};

/// How many authorities and trust domains there are.
pub const SIDE: usize = 10;

/// The authorities. All are believed as peers, each for its own trust domain.
pub struct Matrix {
    cas: Vec<TestCa>,
}

impl Default for Matrix {
    fn default() -> Matrix {
        Matrix::new()
    }
}

impl Matrix {
    /// Ten new authorities.
    pub fn new() -> Matrix {
        Matrix { cas: (0..SIDE).map(|at| TestCa::new(&domain(at))).collect() }
    }

    /// One authority.
    pub fn ca(&self, at: usize) -> &TestCa {
        &self.cas[at]
    }

    /// The name of the peer that owns a trust domain.
    pub fn peer(&self, at: usize) -> PeerName {
        PeerName::parse(&name(at)).expect("a peer name")
    }

    /// All of them as peers.
    pub fn peers(&self) -> Vec<PeerTrust> {
        self.cas.iter().enumerate().map(|(at, ca)| ca.trust_as(&name(at))).collect()
    }

    /// What `signer` issues for the workload at `path` of the trust domain `claimed`.
    pub fn leaf(&self, signer: usize, claimed: usize, path: &str) -> TestLeaf {
        self.cas[signer].leaf(LeafSpec::of(format!("spiffe://{}/{path}", domain(claimed))))
    }

    /// Every pair of an authority and a trust domain, row by row.
    pub fn pairs() -> impl Iterator<Item = (usize, usize)> {
        (0..SIDE * SIDE).map(|at| (at / SIDE, at % SIDE))
    }
}

/// The trust domain at `at`.
pub fn domain(at: usize) -> String {
    format!("mesh{at}.example")
}

/// The name of the peer at `at`.
pub fn name(at: usize) -> String {
    format!("mesh{at}")
}
