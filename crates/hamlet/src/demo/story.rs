//! The story as a table: which steps there are, in which order, and how far a run goes. A failed
//! step ends the story; the last chapter is told anyway.

use std::time::Duration;

use futures::future::LocalBoxFuture;
use hamlet_runtime::{Clock, SystemClock};

use super::page::Page;
use super::steps::{calls, changes, crashes, ending, refusals, setup};
use super::world::{Outcome, World};

/// One step.
struct Step {
    name: &'static str,
    act: for<'a> fn(&'a mut World) -> LocalBoxFuture<'a, Outcome>,
}

macro_rules! steps {
    ($($name:literal => $act:path,)*) => {
        &[$(Step { name: $name, act: |world| Box::pin($act(world)) }),*]
    };
}

/// What `hamlet demo` does before it leaves the meshes to the person who started it.
const BEGINNING: &[Step] = steps![
    "two folders, each with its own CA" => setup::folders,
    "certificates exchanged, peers declared" => setup::peering,
    "workloads, services, publications" => setup::workloads,
    "hamlet validate takes both folders" => setup::validated,
    "two agents, two processes, ready" => setup::agents,
    "both prove that they hold the same set" => setup::synced,
    "names resolve to egress addresses" => calls::names,
    "first call through both gateways" => calls::first_call,
];

/// What `--check` goes on with.
const MIDDLE: &[Step] = steps![
    "call by Host through the HTTP listener" => calls::by_host,
    "forged caller fields are replaced" => calls::forged,
    "a call the other way" => calls::other_way,
    "a new service appears and answers" => changes::new_service,
    "an update arrives" => changes::update,
    "a bad edit is refused, the old one serves" => changes::bad_edit,
    "a withdrawal arrives everywhere" => changes::withdrawal,
    "published again, at the same address" => changes::again,
    "an unpublished service can't be reached" => refusals::unpublished,
    "ingress refuses a stranger's certificate" => refusals::at_ingress,
    "agent refuses a stranger's certificate" => refusals::at_agent,
    "kill -9 of the owner: calls break off" => crashes::in_flight,
    "what it offered stays" => crashes::stays,
    "the owner returns, same set proven" => crashes::owner_returns,
    "withdrawn while the consumer was down" => crashes::swept,
    "kill -9 of the consumer, owner stopped" => crashes::alone,
    "the owner returns again" => crashes::together,
];

/// The end, whatever happened.
const END: &[Step] = steps![
    "SIGTERM stops both in order" => ending::stopped,
    "nothing is left running" => ending::nothing_left,
];

/// Tells the story up to the first call. Returns whether all of it went well.
pub(super) async fn begin(world: &mut World, page: &mut Page) -> bool {
    let mut teller = Teller::new(page, BEGINNING.len());
    teller.tell(BEGINNING, world).await
}

/// Tells the whole story. Returns whether all of it went well.
pub(super) async fn check(world: &mut World, page: &mut Page) -> bool {
    let all = BEGINNING.len() + MIDDLE.len() + END.len();
    let mut teller = Teller::new(page, all);
    let begun = teller.tell(BEGINNING, world).await;
    if begun {
        teller.tell(MIDDLE, world).await;
    } else {
        teller.skip(MIDDLE);
    }
    for step in END {
        teller.tell(std::slice::from_ref(step), world).await;
    }
    let Teller { passed, failed, .. } = teller;
    page.total(passed, failed);
    failed == 0
}

/// Counts and times the steps.
struct Teller<'a> {
    page: &'a mut Page,
    clock: SystemClock,
    all: usize,
    number: usize,
    passed: usize,
    failed: usize,
}

impl<'a> Teller<'a> {
    fn new(page: &'a mut Page, all: usize) -> Teller<'a> {
        page.head();
        Teller { page, clock: SystemClock::new(), all, number: 0, passed: 0, failed: 0 }
    }

    /// Runs steps in order up to the first that fails.
    async fn tell(&mut self, steps: &[Step], world: &mut World) -> bool {
        for (i, step) in steps.iter().enumerate() {
            self.number += 1;
            self.page.begin(self.number, self.all, step.name);
            let since = self.clock.now();
            let outcome = (step.act)(world).await;
            let took: Duration = self.clock.now() - since;
            match outcome {
                Ok(note) => {
                    self.passed += 1;
                    self.page.passed(self.number, step.name, took, &note);
                }
                Err(failed) => {
                    self.failed += 1;
                    self.page.failed(self.number, step.name, took, &failed, &world.logs());
                    self.skip(&steps[i + 1..]);
                    return false;
                }
            }
        }
        true
    }

    fn skip(&mut self, steps: &[Step]) {
        for step in steps {
            self.number += 1;
            self.page.skipped(self.number, step.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_a_name_of_its_own_that_fits_its_column() {
        let mut names: Vec<_> = [BEGINNING, MIDDLE, END].concat_names();
        assert!(names.len() >= 16);
        assert!(names.iter().all(|n| n.len() <= super::super::page::NAME_WIDTH), "{names:?}");
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    trait ConcatNames {
        fn concat_names(&self) -> Vec<&'static str>;
    }

    impl ConcatNames for [&[Step]; 3] {
        fn concat_names(&self) -> Vec<&'static str> {
            self.iter().flat_map(|steps| steps.iter().map(|s| s.name)).collect()
        }
    }
}
