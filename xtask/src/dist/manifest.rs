//! The parts of freezer-guard/Cargo.toml that all packages share.

use std::fs;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::build::workspace;

/// The licences of the binary, as SPDX has them. It contains other software: THIRD-PARTY-NOTICES lists it.
pub(super) const LICENCE: &str = "(MIT OR Apache-2.0) AND GPL-2.0-only AND LGPL-2.1-or-later";

/// The names and texts of the package.
pub(super) struct Manifest {
    /// One line.
    pub(super) description: String,
    pub(super) extended_description: String,
    /// A name and a mail address.
    pub(super) maintainer: String,
}

#[derive(Deserialize)]
struct File {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    description: String,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    deb: Deb,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Deb {
    maintainer: String,
    extended_description: String,
}

impl Manifest {
    pub(super) fn read() -> Result<Self> {
        let path = workspace().join("freezer-guard/Cargo.toml");
        let text = fs::read_to_string(&path).context("read freezer-guard/Cargo.toml")?;
        let File { package } = toml::from_str(&text).context("parse freezer-guard/Cargo.toml")?;
        let deb = package.metadata.deb;
        Ok(Self {
            description: package.description,
            extended_description: deb.extended_description + "\n",
            maintainer: deb.maintainer,
        })
    }
}
