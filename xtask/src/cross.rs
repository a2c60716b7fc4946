//! The compiler for another machine: the one that compiles the BPF programs, with the standard
//! library for that machine and Debian's linker and C library for it. All unpacked, never installed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use crate::{
    cache,
    debian::{Apt, host_release},
    machine::Machine,
    toolchain,
};

/// Raise it when [`fetch`] changes.
const RECIPE: u32 = 2;

/// The package of the standard library.
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";

/// The file with the version of glibc, below [`dir`].
const GLIBC: &str = "glibc";

/// gcc only links, so its compiler is left out. (`libjansson4` is a library of the linker.)
fn packages(machine: &Machine) -> [String; 7] {
    let (gnu, debian) = (machine.libraries.replace('_', "-"), machine.name);
    [
        format!("gcc-12-{gnu}"),
        format!("binutils-{gnu}"),
        "libbinutils".to_owned(),
        "libjansson4".to_owned(),
        format!("libc6-dev-{debian}-cross"),
        format!("libc6-{debian}-cross"),
        format!("libgcc-12-dev-{debian}-cross"),
    ]
}

/// The directory of the linker, the C library and the standard library for this machine.
pub(crate) fn dir(machine: &Machine) -> PathBuf {
    cache::dir().join(format!("cross/{}-{RECIPE}", machine.name))
}

/// Links static programs that the kernel loads at a random address, as rustc does for x86-64 alone.
const MAKE_PIE: &str = r#"for argument; do
    shift
    case $argument in
    -static) argument=-static-pie ;;
    -no-pie) continue ;;
    esac
    set -- "$@" "$argument"
done
"#;

/// The program of the cross toolchain that cargo and cargo-deb call: `gcc`, which links, or `strip`.
fn tool(machine: &Machine, name: &str) -> PathBuf {
    dir(machine).join(name)
}

/// Downloads what this machine needs beside the compiler.
pub(crate) fn fetch(machine: &Machine) -> Result<()> {
    let release = host_release()?;
    let host = Apt::open(&release, Machine::host())?;
    let other = Apt::open(&release, machine)?;
    let usr = dir(machine).join("usr");
    cache::put(&dir(machine), |unfinished| {
        host.unpack(&packages(machine), unfinished)?;
        // Of the very version of the compiler.
        let version = host.version(STANDARD_LIBRARY)?;
        other.unpack(&[format!("{STANDARD_LIBRARY}={version}")], unfinished)?;
        let version = host.version(&format!("libc6-dev-{}-cross", machine.name))?;
        fs::write(unfinished.join(GLIBC), version)?;
        for (name, program, change) in [("gcc", "gcc-12", MAKE_PIE), ("strip", "strip", "")] {
            let text = format!(
                "#!/bin/sh\n\
                 {change}\
                 export LD_LIBRARY_PATH=\"{0}/lib/{1}\"\n\
                 exec \"{0}/bin/{2}-{program}\" \"$@\"\n",
                usr.display(),
                Machine::host().libraries,
                machine.libraries,
            );
            let path = unfinished.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })
}

/// The version of Debian's glibc that programs for this machine are linked with.
pub(crate) fn glibc(machine: &Machine) -> Result<String> {
    let path = dir(machine).join(GLIBC);
    let version = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // That of its source: `2.36-8cross1` is made from 2.36-8.
    let source = version.split("cross").next().unwrap_or_default();
    Ok(source.to_owned())
}

/// Makes cargo compile for this machine.
pub(crate) fn compile_with(cargo: &mut Command, machine: &Machine) -> Result<()> {
    let rustc = toolchain::prebuilt_rustc();
    let target = PathBuf::from("usr/lib/rustlib").join(machine.target);
    let libraries = rustc.with_file_name("").join(&target);
    let wanted = dir(machine).join(&target);
    if fs::read_link(&libraries).ok().as_ref() != Some(&wanted) {
        // Another xtask may do the same now.
        let link = NamedTempFile::new_in(rustc.with_file_name(""))?.into_temp_path();
        fs::remove_file(&link)?;
        symlink(wanted, &link)
            .and_then(|()| fs::rename(&link, &libraries))
            .with_context(|| format!("link {}", libraries.display()))?;
    }
    let target = machine.target.to_uppercase().replace('-', "_");
    let linker = format!("CARGO_TARGET_{target}_LINKER");
    cargo.env("RUSTC", rustc).env(linker, tool(machine, "gcc"));
    Ok(())
}

/// Makes cargo-deb strip programs for this machine.
pub(crate) fn strip_with(cargo_deb: &mut Command, machine: &Machine) {
    let variable = format!("STRIP_{}", machine.target);
    cargo_deb.env(variable, tool(machine, "strip"));
}
