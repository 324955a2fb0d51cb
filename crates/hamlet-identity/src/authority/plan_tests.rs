//! The plan's laws, on states that only the plan changes: no files, no certificates.

use hamlet_core::TrustDomain;
use proptest::prelude::*;

use super::super::state::{Issuing, Stage};
use super::*;

const START: Duration = Duration::from_secs(1_700_000_000);

fn wanted() -> BTreeMap<LeafRole, Wanted> {
    let one = |role: LeafRole| (role, Wanted { id: format!("spiffe://a/{role}"), names: Vec::new() });
    LeafRole::ALL.into_iter().map(one).collect()
}

/// A world of one authority: its state, and steps done as the real one does them.
struct Model {
    state: State,
    lives: Lives,
    now: Duration,
}

impl Model {
    fn new(lives: Lives) -> Model {
        let root = Root {
            number: 1,
            made_s: START.as_secs(),
            not_after_s: (START + lives.root).as_secs(),
            sha256: "1".into(),
            path_len: Some(2),
            cross: false,
            stage: Stage::Issuing,
        };
        let state = State::new(&TrustDomain::parse("a.example").unwrap(), root);
        let mut model = Model { state, lives, now: START };
        model.rest(true);
        model
    }

    /// Does what is due, and that it ends.
    fn rest(&mut self, settled: bool) -> Vec<Step> {
        let mut done = Vec::new();
        while let Some(planned) = due(&self.state, &self.lives, &wanted(), self.now, settled, &[]) {
            assert!(done.len() < 12, "no rest: {done:?} then {planned:?} in {:#?}", self.state);
            self.perform(planned.step);
            done.push(planned.step);
            self.check();
        }
        done
    }

    fn number(&mut self) -> u64 {
        self.state.next += 1;
        self.state.next - 1
    }

    fn perform(&mut self, step: Step) {
        let (now, now_s) = (self.now, self.now.as_secs());
        match step {
            Step::StageRoot => {
                let issue_at_s = issue_at(self.state.active().unwrap(), &self.lives, now).as_secs();
                let (number, stage) = (self.number(), Stage::Staged { issue_at_s });
                let not_after_s = now_s + self.lives.root.as_secs();
                let (made_s, sha256) = (now_s, number.to_string());
                self.state.roots.push(Root {
                    number,
                    made_s,
                    not_after_s,
                    sha256,
                    path_len: Some(2),
                    cross: true,
                    stage,
                });
            }
            Step::IssueFromStaged => {
                let gone_at_s = gone_at(&self.state, &self.lives, now).as_secs();
                for root in &mut self.state.roots {
                    root.stage = match root.stage {
                        Stage::Issuing => Stage::Leaving { gone_at_s },
                        Stage::Staged { .. } => Stage::Issuing,
                        other => other,
                    };
                }
                self.perform(Step::RenewIssuing);
            }
            Step::RenewIssuing => {
                let number = self.number();
                let root = self.state.active().unwrap();
                let not_after_s = (now_s + self.lives.issuing.as_secs()).min(root.not_after_s);
                let (leaf_life_s, sha256) = (self.lives.leaf.as_secs(), number.to_string());
                let root = root.number;
                self.state.issuing =
                    Some(Issuing { number, root, made_s: now_s, not_after_s, leaf_life_s, sha256 });
            }
            Step::RenewLeaf(role) => {
                let sha256 = self.number().to_string();
                let issuing = self.state.issuing.as_ref().unwrap();
                let not_after_s = (now_s + self.lives.leaf.as_secs()).min(issuing.not_after_s);
                let Wanted { id, names } = wanted().remove(&role).unwrap();
                let leaf = Leaf { root: issuing.root, made_s: now_s, not_after_s, sha256, id, names };
                self.state.leaves.insert(role, leaf);
            }
            Step::DropRoot(number) => self.state.roots.retain(|root| root.number != number),
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        State::read(&self.state.write().unwrap()).unwrap();
        assert!(self.state.roots.len() <= ROOTS_MAX);
        for leaf in self.state.leaves.values() {
            assert!(self.state.root(leaf.root).is_some(), "a leaf's root is in the bundle");
        }
    }

    fn leaves_live(&self) -> bool {
        self.state.leaves.values().all(|leaf| secs(leaf.not_after_s) > self.now)
    }
}

fn short() -> Lives {
    let s = Duration::from_secs;
    Lives { leaf: s(12), issuing: s(60), root: s(600), overlap: s(30) }
}

#[test]
fn a_leaf_is_renewed_in_the_tenth_of_its_life_before_two_thirds_and_not_sooner() {
    let mut model = Model::new(Lives::default());
    let (made, life) = (START, LEAF_LIFE);
    model.now = made + life * 2 / 3 - life / 10 - Duration::from_secs(1);
    assert_eq!(model.rest(true), []);
    model.now = made + life * 2 / 3;
    let renewed = LeafRole::ALL.map(Step::RenewLeaf);
    assert_eq!(model.rest(true), renewed);
    assert_eq!(model.rest(true), [], "once");
    let spread: Vec<Duration> =
        (0..200).map(|n| renew_at(made, made + life, &format!("{n:064x}")) - made).collect();
    let (least, most) = (*spread.iter().min().unwrap(), *spread.iter().max().unwrap());
    assert!(least >= life * 2 / 3 - life / 10 && most <= life * 2 / 3);
    assert!(most - least > life / 20, "the jitter spreads them: {least:?} to {most:?}");
    assert_eq!(renew_at(made, made + life, "x"), renew_at(made, made + life, "x"));
}

#[test]
fn a_rotation_goes_through_its_stages_at_their_times_and_comes_to_rest_in_each() {
    let mut model = Model::new(Lives::default());
    model.perform(Step::StageRoot);
    model.check();
    assert_eq!(model.rest(true), []);
    model.now += OVERLAP - Duration::from_secs(1);
    let steps = model.rest(true);
    assert!(!steps.contains(&Step::IssueFromStaged), "{steps:?}");
    assert!(model.state.leaves.values().all(|leaf| leaf.root == 1));
    model.now += Duration::from_secs(1);
    let leaves = LeafRole::ALL.map(Step::RenewLeaf);
    assert_eq!(model.rest(true), [&[Step::IssueFromStaged][..], &leaves[..]].concat());
    assert_eq!(model.state.roots.len(), 2, "the old one is in the bundle for its leaves");
    model.now += LEAF_LIFE - Duration::from_secs(1);
    assert!(!model.rest(true).contains(&Step::DropRoot(1)));
    model.now += Duration::from_secs(1);
    assert!(model.rest(true).contains(&Step::DropRoot(1)));
    assert_eq!(model.state.roots.iter().map(|r| r.number).collect::<Vec<_>>().len(), 1);
}

#[test]
fn roots_rotate_by_themselves_for_decades_of_restarts_without_a_moment_without_a_leaf() {
    // Roots of a year: ten years of them are a century of the default ones.
    let lives = Lives { root: DAY * 365, ..Lives::default() };
    let mut model = Model::new(lives);
    let (mut rotations, end) = (0, START + lives.root * 10);
    while model.now < end {
        model.now += LEAF_LIFE / 4;
        assert!(model.leaves_live());
        rotations += model.rest(true).iter().filter(|s| **s == Step::IssueFromStaged).count();
        assert!(model.leaves_live());
    }
    assert!((13..=16).contains(&rotations), "{rotations}");
}

#[test]
fn nothing_that_is_there_changes_while_the_clock_cant_be_believed() {
    let mut model = Model::new(Lives::default());
    model.perform(Step::StageRoot);
    let before = model.state.clone();
    for jump in [ROOT_LIFE * 2, OVERLAP, DAY] {
        model.now = START + jump;
        assert_eq!(model.rest(false), []);
        model.now = START.saturating_sub(jump);
        assert_eq!(model.rest(false), []);
    }
    assert_eq!(model.state, before);
    // What isn't there at all is made: an agent without a leaf proves nothing.
    model.state.leaves.remove(&LeafRole::Agent);
    assert_eq!(model.rest(false), [Step::RenewLeaf(LeafRole::Agent)]);
}

#[test]
fn a_clock_that_was_ahead_is_made_good_when_it_goes_back() {
    let mut model = Model::new(Lives::default());
    model.now = START + DAY * 40;
    assert!(model.rest(true).contains(&Step::RenewIssuing));
    model.now = START + DAY;
    let steps = model.rest(true);
    assert_eq!(steps[0], Step::RenewIssuing);
    assert_eq!(steps[1..], LeafRole::ALL.map(Step::RenewLeaf));
    assert!(model.state.leaves.values().all(|leaf| secs(leaf.made_s) <= model.now));
}

#[test]
fn a_step_of_the_clock_is_told_from_time_that_passed() {
    let (s, mut watch) = (Duration::from_secs, ClockWatch::default());
    assert!(watch.look(s(0), s(10_000)));
    assert!(watch.look(s(86_400), s(96_400)), "a long sleep is no step");
    assert!(watch.look(s(86_410), s(96_410) + CLOCK_STEP), "nor is a correction");
    for wall in [200_000, 1_000] {
        let mut stepped = ClockWatch::default();
        assert!(stepped.look(s(0), s(96_410)));
        assert!(!stepped.look(s(10), s(wall)), "a step to {wall}");
        assert!(!stepped.look(s(69), s(wall + 59)));
        assert!(stepped.look(s(70), s(wall + 60)), "believed after {CLOCK_SETTLES:?}");
        assert!(!stepped.look(s(80), s(96_490)), "and back is a step too");
    }
}

#[test]
fn lives_that_leave_no_room_are_refused_and_their_neighbours_accepted() {
    let s = Duration::from_secs;
    let good = short();
    for (bad, near) in [
        (Lives { leaf: s(2), ..good }, Lives { leaf: s(3), ..good }),
        (Lives { issuing: s(35), ..good }, Lives { issuing: s(36), ..good }),
        (Lives { root: s(179), ..good }, Lives { root: s(180), ..good }),
        (Lives { overlap: s(101), ..good }, Lives { overlap: s(100), ..good }),
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
        assert_eq!(near.check(), Ok(()));
    }
    assert_eq!(Lives::default().check(), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any time passes, forwards and backwards, with lives that change and rotations in between.
    #[test]
    fn whatever_the_clock_does_the_plan_comes_to_rest_and_a_leafs_root_is_in_the_bundle(
        moves in proptest::collection::vec((0u8..5, 0u64..40_000_000), 1..40),
    ) {
        let mut model = Model::new(short());
        for (kind, amount) in moves {
            match kind {
                0 => model.now += Duration::from_secs(amount % 30),
                1 => model.now += Duration::from_secs(amount),
                2 => model.now = model.now.saturating_sub(Duration::from_secs(amount)).max(START / 2),
                3 if model.state.staged().is_none() && model.state.roots.len() < ROOTS_MAX => {
                    model.perform(Step::StageRoot);
                }
                _ => model.lives = if amount % 2 == 0 { short() } else { Lives::default() },
            }
            model.rest(true);
            prop_assert!(model.leaves_live(), "{:#?} at {:?}", model.state, model.now);
        }
    }
}
