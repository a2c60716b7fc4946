//! KVM, which not every machine has, and which some have but cannot boot a guest with.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use crate::cache;

/// The note that KVM is broken, which holds until the next boot of this machine.
fn note() -> PathBuf {
    cache::dir().join("kvm-is-broken")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Returns whether a guest may start with KVM.
pub(crate) fn may_work() -> bool {
    let usable = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    usable && !fs::read_to_string(note()).is_ok_and(|id| id == boot_id())
}

/// Remembers that no guest starts with KVM.
pub(crate) fn remember_it_is_broken() -> Result<()> {
    let path = note();
    fs::write(&path, boot_id()).with_context(|| format!("write {}", path.display()))
}
