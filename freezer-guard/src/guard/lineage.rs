//! Where a target lies in its hierarchy: looked up once, and then no path matters any more.

use freezer_guard_abi::CgroupKey;

use super::{Error, restoring::open};
use crate::cgroup::Cgroup;

/// A cgroup, and what is above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) key: CgroupKey,
    /// The cgroups above it, nearest first, the root of the hierarchy included: that needs no
    /// path.
    pub(super) above: Vec<CgroupKey>,
}

impl Lineage {
    pub(super) fn of(cgroup: &Cgroup) -> Result<Self, Error> {
        let above = cgroup.ancestors()?;
        let above = above.iter().map(Cgroup::key).chain([cgroup.root_key()]);
        Ok(Self {
            key: cgroup.key(),
            above: above.collect(),
        })
    }

    pub(super) fn of_all<'a>(
        cgroups: impl IntoIterator<Item = &'a Cgroup>,
    ) -> Result<Vec<Self>, Error> {
        cgroups.into_iter().map(Self::of).collect()
    }

    /// The cgroup and those above it.
    pub(super) fn line(&self) -> impl Iterator<Item = CgroupKey> {
        std::iter::once(self.key).chain(self.above.iter().copied())
    }

    /// `None`: it has gone.
    pub(super) fn of_key(key: CgroupKey) -> Option<Self> {
        Self::of(&open(key)?).ok()
    }

    /// Whether the other is this cgroup or lies below it.
    pub(super) fn is_or_is_above(&self, other: &Self) -> bool {
        self.key == other.key || other.above.contains(&self.key)
    }
}
