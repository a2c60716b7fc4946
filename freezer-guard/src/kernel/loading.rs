//! Programs on their way into the kernel and onto their hooks.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_attach_type::BPF_TRACE_ITER, bpf_prog_type::BPF_PROG_TYPE_TRACING};
use freezer_guard_abi::{Level, LogLevel};

use super::{
    Error,
    btf::Facts,
    code::Code,
    prerequisites,
    programs::{ITERATOR, Program},
};
use crate::sys::{self, Attachment};

/// What programs are loaded with.
pub(super) struct Loader {
    pub(super) facts: Facts,
    pub(super) code: Code,
    may_preempt: bool,
}

impl Loader {
    pub(super) fn new(dir: &Path, log: LogLevel) -> Result<Self, Error> {
        let facts = Facts::of_kernel()?;
        let code = Code::new(&facts, dir, log)?;
        Ok(Self {
            facts,
            code,
            may_preempt: prerequisites::may_preempt(),
        })
    }

    /// Loads a program and its copies for this level, and pins them.
    pub(super) fn load(&self, program: &Program, level: Level, dir: &Path) -> Result<(), Error> {
        let attachment = program.attachment(level, &self.facts)?;
        let load = |kfuncs| self.code.load(program.name, attachment, kfuncs);
        let has_copies = program.modifies_return(level) && self.may_preempt;
        let kfuncs = self.facts.kfuncs().filter(|_| has_copies);
        // A kernel may have these functions, and not permit what the program does between them.
        let (first, kfuncs) = match kfuncs.map(|_| load(kfuncs)) {
            Some(Ok(first)) => (first, kfuncs),
            _ => (load(None)?, None),
        };
        let copies = match has_copies {
            true => program.copies(kfuncs.is_some()),
            false => 1,
        };
        let mut first = Some(first);
        let pins = program.pins(dir).map(|(pin, _)| pin);
        pins.take(copies).rev().try_for_each(|pin| {
            if pin.exists() {
                return Ok(());
            }
            let loaded = first.take().map_or_else(|| load(kfuncs), Ok)?;
            pin_at(&loaded, &pin)
        })
    }
}

/// Loads a program that lists tasks whenever its pin is read.
pub(super) fn load_iterator(
    name: &'static str,
    code: &Code,
    facts: &Facts,
    dir: &Path,
) -> Result<(), Error> {
    let program = code.load(
        name,
        Attachment {
            program_type: BPF_PROG_TYPE_TRACING,
            attach_type: BPF_TRACE_ITER,
            target: facts.target(ITERATOR).ok_or_else(|| Error::NoHook {
                program: name,
                function: ITERATOR.to_owned(),
            })?,
        },
        None,
    )?;
    let path = dir.join(name);
    sys::attach_iterator(&program)
        .map_err(Error::failed(format!("attach the BPF iterator {name}")))
        .and_then(|link| pin_at(&link, &path))
}

impl Program {
    /// Where it goes on this kernel.
    pub(super) fn attachment(&self, level: Level, facts: &Facts) -> Result<Attachment, Error> {
        if let Some(field) = self.needs() {
            facts.expect(field)?;
        }
        let (program_type, attach_type) = self.types(level);
        let function = self.target(level);
        match facts.target(&function) {
            Some(target) => Ok(Attachment {
                program_type,
                attach_type,
                target,
            }),
            None => Err(Error::NoHook {
                program: self.name,
                function,
            }),
        }
    }

    /// Attaches it and its copies, from their pins, and pins the links.
    ///
    /// # Errors
    /// When it cannot be attached, or not with all copies: then without any.
    pub(super) fn attach(&self, dir: &Path) -> Result<(), Error> {
        let attach = |(program, link): (PathBuf, PathBuf)| {
            let failed = || Error::failed(format!("attach the BPF program {}", self.name));
            let program = sys::open_pin(&program).map_err(failed())?;
            let attached = attach_again(&program).map_err(failed())?;
            pin_at(&attached, &link)
        };
        let is_due = |(program, link): &(PathBuf, PathBuf)| program.exists() && !link.exists();
        let copies = self.pins(dir).skip(1).filter(is_due).try_for_each(attach);
        if copies.is_err() {
            // It stays attached, if it is: another guard may be in force.
            remove_links(self.pins(dir).skip(1))?;
        }
        self.pins(dir).take(1).filter(is_due).try_for_each(attach)?;
        copies
    }

    /// Detaches it and its copies.
    pub(super) fn detach(&self, dir: &Path) -> Result<(), Error> {
        remove_links(self.pins(dir))
    }
}

fn remove_links(pins: impl Iterator<Item = (PathBuf, PathBuf)>) -> Result<(), Error> {
    let mut links = pins.map(|(_, link)| link);
    links.try_for_each(|link| {
        remove_if_there(&link).map_err(Error::failed(format!("remove {}", link.display())))
    })
}

fn pin_at(object: &OwnedFd, path: &Path) -> Result<(), Error> {
    sys::pin(object, path).map_err(Error::failed(format!("pin {}", path.display())))
}

/// Removes a pin, if there is one.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Attaches a program that may have been detached just now. The kernel detaches in the
/// background, some milliseconds after the link's pin is gone (`bpf_link_put`), and takes a
/// program for busy, and its room for taken, until then (`bpf_trampoline_link_prog`).
fn attach_again(program: &OwnedFd) -> io::Result<OwnedFd> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    const NO_ROOM: Duration = Duration::from_millis(200);
    const PAUSE: Duration = Duration::from_millis(2);
    let patience = |error: &io::Error| match error.kind() {
        io::ErrorKind::ResourceBusy => TIMEOUT,
        io::ErrorKind::ArgumentListTooLong => NO_ROOM,
        _ => Duration::ZERO,
    };
    let start = Instant::now();
    loop {
        match sys::attach(program) {
            Err(error) if start.elapsed() < patience(&error) => sleep(PAUSE),
            attached => return attached,
        }
    }
}
