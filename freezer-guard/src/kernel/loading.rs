//! Programs on their way into the kernel and onto their hooks.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_attach_type::BPF_TRACE_ITER, bpf_prog_type::BPF_PROG_TYPE_TRACING};
use freezer_guard_abi::{Level, LogLevel};

use super::{
    Error,
    btf::Facts,
    code::Code,
    programs::{ITERATOR, Program},
};
use crate::sys::{self, Attachment};

/// What programs are loaded with.
pub(super) struct Loader {
    pub(super) facts: Facts,
    pub(super) code: Code,
}

impl Loader {
    pub(super) fn new(dir: &Path, log: LogLevel) -> Result<Self, Error> {
        let facts = Facts::of_kernel()?;
        let code = Code::new(&facts, dir, log)?;
        Ok(Self { facts, code })
    }

    pub(super) fn load(&self, program: &Program, level: Level, dir: &Path) -> Result<(), Error> {
        program.load(level, &self.code, &self.facts, dir)
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
    )?;
    let path = dir.join(name);
    sys::attach_iterator(&program)
        .map_err(Error::failed(format!("attach the BPF iterator {name}")))
        .and_then(|link| {
            sys::pin(&link, &path).map_err(Error::failed(format!("pin {}", path.display())))
        })
}

impl Program {
    /// Loads it for this level and pins it.
    pub(super) fn load(
        &self,
        level: Level,
        code: &Code,
        facts: &Facts,
        dir: &Path,
    ) -> Result<(), Error> {
        let loaded = code.load(self.name, self.attachment(level, facts)?)?;
        let pin = self.program_pin(dir);
        sys::pin(&loaded, &pin).map_err(Error::failed(format!("pin {}", pin.display())))
    }

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

    /// Attaches it, from its pin, and pins the link.
    pub(super) fn attach(&self, dir: &Path) -> Result<(), Error> {
        let failed = || Error::failed(format!("attach the BPF program {}", self.name));
        let path = self.link_pin(dir);
        let program = sys::open_pin(&self.program_pin(dir)).map_err(failed())?;
        let link = attach_again(&program).map_err(failed())?;
        sys::pin(&link, &path).map_err(Error::failed(format!("pin {}", path.display())))
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
