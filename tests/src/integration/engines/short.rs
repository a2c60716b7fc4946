//! The short test of each change: for each engine, under the service, a checkpoint that is
//! disturbed, and a restore. A daemon that thaws after CRIU's answer also has to leave a
//! container running.

use anyhow::{Context as _, Result};

use super::{
    super::cgroups::Hierarchy,
    Way,
    attempt::Trouble,
    engine::{Ending, Engine},
    life::Life,
    trouble::disturb,
};

pub(super) fn of(engine: &'static dyn Engine, hierarchy: Hierarchy) -> Result<()> {
    if !engine.can_checkpoint()? {
        return Ok(());
    }
    Way::Automatic.prepare()?;
    let life = Life::begin(engine, hierarchy, Way::Automatic)?;
    if engine.daemon().is_some() && engine.ending() == Ending::Restorable {
        life.left_running()?;
    }
    // Without a guard, either of them hangs CRIU.
    let trouble = match life.container.units()? {
        Some(_) => Trouble::FreezeScope,
        None => Trouble::Pause,
    };
    disturb(&life.container, Way::Automatic, trouble)?.context("it was not disturbed")?;
    Ok(())
}
