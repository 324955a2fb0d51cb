//! The run: change, kill, start again, prove; and what became of it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hamlet_admin::api::{List, Origin, PeerStatus, Proof, ServiceStatus};
use hamlet_admin::client::ClientError;
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_store::{CheckState, Store};
use hamlet_testkit::chaos::ChaosProxy;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::Model;
use super::process::AgentProcess;
use super::setup::{CONSUMER, OWNER, Way, folders, moment};
use crate::report::{Table, Tally, say};

/// Both sides must prove the same set within this.
const PROOF_DEADLINE: Duration = Duration::from_secs(30);
/// Sets that differ although both sides say they are proven must still do so after this: the
/// two sides are not asked in the same instant.
const WRONG_AFTER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(10);
/// What takes longer than this is told: the project's goal for healing.
const SLOW: Duration = Duration::from_secs(5);
/// So many of a hundred kills wait for messages in flight.
const AIMED: u32 = 80;
/// So often a new burst is tried when the last one was through too soon.
const BURSTS: usize = 4;
/// So far into a burst, at most, the first attempt kills; in milliseconds. Within a round trip of
/// the line's, most of the time.
const LATEST_MS: u64 = 60;
/// So many of a hundred kills lose what is under way on the line, as a machine that dies does.
const LINE_LOST: u32 = 50;
/// So long a burst may take to begin.
const BURST_BEGINS: Duration = Duration::from_secs(2);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Owner,
    Consumer,
}

/// One kill.
#[derive(Debug)]
struct Kill {
    side: Side,
    /// The owner waited for an answer when it was last asked, right before the kill.
    in_flight: bool,
    /// What was under way on the line was lost, too.
    line_lost: bool,
    /// An owner's kill left the consumer with another set than the folder's.
    cut_short: bool,
    /// Keys that stood only in the journal of the one that was killed.
    journaled: usize,
    /// From the start of the killed one until both sides had proven the same set.
    took: Duration,
}

/// What the admin APIs say.
enum Look {
    /// Not proven yet; why.
    Unproven(String),
    /// Both sides say that they hold the same set, but it isn't the folder's.
    Wrong(String),
    /// Proven and right.
    Good,
}

struct Chaos {
    owner: AgentProcess,
    consumer: AgentProcess,
    /// Each carries the connections to one of the two.
    lines: [ChaosProxy; 2],
    /// Of the lines.
    _tasks: Supervisor,
    model: Model,
    rng: StdRng,
    clock: SystemClock,
    kills: u32,
    in_flight: u32,
    proofs: u64,
    wrong: u64,
}

/// Runs all of it; whether all is good.
pub(super) async fn chaos(program: &Path, above: &Path, kills: u32, seed: u64) -> anyhow::Result<bool> {
    let tasks = Supervisor::new(Shutdown::new());
    let (owners, consumers) = (Way::new(&tasks.spawner()).await?, Way::new(&tasks.spawner()).await?);
    folders(above, &owners, &consumers)?;
    let lines = [owners.line, consumers.line];
    let owner = AgentProcess::new(program, above, OWNER);
    let consumer = AgentProcess::new(program, above, CONSUMER);
    let model = Model::new(owner.folder().to_owned());
    let (rng, clock) = (StdRng::seed_from_u64(seed), SystemClock::new());
    let (in_flight, proofs, wrong) = (0, 0, 0);
    let mut chaos = Chaos {
        owner,
        consumer,
        lines,
        _tasks: tasks,
        model,
        rng,
        clock,
        kills: 0,
        in_flight,
        proofs,
        wrong,
    };
    let mut tally = Tally::default();

    chaos.model.change(200, &mut chaos.rng);
    chaos.model.write()?;
    chaos.owner.start().await?;
    chaos.consumer.start().await?;
    let mut proof = chaos.prove().await;
    tally.check(proof.is_ok(), &format!("before the first kill: {}", told(&proof)));
    let mut done: Vec<Kill> = Vec::new();
    while proof.is_ok() && done.len() < kills as usize {
        let kill;
        (kill, proof) = chaos.kill().await?;
        let number = done.len() + 1;
        if kill.took >= SLOW {
            say(&format!(
                "slow: {:.1} s to proof after kill {number} ({:?})",
                kill.took.as_secs_f64(),
                kill.side
            ));
        }
        done.push(kill);
        tally.check(proof.is_ok(), &format!("after kill {number}: {}", told(&proof)));
        if number.is_multiple_of(20) {
            say(&format!("{number} kills, {} in flight", done.iter().filter(|k| k.in_flight).count()));
        }
    }
    chaos.finish(&done, &mut tally).await;
    Ok(tally.finish())
}

fn told(proof: &Result<(), String>) -> &str {
    proof.as_ref().err().map_or("", String::as_str)
}

impl Chaos {
    fn agent(&mut self, side: Side) -> &mut AgentProcess {
        match side {
            Side::Owner => &mut self.owner,
            Side::Consumer => &mut self.consumer,
        }
    }

    /// Changes services, writes them, and has a running owner take them.
    async fn change(&mut self, count: usize) -> anyhow::Result<()> {
        self.model.change(count, &mut self.rng);
        self.model.write()?;
        if self.owner.is_up() {
            self.owner.client.reload().await.context("the owner refuses its folder")?;
        }
        Ok(())
    }

    /// Whether the owner waits for an answer of the consumer.
    async fn in_flight(&self) -> Result<bool, ClientError> {
        let peer: PeerStatus = self.owner.client.one(CONSUMER).await?;
        Ok(peer.publish.is_some_and(|p| p.in_flight > 0))
    }

    /// Waits until messages are in flight, then a random moment of the burst.
    async fn aim(&mut self) -> anyhow::Result<bool> {
        for attempt in 0..BURSTS {
            let burst = self.rng.random_range(150..=300);
            self.change(burst).await?;
            let begun = self.clock.now();
            while !self.in_flight().await? && self.clock.now() - begun < BURST_BEGINS {}
            // Nearer to its begin when the last one was through too soon.
            tokio::time::sleep(moment(&mut self.rng, LATEST_MS >> attempt)).await;
            if self.in_flight().await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One kill, the start after it, and what both sides prove then.
    async fn kill(&mut self) -> anyhow::Result<(Kill, Result<(), String>)> {
        let side = if self.rng.random_bool(0.5) { Side::Owner } else { Side::Consumer };
        // By luck alone too few may hit: then the next one aims as well.
        let behind = self.in_flight * 2 < self.kills + 1;
        let in_flight = if self.rng.random_ratio(AIMED, 100) || behind {
            self.aim().await?
        } else {
            let some = self.rng.random_range(0..30);
            self.change(some).await?;
            tokio::time::sleep(moment(&mut self.rng, 60)).await;
            self.in_flight().await?
        };
        self.agent(side).kill()?;
        let line_lost = self.rng.random_ratio(LINE_LOST, 100);
        if line_lost {
            self.lines.iter().for_each(ChaosProxy::reset);
        }
        self.kills += 1;
        self.in_flight += u32::from(in_flight);
        // Before the restart, which would set it aside and ask the other side for what is missing.
        let kept = self.kept(side);
        let cut_short = side == Side::Owner && in_flight && {
            let held = self.held().await?;
            self.model.difference(&held).is_some()
        };
        // Changes, deletions among them, while one of the two is away.
        if self.rng.random_bool(0.4) {
            let some = self.rng.random_range(1..60);
            self.change(some).await?;
        }
        let started = self.clock.now();
        self.agent(side).start().await?;
        // And changes that meet the first exchange after it.
        if self.rng.random_bool(0.25) {
            let some = self.rng.random_range(1..60);
            self.change(some).await?;
        }
        let proof = self.prove().await;
        let took = self.clock.now() - started;
        let whole = self.restarted_whole(side).await?;
        let journaled = kept.clone().unwrap_or_default();
        let proof = proof.and(kept.map(drop)).and(whole);
        Ok((Kill { side, in_flight, line_lost, cut_short, journaled, took }, proof))
    }

    /// Looks at the store that a kill left behind: nothing of it may be damaged. How many keys
    /// stand only in its journal.
    fn kept(&mut self, side: Side) -> Result<usize, String> {
        match Store::check(&self.agent(side).data()).map(|report| report.state) {
            Ok(CheckState::Sound { journaled, journal_damage: None, damage: None, .. }) => Ok(journaled),
            other => Err(format!("the store that the {side:?} left isn't sound: {other:?}")),
        }
    }

    /// The killed one's own word: its store is healthy, and nothing was set aside when it started.
    async fn restarted_whole(&mut self, side: Side) -> Result<Result<(), String>, ClientError> {
        let store = self.agent(side).client.agent().await?.store;
        Ok(match store.message {
            None if store.healthy => Ok(()),
            message => Err(format!("the store of the {side:?} after its restart: {message:?}")),
        })
    }

    /// The consumer's imports.
    async fn held(&self) -> Result<Vec<ServiceStatus>, ClientError> {
        let List { items, .. } = self.consumer.client.list::<ServiceStatus>().await?;
        Ok(items.into_iter().filter(|s| matches!(s.origin, Origin::Imported { .. })).collect())
    }

    async fn look(&self) -> Result<Look, ClientError> {
        let wanted = self.model.len() as u64;
        let owner: PeerStatus = self.owner.client.one(CONSUMER).await?;
        let consumer: PeerStatus = self.consumer.client.one(OWNER).await?;
        let unproven = || Look::Unproven(format!("owner: {}; consumer: {}", owner.state, consumer.state));
        let (Some(publish), Some(import)) = (&owner.publish, &consumer.import) else { return Ok(unproven()) };
        let equal = |p: &Proof| matches!(p, Proof::Equal { .. });
        if !equal(&publish.proof) || !equal(&import.proof) || publish.in_flight > 0 {
            return Ok(unproven());
        }
        Ok(match self.model.difference(&self.held().await?) {
            Some(difference) => Look::Wrong(difference),
            None if publish.offered != wanted => {
                Look::Wrong(format!("{} offered, not {wanted}", publish.offered))
            }
            None => Look::Good,
        })
    }

    /// Waits until both sides have proven the same set, and compares it with the folder.
    async fn prove(&mut self) -> Result<(), String> {
        let begun = self.clock.now();
        let mut wrong_since = None;
        loop {
            self.owner.must_run().and_then(|()| self.consumer.must_run()).map_err(|e| format!("{e:#}"))?;
            let look = self.look().await.unwrap_or_else(|error| Look::Unproven(error.to_string()));
            let now = self.clock.now();
            match look {
                Look::Good => {
                    self.proofs += 1;
                    return Ok(());
                }
                Look::Wrong(difference) if now - *wrong_since.get_or_insert(now) >= WRONG_AFTER => {
                    self.wrong += 1;
                    return Err(format!("both sides have proven a wrong set: {difference}"));
                }
                Look::Wrong(_) => {}
                Look::Unproven(why) => {
                    wrong_since = None;
                    if now - begun >= PROOF_DEADLINE {
                        let logs = format!("{}\n--\n{}", self.owner.tail(), self.consumer.tail());
                        return Err(format!("no proof after {PROOF_DEADLINE:?}: {why}\n{logs}"));
                    }
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops both in order, looks at their stores, and prints the table.
    async fn finish(&mut self, kills: &[Kill], tally: &mut Tally) {
        let wanted = self.model.len();
        for agent in [&mut self.consumer, &mut self.owner] {
            let stopped = agent.stop().await;
            tally.check(stopped.is_ok(), &format!("both stop in order: {stopped:?}"));
        }
        let kept = Store::check(&self.consumer.data()).map(|report| report.state);
        let sound = matches!(&kept, Ok(CheckState::Sound { records, journal_damage: None, damage: None, .. })
            if records.values().sum::<usize>() == wanted);
        tally.check(sound, &format!("the consumer's store is sound and holds {wanted} records: {kept:?}"));
        let in_flight = kills.iter().filter(|k| k.in_flight).count();
        let enough =
            format!("at least half of the kills hit messages in flight: {in_flight} of {}", kills.len());
        tally.check(in_flight * 2 >= kills.len(), &enough);
        self.print(kills);
    }

    fn print(&self, kills: &[Kill]) {
        let headings = [
            "killed",
            "kills",
            "in flight",
            "line lost",
            "cut short",
            "in journal",
            "to proof: median",
            "p99",
            "longest",
        ];
        let mut table = Table::new(&headings);
        for (name, side) in [(OWNER, Some(Side::Owner)), (CONSUMER, Some(Side::Consumer)), ("both", None)] {
            let of: Vec<&Kill> = kills.iter().filter(|k| side.is_none_or(|s| s == k.side)).collect();
            let mut took: Vec<Duration> = of.iter().map(|k| k.took).collect();
            took.sort();
            let at = |share: f64| {
                let index = (took.len() as f64 * share) as usize;
                took.get(index.min(took.len().saturating_sub(1))).copied().unwrap_or_default()
            };
            let seconds = |d: Duration| format!("{:.2} s", d.as_secs_f64());
            let count = |f: fn(&Kill) -> bool| of.iter().filter(|k| f(k)).count().to_string();
            let cut_short =
                if side == Some(Side::Consumer) { "-".to_owned() } else { count(|k| k.cut_short) };
            table.row(vec![
                name.to_owned(),
                of.len().to_string(),
                count(|k| k.in_flight),
                count(|k| k.line_lost),
                cut_short,
                count(|k| k.journaled > 0),
                seconds(at(0.5)),
                seconds(at(0.99)),
                seconds(took.last().copied().unwrap_or_default()),
            ]);
        }
        table.print();
        let c = self.model.changes;
        say(&format!(
            "{} created, {} updated, {} deleted; {} services at the end; {} proofs, {} wrong sets; {:.0} s",
            c.created,
            c.updated,
            c.deleted,
            self.model.len(),
            self.proofs,
            self.wrong,
            self.clock.now().as_secs_f64()
        ));
    }
}
