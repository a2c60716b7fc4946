//! A game of holders, a daemon, an unguarded checkpointer and an intruder, in any order. Each
//! move calls the product's own functions on a kernel in memory.

use freezer_guard_abi::{CgroupKey, GuardId};

use super::{
    holder::{Holder, Outcome, Phase},
    memory::{Event, MemoryStore},
    world::{Task, World, cgroup},
};
use crate::guard::automatic::take_ended_of;

/// The threads of others than holders.
pub(super) const DAEMON: Task = 1;
pub(super) const CHECKPOINTER: Task = 2;
pub(super) const INTRUDER: Task = 3;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Situation {
    pub(super) world: World,
    pub(super) holders: Vec<Holder>,
    /// The intruder's write that was permitted and has no effect yet.
    in_flight: Option<(u64, bool)>,
    /// How many more writes the intruder tries.
    attempts_left: u8,
    has_intruder: bool,
    /// Whether a checkpointer may still come; it writes one freezer.
    checkpointer: Checkpointer,
    next_id: GuardId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Checkpointer {
    Never,
    ToCome,
    Runs,
    Gone,
}

/// A death or an event in the middle of one step of a user-space writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Twist {
    None,
    /// It dies before this access of the kernel.
    Dies(u32),
    /// Before this access, something else happens.
    Meanwhile(u32, Meanwhile),
}

/// An event in the middle of a step. The kernel does not wait for our lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Meanwhile {
    /// The intruder's write has its effect.
    IntruderWrites,
    /// The checkpointer freezes this cgroup.
    CheckpointerFreezes(u64),
    /// This holder dies.
    Dies(usize),
}

/// A move of the game.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Move {
    /// A holder goes one step further.
    Step(usize, Twist),
    /// It ends its guard, however far that is.
    End(usize, Twist),
    Die(usize),
    /// The daemon reads what became of guards.
    Tidy(Twist),
    /// The daemon ends, or begins.
    DaemonTurns,
    IntruderAsks(u64, bool),
    IntruderWrites,
    CheckpointerComes,
    CheckpointerWrites(u64, bool),
    CheckpointerDies,
}

pub(super) fn task(holder: usize) -> Task {
    10 + holder as Task
}

impl Situation {
    /// With holders of these cgroups, which lie in one line down to `depth`.
    pub(super) fn new(targets: &[u64], attempts: u8, checkpointer: bool) -> Self {
        Self {
            world: World::default(),
            holders: targets.iter().copied().map(Holder::new).collect(),
            in_flight: None,
            attempts_left: attempts,
            has_intruder: attempts > 0,
            checkpointer: match checkpointer {
                true => Checkpointer::ToCome,
                false => Checkpointer::Never,
            },
            next_id: 1,
        }
    }

    /// Whether one holder came to its end like this.
    pub(super) fn is_over_with(&self, outcome: Outcome) -> bool {
        let mut holders = self.holders.iter();
        holders.any(|holder| holder.phase == Phase::Over(outcome))
    }

    /// Whether anybody but a holder has a hand in freezers.
    pub(super) fn is_meddled_with(&self) -> bool {
        self.has_intruder || self.checkpointer != Checkpointer::Never
    }

    /// The cgroups that are played with.
    fn cgroups(&self) -> impl Iterator<Item = u64> {
        let deepest = self.holders.iter().map(|holder| holder.number).max();
        2..=deepest.unwrap_or(1)
    }

    /// Returns all moves without twists.
    pub(super) fn plain_moves(&self) -> Vec<Move> {
        let mut moves = vec![Move::Tidy(Twist::None), Move::DaemonTurns];
        for (number, holder) in self.holders.iter().enumerate() {
            if !holder.is_over() {
                moves.push(Move::Step(number, Twist::None));
            }
            if holder.holds() {
                moves.extend([Move::End(number, Twist::None), Move::Die(number)]);
            }
        }
        match self.in_flight {
            Some(_) => moves.push(Move::IntruderWrites),
            None if self.attempts_left > 0 => {
                for cgroup in self.cgroups() {
                    moves.extend([true, false].map(|freeze| Move::IntruderAsks(cgroup, freeze)));
                }
            }
            None => {}
        }
        match self.checkpointer {
            Checkpointer::ToCome => moves.push(Move::CheckpointerComes),
            Checkpointer::Runs => {
                moves.push(Move::CheckpointerDies);
                for cgroup in self.cgroups() {
                    let write = |freeze| Move::CheckpointerWrites(cgroup, freeze);
                    moves.extend([true, false].map(write));
                }
            }
            Checkpointer::Never | Checkpointer::Gone => {}
        }
        moves
    }

    /// Returns all moves.
    pub(super) fn moves(&self) -> Vec<Move> {
        let mut moves = self.plain_moves();
        let mut twisted = Vec::new();
        for plain in &moves {
            let actor = match plain {
                Move::Step(holder, _) | Move::End(holder, _) => Some(*holder),
                Move::Tidy(_) if self.world.daemon_runs => None,
                _ => continue,
            };
            let (_, steps) = self.after_counted(*plain);
            for step in 1..=steps {
                let mut twists = vec![Twist::Dies(step)];
                let events = self.meanwhile(actor).into_iter();
                twists.extend(events.map(|event| Twist::Meanwhile(step, event)));
                twisted.extend(twists.into_iter().map(|twist| match plain {
                    Move::Step(holder, _) => Move::Step(*holder, twist),
                    Move::End(holder, _) => Move::End(*holder, twist),
                    _ => Move::Tidy(twist),
                }));
            }
        }
        moves.extend(twisted);
        moves
    }

    fn meanwhile(&self, actor: Option<usize>) -> Vec<Meanwhile> {
        let mut events = Vec::new();
        if self.in_flight.is_some() {
            events.push(Meanwhile::IntruderWrites);
        }
        if self.checkpointer == Checkpointer::Runs {
            events.extend(self.cgroups().map(Meanwhile::CheckpointerFreezes));
        }
        for (number, holder) in self.holders.iter().enumerate() {
            if Some(number) != actor && holder.holds() {
                events.push(Meanwhile::Dies(number));
            }
        }
        events
    }

    /// The situation after a move.
    pub(super) fn after(&self, played: Move) -> Self {
        self.after_counted(played).0
    }

    /// The same, with how often a writer has accessed the kernel.
    fn after_counted(&self, played: Move) -> (Self, u32) {
        let mut after = self.clone();
        let steps = after.play(played);
        let changes = std::mem::take(&mut after.world.changes);
        for (number, holder) in after.holders.iter_mut().enumerate() {
            let was = &self.holders[number];
            let writes = matches!(played, Move::Step(..) | Move::End(..));
            holder.forgotten |= writes && holder.is_over() && !self.world.daemon_runs;
            let own = cgroup(holder.number);
            let concerns =
                |changed: u64| changed >= holder.number || own.above.contains(&cgroup(changed).key);
            // A change after the end of a guard does it no harm.
            let others = |(by, changed): &(Task, u64)| *by != task(number) && concerns(*changed);
            if was.is_checkpointing() && !holder.is_over() {
                holder.touched |= changes.iter().any(others);
            }
        }
        (after, steps)
    }

    fn play(&mut self, played: Move) -> u32 {
        match played {
            Move::Step(holder, twist) => self.step(holder, twist, false),
            Move::End(holder, twist) => self.step(holder, twist, true),
            Move::Die(holder) => {
                self.die(holder);
                0
            }
            Move::Tidy(twist) => self.tidy(twist),
            Move::DaemonTurns => {
                self.world.daemon_runs = !self.world.daemon_runs;
                0
            }
            Move::IntruderAsks(number, freeze) => {
                self.attempts_left -= 1;
                if self.world.permits(INTRUDER, &cgroup(number)) {
                    self.in_flight = Some((number, freeze));
                }
                0
            }
            Move::IntruderWrites => {
                self.happen(Meanwhile::IntruderWrites);
                0
            }
            Move::CheckpointerComes => {
                self.checkpointer = Checkpointer::Runs;
                self.world.execute_checkpointer(CHECKPOINTER, self.next_id);
                self.next_id += 1;
                0
            }
            Move::CheckpointerWrites(number, freeze) => {
                if self.world.permits(CHECKPOINTER, &cgroup(number)) {
                    self.world.write(CHECKPOINTER, &cgroup(number), freeze);
                }
                0
            }
            Move::CheckpointerDies => {
                self.checkpointer = Checkpointer::Gone;
                self.world.leave(CHECKPOINTER);
                0
            }
        }
    }

    fn die(&mut self, holder: usize) {
        self.world.leave(task(holder));
        self.holders[holder].phase = Phase::Over(Outcome::Dead);
    }

    /// Applies an event to everything but the world, and returns its effect on the world, which
    /// comes later.
    fn happen(&mut self, event: Meanwhile) {
        let change = self.begin_event(event);
        change(&mut self.world);
    }

    fn begin_event(&mut self, event: Meanwhile) -> Event {
        match event {
            Meanwhile::IntruderWrites => {
                let write = self.in_flight.take();
                Box::new(move |world| {
                    if let Some((number, freeze)) = write {
                        world.write(INTRUDER, &cgroup(number), freeze);
                    }
                })
            }
            Meanwhile::CheckpointerFreezes(number) => Box::new(move |world| {
                if world.permits(CHECKPOINTER, &cgroup(number)) {
                    world.write(CHECKPOINTER, &cgroup(number), true);
                }
            }),
            Meanwhile::Dies(holder) => {
                self.holders[holder].phase = Phase::Over(Outcome::Dead);
                Box::new(move |world| world.leave(task(holder)))
            }
        }
    }

    /// The kernel as a task sees it during one step.
    fn store(&mut self, task: Task, twist: Twist) -> MemoryStore {
        let world = std::mem::take(&mut self.world);
        match twist {
            Twist::None => MemoryStore::new(world, task, None, None),
            Twist::Dies(step) => MemoryStore::new(world, task, Some(step), None),
            Twist::Meanwhile(step, event) => {
                let event = self.begin_event(event);
                MemoryStore::new(world, task, None, Some((step, event)))
            }
        }
    }

    fn step(&mut self, number: usize, twist: Twist, ends: bool) -> u32 {
        let store = self.store(task(number), twist);
        let holder = &mut self.holders[number];
        if holder.phase == Phase::Idle {
            holder.id = self.next_id;
            self.next_id += 1;
        }
        let phase = holder.step(&store, ends);
        let steps = store.steps();
        self.world = store.into_world();
        let holder = &mut self.holders[number];
        holder.phase = phase;
        if matches!(phase, Phase::Over(Outcome::Good)) && twist == Twist::None {
            let is_frozen = self.world.frozen.contains(&holder.number);
            holder.restored = holder.found.is_none_or(|found| found == is_frozen);
        }
        match twist {
            Twist::Dies(_) => self.die(number),
            _ if holder.is_over() => self.world.leave(task(number)),
            _ => {}
        }
        steps
    }

    /// Lets the daemon take the records of ended guards.
    fn tidy(&mut self, twist: Twist) -> u32 {
        if !self.world.daemon_runs {
            return 0;
        }
        let store = self.store(DAEMON, twist);
        // The daemon logs an error.
        let freezer = |key: CgroupKey| Some(store.freezer(cgroup(key.kernfs_id)));
        let _ = take_ended_of(&store, &freezer);
        let steps = store.steps();
        self.world = store.into_world();
        if matches!(twist, Twist::Dies(_)) {
            self.world.daemon_runs = false;
        }
        steps
    }
}

/// Returns the situation after a daemon has tidied up.
pub(super) fn tidied(situation: &Situation) -> Situation {
    let mut with_daemon = situation.clone();
    with_daemon.world.daemon_runs = true;
    with_daemon.after(Move::Tidy(Twist::None))
}
