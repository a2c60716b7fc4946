//! The service with another configuration.

use std::fs;

use anyhow::Result;

use super::service::{CONFIG, systemctl};

/// A configuration of the service, until this is dropped.
pub(super) struct Configured(String);

impl Configured {
    pub(super) fn new(text: &str) -> Result<Self> {
        let configured = Self(fs::read_to_string(CONFIG)?);
        fs::write(CONFIG, text)?;
        systemctl(&["reload", "freezer-guard"])?.expect(0)?;
        Ok(configured)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = fs::write(CONFIG, &self.0);
        let _ = systemctl(&["reload", "freezer-guard"]);
    }
}
