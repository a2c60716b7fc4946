//! freezer-guard: while a cgroup is being checkpointed, nobody but the
//! checkpointer freezes, thaws or otherwise disturbs it.
//!
//! [`guard`] is the state machine, [`cgroup`] knows the cgroup file systems,
//! [`kernel`] knows BPF. See `ARCHITECTURE.md`.

pub mod cgroup;
pub mod guard;
pub mod kernel;
mod sys;

pub use sys::{unblock_in_child, watch_signals};
