//! The state machine of guards on a laptop: the product's own functions, on a kernel in memory,
//! in every order that matters.
//!
//! `stateright` visits every situation that two holders, a daemon, an intruder and a
//! checkpointer can come to, with a death or an event in the middle of each step;
//! `proptest` plays longer games at random.
//!
//! **What the model leaves out.** Signals, moves and ptrace; several targets of one guard and
//! several hierarchies; users and their superiors; names of cgroups; the lock (user-space writers
//! are one at a time by construction); more than one event in the middle of one step; what loads
//! and attaches programs. The kernel's side is `world`, written by hand from the BPF programs:
//! that these do the same is for the tests in guests to show.

mod cases;
mod holder;
mod machine;
mod memory;
mod world;

use freezer_guard_abi::{AncestorKey, GuardEntry, GuardId};
use proptest::prelude::*;
use stateright::{Checker as _, Model, Property};

use self::{
    holder::{Holder, Outcome, Phase},
    machine::{DAEMON, INTRUDER, Move, Situation, Twist, task, tidied},
    world::cgroup,
};

/// **Never two guards in one line** of cgroups.
fn never_two_in_a_line(now: &Situation) -> bool {
    let in_force = || {
        let targets = now.world.targets.iter();
        targets.filter(|(_, id)| now.world.in_force(**id).is_some())
    };
    in_force().all(|(key, id)| {
        let above = cgroup(key.kernfs_id).above;
        in_force().all(|(other, other_id)| id == other_id || !above.contains(other))
    })
}

/// **No guard without a living holder**: what is in force has members, each an actor that lives.
fn every_guard_has_a_holder(now: &Situation) -> bool {
    let world = &now.world;
    let is_held = |id| world.members.values().any(|of| of == id);
    let dead = |holder: usize| world.members.contains_key(&task(holder));
    let is_over = |holder: &Holder| matches!(holder.phase, Phase::Over(_));
    let mut holders = now.holders.iter().enumerate();
    world.guards.keys().all(is_held)
        && holders.all(|(number, holder)| !is_over(holder) || !dead(number))
}

/// **Marks of the living are never missing**: a guard that has begun covers all of its line.
fn the_living_are_marked(now: &Situation) -> bool {
    let world = &now.world;
    let is_marked = |id: GuardId, number: u64| {
        let line = cgroup(number);
        let has = |cgroup, guard| {
            let key = AncestorKey::new(cgroup, guard);
            world.ancestors.contains_key(&key)
        };
        let mut above = line.above.iter();
        world.targets.get(&line.key) == Some(&id)
            && above.all(|key| has(*key, id) && has(*key, AncestorKey::ANY))
    };
    let begun = now.holders.iter().filter(|holder| holder.holds());
    let of_holders = begun.map(|holder| (holder.id, holder.number));
    let automatic = world.guards.iter().filter(|(_, entry)| {
        // That of a checkpointer which has frozen something.
        entry.is_automatic() && !entry.is_candidate()
    });
    let automatic = automatic.map(|(id, entry)| (*id, entry.target.kernfs_id));
    let mut all = of_holders.chain(automatic);
    all.all(|(id, number)| world.in_force(id).is_none() || is_marked(id, number))
}

/// **No denial without a living holder, once reconciled**: nothing of the dead is left.
fn nothing_of_the_dead_is_left(now: &Situation) -> bool {
    let world = tidied(now).world;
    let lives = |id: &u64| world.in_force(*id).is_some();
    // The service finds the cgroups to thaw by these targets.
    let waits = |id: &u64| world.ended.contains_key(id);
    // The mark for any guard says where to look, and nothing more.
    let is_marked_for_the_living = world.targets.values().all(|id| lives(id) || waits(id))
        && world
            .ancestors
            .iter()
            .all(|(key, id)| lives(id) || key.guard == AncestorKey::ANY);
    let is_held_up = |entry: &GuardEntry| !world.permits(DAEMON, &cgroup(entry.target.kernfs_id));
    let nobody_holds = world.guards.is_empty();
    is_marked_for_the_living
        // One that is frozen still is thawed when nobody else guards it.
        && world.ended.values().all(is_held_up)
        && (!nobody_holds || (2..=4).all(|number| world.permits(INTRUDER, &cgroup(number))))
}

/// **Success only if undisturbed.**
fn success_only_if_undisturbed(now: &Situation) -> bool {
    let mut holders = now.holders.iter();
    holders.all(|holder| holder.phase != Phase::Over(Outcome::Good) || !holder.touched)
}

/// **The state that was found is restored**, or an error says that it is not.
fn success_only_if_restored(now: &Situation) -> bool {
    let mut holders = now.holders.iter();
    holders.all(|holder| holder.phase != Phase::Over(Outcome::Good) || holder.restored)
}

/// **Nothing stays frozen for the dead**, while a daemon runs and nobody else has a hand in it.
fn nothing_stays_frozen_for_the_dead(now: &Situation) -> bool {
    let after = tidied(now);
    let mut holders = after.holders.iter();
    holders.all(|holder| {
        holder.phase != Phase::Over(Outcome::Dead)
            || holder.found != Some(false)
            || holder.forgotten
            || after.is_meddled_with()
            || !after.world.frozen.contains(&holder.number)
            || !after.world.permits(DAEMON, &cgroup(holder.number))
    })
}

type Invariant = fn(&Situation) -> bool;

const INVARIANTS: [(&str, Invariant); 7] = [
    ("never two guards in a line", never_two_in_a_line),
    ("every guard has a holder", every_guard_has_a_holder),
    ("marks of the living are there", the_living_are_marked),
    ("nothing of the dead is left", nothing_of_the_dead_is_left),
    ("success only if undisturbed", success_only_if_undisturbed),
    ("success only if restored", success_only_if_restored),
    (
        "nothing stays frozen for the dead",
        nothing_stays_frozen_for_the_dead,
    ),
];

/// A game that is played to its end in every way.
#[derive(Clone)]
struct Game(Situation);

impl Model for Game {
    type State = Situation;
    type Action = Move;

    fn init_states(&self) -> Vec<Situation> {
        vec![self.0.clone()]
    }

    fn actions(&self, now: &Situation, moves: &mut Vec<Move>) {
        moves.extend(now.moves());
    }

    fn next_state(&self, now: &Situation, played: Move) -> Option<Situation> {
        Some(now.after(played))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds<const N: usize>(_: &Game, now: &Situation) -> bool {
            (INVARIANTS[N].1)(now)
        }
        let reaches = |name, condition| Property::<Self>::sometimes(name, condition);
        vec![
            Property::always(INVARIANTS[0].0, holds::<0>),
            Property::always(INVARIANTS[1].0, holds::<1>),
            Property::always(INVARIANTS[2].0, holds::<2>),
            Property::always(INVARIANTS[3].0, holds::<3>),
            Property::always(INVARIANTS[4].0, holds::<4>),
            Property::always(INVARIANTS[5].0, holds::<5>),
            Property::always(INVARIANTS[6].0, holds::<6>),
            reaches("a holder succeeds", |_, now| {
                now.is_over_with(Outcome::Good)
            }),
        ]
    }
}

fn play_all(name: &str, start: Situation) {
    let begun = std::time::Instant::now();
    let checker = Game(start).checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} situations, {} moves, in {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        begun.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

#[test]
fn two_holders_of_one_line() {
    play_all("two holders of one line", Situation::new(&[2, 3], 0, false));
}

#[test]
fn a_holder_and_an_intruder() {
    play_all("a holder and an intruder", Situation::new(&[3], 2, false));
}

#[test]
fn a_holder_and_a_checkpointer() {
    play_all("a holder and a checkpointer", Situation::new(&[3], 0, true));
}

#[test]
fn what_the_dead_have_left_and_a_checkpointer() {
    let start = Situation::new(&[2, 3], 0, true);
    let begun = start.after(Move::Step(1, Twist::None));
    let name = "what the dead have left, a holder, and a checkpointer";
    play_all(name, begun.after(Move::Die(1)));
}

proptest! {
    #[test]
    fn long_games(choices in proptest::collection::vec(any::<u16>(), 1..80)) {
        let mut now = Situation::new(&[2, 3, 3, 4], 4, true);
        let mut played = Vec::new();
        for choice in choices {
            let moves = now.moves();
            let next = moves[usize::from(choice) % moves.len()];
            played.push(next);
            now = now.after(next);
            for (name, holds) in INVARIANTS {
                prop_assert!(holds(&now), "{name}, after {played:?}: {now:?}");
            }
        }
    }
}
