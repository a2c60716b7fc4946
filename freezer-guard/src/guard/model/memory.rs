//! A store and freezers in memory, as one task sees them: it may die at each access, and
//! something else may happen before it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
};

use freezer_guard_abi::{
    AncestorKey, CgroupKey, GuardEntry, GuardId, Intruder, IntruderKey, Member, control::Operation,
};

use super::world::{Task, World};
use crate::{
    cgroup,
    guard::{freezer::Freezer, lineage::Lineage, store::GuardStore},
    kernel::{self, Map},
};

/// A change of the world in the middle of a writer's work.
pub(super) type Event = Box<dyn FnOnce(&mut World)>;

/// The kernel as one task sees it, which may die and be overtaken at each step.
pub(super) struct Host {
    world: RefCell<World>,
    task: Task,
    steps: Cell<u32>,
    dies_at: Option<u32>,
    event: RefCell<Option<(u32, Event)>>,
}

impl Host {
    /// Counts a step. The one at which the task dies is not done.
    fn step(&self) -> Result<(), kernel::Error> {
        self.steps.set(self.steps.get() + 1);
        let step = self.steps.get();
        if self
            .event
            .borrow()
            .as_ref()
            .is_some_and(|(at, _)| *at == step)
            && let Some((_, event)) = self.event.take()
        {
            event(&mut self.world.borrow_mut());
        }
        match self.dies_at {
            Some(last) if step >= last => Err(kernel::Error::NotAttached("the caller has died")),
            _ => Ok(()),
        }
    }
}

/// A map in memory.
struct Memory<K, V> {
    host: Rc<Host>,
    map: fn(&mut World) -> &mut BTreeMap<K, V>,
}

impl<K: Ord + Clone, V: Clone> Memory<K, V> {
    fn with<T>(&self, use_it: impl FnOnce(&mut BTreeMap<K, V>) -> T) -> Result<T, kernel::Error> {
        self.host.step()?;
        Ok(use_it((self.map)(&mut self.host.world.borrow_mut())))
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> for Memory<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, kernel::Error> {
        self.with(|map| map.get(key).cloned())
    }

    fn entries(&self) -> Result<Vec<(K, V)>, kernel::Error> {
        self.with(|map| map.clone().into_iter().collect())
    }

    fn find(&self, is_meant: &dyn Fn(&K, &V) -> bool) -> Result<Option<(K, V)>, kernel::Error> {
        self.with(|map| {
            map.clone()
                .into_iter()
                .find(|(key, value)| is_meant(key, value))
        })
    }

    fn put(&self, key: K, value: V) -> Result<(), kernel::Error> {
        self.with(|map| map.insert(key, value)).map(drop)
    }

    fn add(&self, key: K, value: V) -> Result<bool, kernel::Error> {
        self.with(|map| {
            let is_new = !map.contains_key(&key);
            map.entry(key).or_insert(value);
            is_new
        })
    }

    fn remove(&self, key: &K) -> Result<(), kernel::Error> {
        self.with(|map| map.remove(key)).map(drop)
    }
}

/// A map that stays empty: the model leaves intruders out.
struct Nothing;

impl Map<IntruderKey, Intruder> for Nothing {
    fn get(&self, _: &IntruderKey) -> Result<Option<Intruder>, kernel::Error> {
        Ok(None)
    }

    fn entries(&self) -> Result<Vec<(IntruderKey, Intruder)>, kernel::Error> {
        Ok(Vec::new())
    }

    fn find(
        &self,
        _: &dyn Fn(&IntruderKey, &Intruder) -> bool,
    ) -> Result<Option<(IntruderKey, Intruder)>, kernel::Error> {
        Ok(None)
    }

    fn put(&self, _: IntruderKey, _: Intruder) -> Result<(), kernel::Error> {
        Ok(())
    }

    fn add(&self, _: IntruderKey, _: Intruder) -> Result<bool, kernel::Error> {
        Ok(true)
    }

    fn remove(&self, _: &IntruderKey) -> Result<(), kernel::Error> {
        Ok(())
    }
}

/// The kernel's side of guards in memory, as one task sees it.
pub(super) struct MemoryStore {
    host: Rc<Host>,
    guards: Memory<GuardId, GuardEntry>,
    targets: Memory<CgroupKey, GuardId>,
    ancestors: Memory<AncestorKey, GuardId>,
    ended: Memory<GuardId, GuardEntry>,
}

impl MemoryStore {
    /// `dies_at`: the step at which the task dies. `event`: what happens before which step.
    pub(super) fn new(
        world: World,
        task: Task,
        dies_at: Option<u32>,
        event: Option<(u32, Event)>,
    ) -> Self {
        let host = Rc::new(Host {
            world: RefCell::new(world),
            task,
            steps: Cell::new(0),
            dies_at,
            event: RefCell::new(event),
        });
        fn memory<K, V>(
            host: &Rc<Host>,
            map: fn(&mut World) -> &mut BTreeMap<K, V>,
        ) -> Memory<K, V> {
            let host = Rc::clone(host);
            Memory { host, map }
        }
        Self {
            guards: memory(&host, |world| &mut world.guards),
            targets: memory(&host, |world| &mut world.targets),
            ancestors: memory(&host, |world| &mut world.ancestors),
            ended: memory(&host, |world| &mut world.ended),
            host,
        }
    }

    /// The freezer of a cgroup.
    pub(super) fn freezer(&self, cgroup: Lineage) -> MemoryFreezer {
        let host = Rc::clone(&self.host);
        MemoryFreezer { host, cgroup }
    }

    /// How many steps were done.
    pub(super) fn steps(&self) -> u32 {
        self.host.steps.get()
    }

    pub(super) fn into_world(self) -> World {
        self.host.world.take()
    }
}

impl GuardStore for MemoryStore {
    fn guards(&self) -> &dyn Map<GuardId, GuardEntry> {
        &self.guards
    }

    fn targets(&self) -> &dyn Map<CgroupKey, GuardId> {
        &self.targets
    }

    fn ancestors(&self) -> &dyn Map<AncestorKey, GuardId> {
        &self.ancestors
    }

    fn intruders(&self) -> &dyn Map<IntruderKey, Intruder> {
        &Nothing
    }

    fn violators(&self) -> &dyn Map<IntruderKey, Intruder> {
        &Nothing
    }

    fn ended(&self) -> &dyn Map<GuardId, GuardEntry> {
        &self.ended
    }

    fn members(&self, guard: Option<GuardId>) -> Result<Vec<Member>, kernel::Error> {
        self.host.step()?;
        let world = self.host.world.borrow();
        let members = world.members.iter();
        let members = members.map(|(task, guard)| Member {
            guard: *guard,
            pid: *task,
            tid: *task,
        });
        Ok(members
            .filter(|member| guard.is_none_or(|guard| member.guard == guard))
            .collect())
    }

    fn missed(&self) -> Result<u64, kernel::Error> {
        Ok(0)
    }

    fn set_asked_for(&self, entry: GuardEntry) -> Result<(), kernel::Error> {
        self.host.step()?;
        self.host.world.borrow_mut().asked_for = Some(entry);
        Ok(())
    }

    fn run(
        &self,
        operation: Operation,
        guard: GuardId,
        more: &[u64],
    ) -> Result<u32, kernel::Error> {
        self.host.step()?;
        let mut world = self.host.world.borrow_mut();
        Ok(world.operate(self.host.task, operation, guard, more))
    }

    fn name(&self, _: CgroupKey) -> PathBuf {
        PathBuf::new()
    }

    fn wait_for_programs(&self) -> Result<(), kernel::Error> {
        Ok(())
    }

    fn daemon_runs(&self) -> bool {
        self.host.world.borrow().daemon_runs
    }
}

/// A freezer in memory.
pub(super) struct MemoryFreezer {
    host: Rc<Host>,
    cgroup: Lineage,
}

impl MemoryFreezer {
    fn write(&self, freeze: bool) -> Result<(), cgroup::Error> {
        self.step()?;
        let mut world = self.host.world.borrow_mut();
        if !world.permits(self.host.task, &self.cgroup) {
            return Err(failed(libc::EBUSY));
        }
        world.write(self.host.task, &self.cgroup, freeze);
        Ok(())
    }

    fn step(&self) -> Result<(), cgroup::Error> {
        self.host.step().map_err(|_| failed(libc::ESRCH))
    }
}

fn failed(errno: i32) -> cgroup::Error {
    cgroup::Error::Io {
        operation: "write",
        path: "a freezer".into(),
        source: std::io::Error::from_raw_os_error(errno),
    }
}

impl Freezer for MemoryFreezer {
    fn key(&self) -> CgroupKey {
        self.cgroup.key
    }

    fn is_self_frozen(&self) -> Result<bool, cgroup::Error> {
        self.step()?;
        let world = self.host.world.borrow();
        Ok(world.frozen.contains(&self.cgroup.key.kernfs_id))
    }

    fn freeze(&self) -> Result<(), cgroup::Error> {
        self.write(true)
    }

    fn thaw(&self) -> Result<(), cgroup::Error> {
        self.write(false)
    }

    fn has_tasks(&self) -> Result<bool, cgroup::Error> {
        Ok(true)
    }
}
