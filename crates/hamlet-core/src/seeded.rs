//! Seeded bugs: known mistakes, switched in at run time, by which the simulation shows that it
//! would find them (extensions text, section 11).
//!
//! Without the feature `seeded-bugs` there is no switch: [`is_on`] is `false` at compile time and
//! nothing of this is in the program. With it the switch is a thread's own, so that simulations
//! can run beside each other. The same feature lets a simulation with a dozen services compare them
//! as finely as a hundred thousand ([`least_level`]).

macro_rules! bugs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $breaks:literal;)*) => {
        /// One known mistake.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum SeededBug {
            $($(#[$doc])* $variant,)*
        }

        impl SeededBug {
            /// All of them, in the order of the text.
            pub const ALL: &[SeededBug] = &[$(SeededBug::$variant,)*];

            /// Its name on a command line.
            pub fn name(self) -> &'static str {
                match self { $(SeededBug::$variant => $name,)* }
            }

            /// The invariants it breaks, as the text names them; for people, the checker doesn't look.
            pub fn breaks(self) -> &'static str {
                match self { $(SeededBug::$variant => $breaks,)* }
            }
        }
    };
}

bugs! {
    /// 1: the consumer drops what doesn't fit its inbox.
    DropOnOverflow = "drop-on-overflow", "I8";
    /// 2: a consumer that is behind keeps changes from the others.
    StopAtFirstFailing = "stop-at-first-failing", "I10";
    /// 3: answers leave before the commit.
    AckBeforeDurable = "ack-before-durable", "I2";
    /// 4: the loss of the peer withdraws its imports.
    WipeOnDisconnect = "wipe-on-disconnect", "I5";
    /// 5: an owner whose sources are unread says that its empty set is whole.
    EmptyBookmark = "empty-bookmark", "I5";
    /// 6: what a round didn't repeat stays.
    NeverSweep = "never-sweep", "I3";
    /// 7: a pass brings the cursor to the head at its end, not at its beginning.
    CursorToHead = "cursor-to-head", "I8";
    /// 8: equality is found at one version, the cursor set at a later one.
    EqualThenCursor = "equal-then-cursor", "I8, P1";
    /// 9: tombstones are forgotten before a cursor passed them.
    TombstonePurged = "tombstone-purged", "I3";
    /// 10: the bookmark goes after the pass, before the tail.
    BookmarkBeforeTail = "bookmark-before-tail", "I5";
    /// 11: only what is admitted counts as repeated.
    MarkOnlyAdmitted = "mark-only-admitted", "I6";
    /// 12: marks of an older stream count on the next.
    MarksSurvive = "marks-survive", "I3";
    /// 13: a round over some buckets sweeps all.
    SweepOutsideScope = "sweep-outside-scope", "I5";
    /// 14: a round on a live stream moves the cursor to the head.
    LiveRoundMovesCursor = "live-round-moves-cursor", "I8";
    /// 15: a policy change gives a new view to a cursor of the old one.
    ViewSwap = "view-swap", "I3, T13";
    /// 16: the leaf is kept although the entry could not be.
    LeafOutsideTransaction = "leaf-outside-transaction", "P1";
    /// 17: the digest is a sum of leaves.
    XorDigest = "xor-digest", "P1";
    /// 18: the leaf is taken after names were changed.
    LeafAfterAlias = "leaf-after-alias", "P1";
    /// 19: what the guard withholds counts as heard.
    WithheldCounted = "withheld-counted", "P1";
    /// 20: a refusal removes the version in force.
    NackRemovesOld = "nack-removes-old", "I6";
    /// 21: what could not be kept counts as heard.
    UnavailableHeard = "unavailable-heard", "I3";
    /// 22: what is offered again is the refused version, not the latest.
    ReofferStored = "reoffer-stored", "I1";
    /// 23: a replaced stream still writes.
    OldStreamWrites = "old-stream-writes", "P4, I1";
    /// 24: a replica that is behind speaks as if it were not.
    LaggingReplica = "lagging-replica", "I1";
    /// 25: the reader waits until its answers are written.
    ReaderWaitsForWriter = "reader-waits-for-writer", "P3";
    /// 26: delivery in the order of versions.
    VersionOrder = "version-order", "P2";
    /// 27: the guard counts each round for itself.
    GuardPerRound = "guard-per-round", "I5";
    /// 28: the hold time runs by the wall clock.
    HoldOnWallClock = "hold-on-wall-clock", "I5";
    /// 29: a restart says that it leaves for good.
    RestartLeaves = "restart-leaves", "I5";
    /// 30: the byte quota looks at new keys only.
    QuotaBypass = "quota-bypass", "I7";
    /// 31: the deadline for answers runs while our reader is paused.
    DeadlineWhilePaused = "deadline-while-paused", "I10";
    /// 34: a foreign peer is sent an extension message.
    ControlToForeign = "control-to-foreign", "crash of the peer";
    /// 35: an acknowledgement without a status.
    AckWithoutStatus = "ack-without-status", "crash of the peer";
    /// 36, younger than the text: each step of a fresh round moves the cursor, not the first alone.
    EachStepMovesCursor = "each-step-moves-cursor", "I8";
}

#[cfg(feature = "seeded-bugs")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<SeededBug>> = const { std::cell::Cell::new(None) };
    static LEAST_LEVEL: std::cell::Cell<u32> = const { std::cell::Cell::new(1) };
}

/// Whether a seeded bug is switched in on this thread.
#[cfg(feature = "seeded-bugs")]
pub fn is_on(bug: SeededBug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Never: this program has no seeded bugs.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub fn is_on(_bug: SeededBug) -> bool {
    false
}

/// Switches one bug in on this thread, or all of them off.
#[cfg(feature = "seeded-bugs")]
pub fn switch(bug: Option<SeededBug>) {
    ACTIVE.set(bug);
}

/// The number of the coarsest level of the digest at which a comparison may end: 1 but for
/// simulations, whose sets are small.
#[cfg(feature = "seeded-bugs")]
pub fn least_level() -> u32 {
    LEAST_LEVEL.get()
}

/// The number of the coarsest level of the digest at which a comparison may end.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub fn least_level() -> u32 {
    1
}

/// Makes comparisons on this thread go down to this level of the digest at least.
#[cfg(feature = "seeded-bugs")]
pub fn compare_down_to(level: u32) {
    LEAST_LEVEL.set(level);
}
