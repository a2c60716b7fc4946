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
        let modifies_return = program.modifies_return(level);
        let kfuncs = self.facts.kfuncs().filter(|_| modifies_return);
        // A kernel may have these functions, and not permit the code between their calls.
        let (first, kfuncs) = match kfuncs.map(|_| load(kfuncs)) {
            Some(Ok(first)) => (first, kfuncs),
            _ => (load(None)?, None),
        };
        let copies = match modifies_return && self.may_preempt {
            true => program.copies(kfuncs.is_some()),
            false => 1,
        };
        let mut first = Some(first);
        // Its own pin last: with it, all are there.
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

    /// Attaches it and then its copies, from their pins, and pins the links.
    ///
    /// # Errors
    /// When it cannot be attached, or some of its copies: [`Error::CopiesNotAttached`].
    pub(super) fn attach(&self, dir: &Path) -> Result<(), Error> {
        let attach = |(program, link): (PathBuf, PathBuf)| {
            let failed = || Error::failed(format!("attach the BPF program {}", self.name));
            let program = sys::open_pin(&program).map_err(failed())?;
            let attached = attach_again(&program).map_err(failed())?;
            pin_at(&attached, &link)
        };
        let is_due = |(program, link): &(PathBuf, PathBuf)| program.exists() && !link.exists();
        let attached = self.pins(dir).filter(is_due).try_for_each(attach);
        attached.map_err(|error| match self.link_pin(dir).exists() {
            true => Error::CopiesNotAttached(self.name, Box::new(error)),
            false => error,
        })
    }

    /// Detaches it and its copies.
    pub(super) fn detach(&self, dir: &Path) -> Result<(), Error> {
        self.pins(dir).try_for_each(|(_, link)| {
            remove_if_there(&link).map_err(Error::failed(format!("remove {}", link.display())))
        })
    }
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
/// program for busy until then (`bpf_trampoline_link_prog`).
fn attach_again(program: &OwnedFd) -> io::Result<OwnedFd> {
    const TIMEOUT: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(2);
    let start = Instant::now();
    loop {
        match sys::attach(program) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < TIMEOUT =>
            {
                sleep(PAUSE);
            }
            attached => return attached,
        }
    }
}
