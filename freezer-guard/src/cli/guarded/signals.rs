//! Signals, taken one by one instead of interrupting us.

use std::io;

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::{io::unix::AsyncFd, process::Command};

/// Those that are passed on to COMMAND.
const PASSED_ON: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// The signals sent to this process.
pub(in crate::cli) struct Signals {
    descriptor: AsyncFd<SignalFd>,
}

/// One of them.
pub(in crate::cli) struct Caught {
    pub(in crate::cli) signal: Signal,
    /// Typed at the terminal, which sends it to COMMAND as well.
    pub(super) from_terminal: bool,
}

impl Signals {
    /// From here on they wait to be taken.
    pub(in crate::cli) fn catch() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.extend(PASSED_ON);
        set.thread_block()?;
        let descriptor =
            SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self {
            descriptor: freezer_guard::watch_signals(descriptor)?,
        })
    }

    /// One that has come already.
    pub(super) fn pending(&self) -> io::Result<Option<Signal>> {
        match self.descriptor.get_ref().read_signal()? {
            Some(info) => Ok(Some(Signal::try_from(info.ssi_signo.cast_signed())?)),
            None => Ok(None),
        }
    }

    /// The next one.
    pub(in crate::cli) async fn next(&mut self) -> io::Result<Caught> {
        loop {
            let mut ready = self.descriptor.readable().await?;
            match ready.get_inner().read_signal()? {
                Some(info) => {
                    let signal = Signal::try_from(info.ssi_signo.cast_signed())?;
                    // The kernel itself sends what a terminal generates.
                    return Ok(Caught {
                        signal,
                        from_terminal: info.ssi_code == libc::SI_KERNEL,
                    });
                }
                None => ready.clear_ready(),
            }
        }
    }
}

/// COMMAND gets its signals again.
pub(super) fn release_in(command: &mut Command) {
    let mut set = SigSet::empty();
    set.extend(PASSED_ON);
    freezer_guard::unblock_in_child(command.as_std_mut(), set);
}
