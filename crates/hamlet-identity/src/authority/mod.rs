//! The built-in authority: a root that is kept, an intermediate that signs, our leaves, and the
//! rotation of all three.
//!
//! For meshes without a PKI of their own. What is to be done is decided in [`plan`] from what is on
//! disk and the clock; this file does it, one step after another, each in effect at once when the
//! state's file was replaced. It starts nothing: somebody calls [`Authority::look`] from time to
//! time. Invariants: at any moment, and after a crash at any moment, the folder has an issuing CA
//! under a root that is in the bundle, and a failed step leaves what was there before in use.

mod certs;
mod disk;
mod keeper;
pub mod plan;
pub mod state;

pub use keeper::{AuthorityKeeper, Kept, LOOK_EVERY};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hamlet_core::{Fqdn, SpiffeId, TrustDomain};
use hamlet_runtime::Clock;
use parking_lot::Mutex;

use self::certs::{Signer, Span};
use self::disk::Disk;
use self::plan::{Lives, LivesError, Planned, Step, Wanted};
use self::state::{Issuing, Leaf, LeafRole, ROOTS_MAX, Root, Stage, State};
use crate::ca::{CaError, LocalCa};
use crate::files::{FileError, read_public};
use crate::local::usable_pair;
use crate::minter::CurrentCa;

/// Most steps of one look; a plan comes to rest long before.
const STEPS_MAX: usize = 16;

/// The file of state of the authority in an identity folder.
pub fn state_file(folder: &Path) -> PathBuf {
    Disk::new(folder).state_file()
}

/// The file in an identity folder with the bundle for peers.
pub fn bundle_file(folder: &Path) -> PathBuf {
    Disk::new(folder).bundle_file()
}

/// Why the authority could not do what it should.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AuthorityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Lives(#[from] LivesError),
    #[error(
        "there is no authority in {}; `hamlet init` makes one in a new folder, `hamlet ca adopt` makes one of a CA that is there", .0.display()
    )]
    Absent(PathBuf),
    #[error("{} is there already; one folder has one authority: choose another folder", .0.display())]
    Exists(PathBuf),
    #[error(
        "{} can't be used: {reason}; put back a copy of the whole folder, or make a new authority and give its bundle to the peers", .path.display()
    )]
    State { path: PathBuf, reason: String },
    #[error(
        "the authority in {} is of {found}, not of {wanted}; correct spec.trustDomain, or name the folder of {wanted}", .path.display()
    )]
    OtherDomain { path: PathBuf, found: String, wanted: TrustDomain },
    #[error(
        "{} is not the certificate that the authority made ({what}); put back a copy of the whole folder", .path.display()
    )]
    Replaced { path: PathBuf, what: String },
    #[error(
        "{} is not a root: it was signed by another CA; adopt that one, or use certificate files", .0.display()
    )]
    NotRoot(PathBuf),
    #[error(
        "root {0} is staged already and begins to issue by itself; `hamlet ca rotate --now` lets it begin at once"
    )]
    RotationUnderWay(u64),
    #[error("{0} roots are in the bundle already; wait until one has left it: `hamlet ca status` says when")]
    TooManyRoots(usize),
    #[error("no root waits and none leaves; `hamlet ca rotate` begins a rotation")]
    NothingToDrop,
    #[error("the plan does not come to rest; check the lives in spec.identity.authority")]
    Restless,
}

/// What one of our leaves has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSpec {
    /// Its id.
    pub id: SpiffeId,
    /// The host names that peers dial.
    pub names: Vec<Fqdn>,
}

/// An authority as it is configured.
pub struct AuthoritySettings {
    /// The identity folder; what is in it, [`Authority`] says.
    pub folder: PathBuf,
    /// Whose identities it issues.
    pub domain: TrustDomain,
    /// How long things live.
    pub lives: Lives,
    /// The leaves to keep.
    pub leaves: BTreeMap<LeafRole, LeafSpec>,
    /// For validity.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for AuthoritySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthoritySettings").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// When a new root begins to issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// When the overlap has ended.
    AfterOverlap,
    /// At once; peers that don't have it yet believe it through the root before, which signed it.
    Now,
}

/// The authority of one mesh. Changes of several processes at one folder wait for each other.
pub struct Authority {
    settings: AuthoritySettings,
    wanted: BTreeMap<LeafRole, Wanted>,
    disk: Disk,
    /// What the folder held at the last look.
    seen: Mutex<Option<State>>,
    issuer: CurrentCa,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority in that folder; nothing is read before [`Self::look`].
    pub fn new(settings: AuthoritySettings) -> Result<Authority, AuthorityError> {
        settings.lives.check()?;
        let wanted = |spec: &LeafSpec| Wanted {
            id: spec.id.to_string(),
            names: spec.names.iter().map(ToString::to_string).collect(),
        };
        Ok(Authority {
            wanted: settings.leaves.iter().map(|(role, spec)| (*role, wanted(spec))).collect(),
            disk: Disk::new(&settings.folder),
            seen: Mutex::new(None),
            issuer: Arc::new(ArcSwapOption::empty()),
            settings,
        })
    }

    /// Makes a new authority with everything that it needs; fails if there is one.
    pub fn create(settings: AuthoritySettings) -> Result<Authority, AuthorityError> {
        let authority = Authority::new(settings)?;
        authority.begin(|this, span| {
            let made = certs::root(&this.settings.domain, 1, span)?;
            Ok((made, span, Some(certs::ROOT_PATH_LEN)))
        })?;
        Ok(authority)
    }

    /// Makes an authority whose first root is the CA in these two files, which stay as they are.
    /// Peers that believe that CA notice nothing.
    pub fn adopt(settings: AuthoritySettings, cert: &Path, key: &Path) -> Result<Authority, AuthorityError> {
        let authority = Authority::new(settings)?;
        authority.begin(|this, span| {
            let (domain, clock) = (&this.settings.domain, this.settings.clock.clone());
            let ca = LocalCa::open_files(cert, key, Some(domain), clock)?;
            let (pem, secret) = this.disk.read_pair(&(cert.to_owned(), key.to_owned()))?;
            let bad = |reason| CaError::Certificate { path: cert.to_owned(), reason };
            let read = certs::read_pem(&pem).map_err(bad)?;
            if !read.self_issued {
                return Err(AuthorityError::NotRoot(cert.to_owned()));
            }
            let sha256 = certs::digest_of_pem(&pem).unwrap_or_default();
            let made = certs::Made {
                cert: ca.pem().to_owned(),
                key: String::from_utf8_lossy(&secret).into_owned(),
                sha256,
            };
            let span = Span { made: span.made, until: read.not_after };
            Ok((made, span, certs::path_len_of_pem(&pem)))
        })?;
        Ok(authority)
    }

    /// Writes the first root and its state, then does what else is due.
    fn begin(
        &self,
        first: impl FnOnce(&Authority, Span) -> Result<(certs::Made, Span, Option<u32>), AuthorityError>,
    ) -> Result<(), AuthorityError> {
        self.disk.make()?;
        let lock = self.disk.lock()?;
        let path = self.disk.state_file();
        if path.symlink_metadata().is_ok() {
            return Err(AuthorityError::Exists(path));
        }
        let (made, span, path_len) = first(self, self.span(self.settings.lives.root, Duration::MAX))?;
        self.disk.write_pair(&self.disk.root_files(1), &made)?;
        let root = Root {
            number: 1,
            made_s: span.made.as_secs(),
            not_after_s: span.until.as_secs(),
            sha256: made.sha256,
            path_len,
            cross: false,
            stage: Stage::Issuing,
        };
        self.commit(&State::new(&self.settings.domain, root))?;
        drop(lock);
        self.look(true)?;
        Ok(())
    }

    /// Reads the folder, does what is due and says what that was. `settled` is whether the clock
    /// can be believed (see [`plan::ClockWatch`]). On error, what was in use stays in use. Blocking.
    pub fn look(&self, settled: bool) -> Result<Vec<Planned>, AuthorityError> {
        let (_lock, mut state) = self.locked()?;
        self.proceed(&mut state, settled)
    }

    /// Stages a new root, and lets it issue when `release` says. A root that is staged already is
    /// let issue at once by [`Release::Now`]. Blocking.
    pub fn rotate(&self, release: Release) -> Result<Vec<Planned>, AuthorityError> {
        let (_lock, mut state) = self.locked()?;
        let now = self.settings.clock.wall();
        let mut done = Vec::new();
        match (state.staged().map(|(root, _)| root.number), release) {
            (Some(number), Release::AfterOverlap) => return Err(AuthorityError::RotationUnderWay(number)),
            (Some(_), Release::Now) => {}
            (None, _) if state.roots.len() >= ROOTS_MAX => {
                return Err(AuthorityError::TooManyRoots(state.roots.len()));
            }
            (None, _) => {
                let asked = Planned { step: Step::StageRoot, at: now, why: "an operator asked for it" };
                self.perform(&mut state, asked.step, now)?;
                done.push(asked);
            }
        }
        if release == Release::Now {
            self.release(&mut state, now)?;
        }
        done.extend(self.proceed(&mut state, true)?);
        Ok(done)
    }

    /// Every peer has said that it holds root `number`: it need not wait for the end of the
    /// overlap. `false` if that root isn't staged (any more). Blocking.
    pub fn all_peers_hold(&self, number: u64) -> Result<bool, AuthorityError> {
        let (_lock, mut state) = self.locked()?;
        if state.staged().is_none_or(|(root, _)| root.number != number) {
            return Ok(false);
        }
        self.release(&mut state, self.settings.clock.wall())?;
        self.proceed(&mut state, true)?;
        Ok(true)
    }

    /// Takes roots that leave out of the bundle now, whatever still goes back to them: for a root
    /// whose key was stolen. Our own leaves are renewed first. Blocking.
    pub fn drop_leaving(&self) -> Result<Vec<Planned>, AuthorityError> {
        let (_lock, mut state) = self.locked()?;
        let now_s = self.settings.clock.wall().as_secs();
        if state.leaving().next().is_none() {
            return Err(AuthorityError::NothingToDrop);
        }
        for root in &mut state.roots {
            if let Stage::Leaving { gone_at_s } = &mut root.stage {
                *gone_at_s = now_s;
            }
        }
        self.commit(&state)?;
        self.proceed(&mut state, true)
    }

    /// What the folder holds, without changing anything. Blocking.
    pub fn read(&self) -> Result<State, AuthorityError> {
        Ok(self.locked()?.1)
    }

    /// What the last look found; `None` before the first good one.
    pub fn seen(&self) -> Option<State> {
        self.seen.lock().clone()
    }

    /// What is planned for a state, soonest first.
    pub fn schedule(&self, state: &State) -> Vec<Planned> {
        plan::schedule(state, &self.settings.lives, &self.wanted, self.settings.clock.wall())
    }

    /// How it is configured.
    pub fn settings(&self) -> &AuthoritySettings {
        &self.settings
    }

    /// The CA that signs leaves; empty before the first good look.
    pub fn issuer(&self) -> CurrentCa {
        self.issuer.clone()
    }

    /// Certificate and key of a leaf of ours.
    pub fn leaf_files(&self, role: LeafRole) -> (PathBuf, PathBuf) {
        self.disk.leaf_files(role)
    }

    /// The bundle for peers.
    pub fn bundle_file(&self) -> PathBuf {
        self.disk.bundle_file()
    }

    /// The file that changes whenever anything else does.
    pub fn state_file(&self) -> PathBuf {
        self.disk.state_file()
    }

    fn locked(&self) -> Result<(disk::Locked, State), AuthorityError> {
        let path = self.disk.state_file();
        if matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            return Err(AuthorityError::Absent(self.settings.folder.clone()));
        }
        let lock = self.disk.lock()?;
        let text = read_public(&path)?;
        let state =
            State::read(&text).map_err(|reason| AuthorityError::State { path: path.clone(), reason })?;
        let wanted = &self.settings.domain;
        if state.trust_domain != wanted.as_str() {
            let (found, wanted) = (state.trust_domain, wanted.clone());
            return Err(AuthorityError::OtherDomain { path, found, wanted });
        }
        Ok((lock, state))
    }

    /// Does what is due until nothing is, then makes everything in use as the state says.
    fn proceed(&self, state: &mut State, settled: bool) -> Result<Vec<Planned>, AuthorityError> {
        self.forget_broken(state);
        self.derive(state)?;
        let (lives, now) = (self.settings.lives, self.settings.clock.wall());
        let (mut done, mut failed, mut first_error) = (Vec::new(), Vec::new(), None);
        while let Some(planned) = plan::due(state, &lives, &self.wanted, now, settled, &failed) {
            if done.len() >= STEPS_MAX {
                return Err(AuthorityError::Restless);
            }
            // One step that can't be done is no reason to leave the others.
            match self.perform(state, planned.step, now) {
                Ok(()) => done.push(planned),
                Err(error) => {
                    failed.push(planned.step);
                    first_error.get_or_insert(error);
                }
            }
        }
        *self.seen.lock() = Some(state.clone());
        if let Some(issuing) = &state.issuing {
            let current = self.issuer.load();
            let chain = self.open_issuing(state, issuing)?;
            if current.as_ref().is_none_or(|current| !current.is_same(&chain)) {
                self.issuer.store(Some(Arc::new(chain)));
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        self.disk.sweep(state)?;
        Ok(done)
    }

    /// What of the state isn't in its files any more is due again.
    fn forget_broken(&self, state: &mut State) {
        let broken = |role: &LeafRole, leaf: &Leaf| {
            let files = self.disk.leaf_files(*role);
            let Ok((cert, key)) = self.disk.read_pair(&files) else { return true };
            certs::digest_of_pem(&cert).as_ref() != Some(&leaf.sha256) || usable_pair(&cert, &key).is_err()
        };
        state.leaves.retain(|role, leaf| !broken(role, leaf));
        if let Some(issuing) = state.issuing.clone()
            && !issuing.is_root()
            && let Err(error) = self.open_issuing(state, &issuing)
        {
            tracing::warn!(%error, "the issuing CA can't be used; the root makes a new one");
            state.issuing = None;
        }
    }

    fn perform(&self, state: &mut State, step: Step, now: Duration) -> Result<(), AuthorityError> {
        // Only a step that succeeds changes what we hold to be so.
        let mut next = state.clone();
        match step {
            Step::StageRoot => self.stage(&mut next, now)?,
            Step::IssueFromStaged => self.issue_from_staged(&mut next, now)?,
            Step::RenewIssuing => self.renew_issuing(&mut next)?,
            Step::RenewLeaf(role) => self.renew_leaf(&mut next, role)?,
            Step::DropRoot(number) => {
                next.roots.retain(|root| root.number != number);
                next.sequence += 1;
            }
        }
        self.commit(&next)?;
        *state = next;
        self.derive(state)?;
        Ok(())
    }

    fn stage(&self, state: &mut State, now: Duration) -> Result<(), AuthorityError> {
        let Some(active) = state.active().cloned() else { return Ok(()) };
        let lives = self.settings.lives;
        let (number, span) = (state.next, self.span(lives.root, Duration::MAX));
        let made = certs::root(&self.settings.domain, number, span)?;
        // Below a root with a shorter path there is no room for it.
        let cross = active.path_len.is_none_or(|length| length >= certs::ROOT_PATH_LEN);
        if cross {
            let (cert, key) = self.disk.read_pair(&self.disk.root_files(active.number))?;
            let span = self.span(lives.root, Duration::from_secs(active.not_after_s));
            let by = Signer::new(&cert, &key)?;
            let pem = certs::cross(&self.settings.domain, number, &made.key, span, &by)?;
            self.disk.write(&self.disk.cross_file(number), pem.as_bytes(), 0o644)?;
        }
        self.disk.write_pair(&self.disk.root_files(number), &made)?;
        state.next += 1;
        state.sequence += 1;
        state.roots.push(Root {
            number,
            made_s: span.made.as_secs(),
            not_after_s: span.until.as_secs(),
            sha256: made.sha256,
            path_len: Some(certs::ROOT_PATH_LEN),
            cross,
            stage: Stage::Staged { issue_at_s: plan::issue_at(&active, &lives, now).as_secs() },
        });
        Ok(())
    }

    fn issue_from_staged(&self, state: &mut State, now: Duration) -> Result<(), AuthorityError> {
        let gone_at_s = plan::gone_at(state, &self.settings.lives, now).as_secs();
        for root in &mut state.roots {
            root.stage = match root.stage {
                Stage::Issuing => Stage::Leaving { gone_at_s },
                Stage::Staged { .. } => Stage::Issuing,
                leaving => leaving,
            };
        }
        // In the same change: there is never a root that issues without a CA to issue with.
        self.renew_issuing(state)
    }

    fn renew_issuing(&self, state: &mut State) -> Result<(), AuthorityError> {
        let Some(root) = state.active().cloned() else { return Ok(()) };
        let (lives, files) = (self.settings.lives, self.disk.root_files(root.number));
        let issuing = if root.path_len == Some(0) {
            Issuing {
                number: root.number,
                root: root.number,
                made_s: root.made_s,
                not_after_s: root.not_after_s,
                leaf_life_s: lives.leaf.as_secs(),
                sha256: root.sha256,
            }
        } else {
            let (cert, key) = self.disk.read_pair(&files)?;
            if certs::digest_of_pem(&cert).as_ref() != Some(&root.sha256) {
                let what = format!("root {}", root.number);
                return Err(AuthorityError::Replaced { path: files.0, what });
            }
            let number = state.next;
            let span = self.span(lives.issuing, Duration::from_secs(root.not_after_s));
            let made = certs::issuing(&self.settings.domain, number, span, &Signer::new(&cert, &key)?)?;
            let issuing = Issuing {
                number,
                root: root.number,
                made_s: span.made.as_secs(),
                not_after_s: span.until.as_secs(),
                leaf_life_s: lives.leaf.as_secs(),
                sha256: made.sha256.clone(),
            };
            self.disk.write_pair(&self.disk.issuing_files(&issuing), &made)?;
            state.next += 1;
            issuing
        };
        state.issuing = Some(issuing);
        Ok(())
    }

    fn renew_leaf(&self, state: &mut State, role: LeafRole) -> Result<(), AuthorityError> {
        let (Some(issuing), Some(spec)) = (&state.issuing, self.settings.leaves.get(&role)) else {
            return Ok(());
        };
        let ca = self.open_issuing(state, issuing)?;
        let span = self.span(self.settings.lives.leaf, ca.not_after());
        let pair = match role {
            LeafRole::Agent => ca.issue_agent(&spec.id, &spec.names, span.until.saturating_sub(span.made))?,
            LeafRole::Gateway => {
                ca.issue_gateway(&spec.id, &spec.names, span.until.saturating_sub(span.made))?
            }
        };
        let not_after = certs::read_pem(pair.cert.as_bytes())
            .map_err(|reason| CaError::Crypto(format!("a leaf of ours can't be read: {reason}")))?
            .not_after;
        let sha256 = certs::digest_of_pem(pair.cert.as_bytes()).unwrap_or_default();
        let made = certs::Made { cert: pair.cert, key: pair.key, sha256: sha256.clone() };
        self.disk.write_pair(&self.disk.leaf_files(role), &made)?;
        let leaf = Leaf {
            root: issuing.root,
            made_s: span.made.as_secs(),
            not_after_s: not_after.as_secs(),
            sha256,
            id: spec.id.to_string(),
            names: spec.names.iter().map(ToString::to_string).collect(),
        };
        state.leaves.insert(role, leaf);
        Ok(())
    }

    /// The issuing CA, with what is sent after each leaf.
    fn open_issuing(&self, state: &State, issuing: &Issuing) -> Result<LocalCa, AuthorityError> {
        let files = self.disk.issuing_files(issuing);
        let (mut cert, key) = self.disk.read_pair(&files)?;
        if certs::digest_of_pem(&cert).as_ref() != Some(&issuing.sha256) {
            let what = format!("issuing CA {}", issuing.number);
            return Err(AuthorityError::Replaced { path: files.0, what });
        }
        let leaf_life = Duration::from_secs(issuing.leaf_life_s);
        if let Some(cross) = self.cross_of(state, issuing, leaf_life)? {
            cert.extend(cross);
        }
        let (domain, clock) = (&self.settings.domain, self.settings.clock.clone());
        let ca = LocalCa::read(&cert, &key, (&files.0, &files.1), Some(domain), clock)?;
        Ok(ca.with_leaf_life(leaf_life))
    }

    /// The issuing CA's root as the root before signed it, for as long as it outlives a leaf.
    fn cross_of(
        &self,
        state: &State,
        issuing: &Issuing,
        leaf_life: Duration,
    ) -> Result<Option<Vec<u8>>, AuthorityError> {
        if issuing.is_root() || !state.root(issuing.root).is_some_and(|root| root.cross) {
            return Ok(None);
        }
        let path = self.disk.cross_file(issuing.root);
        let pem = read_public(&path)?;
        let bad = |reason| CaError::Certificate { path: path.clone(), reason };
        let end = certs::read_pem(&pem).map_err(bad)?.not_after;
        let lasts = end > self.settings.clock.wall() + leaf_life;
        Ok(lasts.then_some(pem))
    }

    fn release(&self, state: &mut State, now: Duration) -> Result<(), AuthorityError> {
        for root in &mut state.roots {
            if let Stage::Staged { issue_at_s } = &mut root.stage {
                *issue_at_s = now.as_secs().min(*issue_at_s);
            }
        }
        self.commit(state)
    }

    fn commit(&self, state: &State) -> Result<(), AuthorityError> {
        let path = self.disk.state_file();
        let text = state.write().map_err(|reason| AuthorityError::State { path: path.clone(), reason })?;
        Ok(self.disk.write(&path, &text, 0o600)?)
    }

    /// The bundle file as the state says, written only if it differs.
    fn derive(&self, state: &State) -> Result<(), AuthorityError> {
        let mut bundle = Vec::new();
        for root in &state.roots {
            let path = self.disk.root_files(root.number).0;
            let pem = read_public(&path)?;
            if certs::digest_of_pem(&pem).as_ref() != Some(&root.sha256) {
                return Err(AuthorityError::Replaced { path, what: format!("root {}", root.number) });
            }
            bundle.extend(pem);
        }
        let path = self.disk.bundle_file();
        if read_public(&path).ok().as_ref() != Some(&bundle) {
            self.disk.write(&path, &bundle, 0o644)?;
        }
        Ok(())
    }

    /// From now, in whole seconds as certificates say it.
    fn span(&self, life: Duration, at_most: Duration) -> Span {
        let made = Duration::from_secs(self.settings.clock.wall().as_secs());
        Span { made, until: (made + Duration::from_secs(life.as_secs())).min(at_most) }
    }
}

#[cfg(test)]
mod tests;
