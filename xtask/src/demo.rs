//! `cargo xtask demo`: a real dump by a real CRIU, an intruder, and a restore.
//!
//! `demo.sh` runs in the guest. It decides what the demo shows, and checks it.

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    build::{self, Profile},
    config::{Cgroup, Image},
    kernel::{self, Kernel},
    pictures,
    setup::{self, Needs},
    terminal::Recording,
    vm::Vm,
};

/// The path of the script in the guest.
const SCRIPT: &str = "/guest/demo.sh";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show the same dump without a guard: CRIU hangs
    #[arg(long)]
    without_guard: bool,
    /// Boot this kernel
    #[arg(long, default_value = "6.12", value_parser = kernel::names())]
    kernel: String,
    /// Mount cgroups in this layout: v1, v2 or hybrid
    #[arg(long, default_value = "v2")]
    cgroup: Cgroup,
    /// Also record the demo, and draw docs/pictures/demo.svg from the recording
    #[arg(long, conflicts_with = "without_guard")]
    record: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let kernel = Kernel::named(&args.kernel)?;
    let needs = Needs::guests([(kernel, Image::Initramfs)]);
    let programs = setup::guest_programs(&needs, |_| Profile::Dev)?;
    eprintln!(
        "booting a guest: Linux {}, cgroup {} …",
        args.kernel,
        args.cgroup.name()
    );
    let start = Instant::now();
    let guard = match args.without_guard {
        true => "without-guard",
        false => "with-guard",
    };
    let command = ["bash", SCRIPT, args.cgroup.name(), guard].map(str::to_owned);
    let mut vm = Vm::new(
        &args.kernel,
        args.cgroup,
        Image::Initramfs,
        command.to_vec(),
    );
    vm.copies.push((
        build::workspace().join("xtask/src/demo.sh"),
        SCRIPT.to_owned(),
    ));
    let mut recording = Recording::default();
    let code = vm.boot(&programs, |line| {
        println!("{line}");
        recording.push(start.elapsed(), line);
    })?;
    eprintln!("the guest ran for {} s", start.elapsed().as_secs());
    if args.record {
        ensure!(
            code == 0,
            "the demo has failed: its picture stays as it was"
        );
        recording.save(&build::workspace().join(pictures::RECORDING))?;
        pictures::draw()?;
    }
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}
