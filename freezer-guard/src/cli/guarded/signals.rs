//! Signals, taken one by one instead of interrupting us.

use std::io;

use freezer_guard::is_ignored;
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
    /// Those that wait to be taken.
    caught: SigSet,
}

/// One of them.
pub(in crate::cli) struct Caught {
    pub(in crate::cli) signal: Signal,
    /// Typed at the terminal, which sends it to COMMAND as well.
    pub(super) from_terminal: bool,
}

impl Signals {
    /// From here on they wait to be taken. Those that are ignored stay so.
    pub(in crate::cli) fn catch() -> io::Result<Self> {
        Self::catch_those(PASSED_ON)
    }

    /// The same, and nobody stops this process from a terminal.
    pub(in crate::cli) fn catch_stops_too() -> io::Result<Self> {
        Self::catch_those(PASSED_ON.into_iter().chain([Signal::SIGTSTP]))
    }

    /// The same for a view on a terminal, which is drawn again when its size changes.
    pub(in crate::cli) fn catch_for_view() -> io::Result<Self> {
        let more = [Signal::SIGTSTP, Signal::SIGWINCH];
        Self::catch_those(PASSED_ON.into_iter().chain(more))
    }

    fn catch_those(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let mut caught = SigSet::empty();
        caught.extend(signals.into_iter().filter(|signal| !is_ignored(*signal)));
        caught.thread_block()?;
        let descriptor =
            SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self {
            descriptor: freezer_guard::watch_signals(descriptor)?,
            caught,
        })
    }

    /// One that has come already, to end this process.
    pub(super) fn pending(&self) -> io::Result<Option<Signal>> {
        while let Some(info) = self.descriptor.get_ref().read_signal()? {
            let signal = Signal::try_from(info.ssi_signo.cast_signed())?;
            if signal != Signal::SIGTSTP {
                return Ok(Some(signal));
            }
        }
        Ok(None)
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

    /// The next one that is to end this process.
    pub(super) async fn next_end(&mut self) -> io::Result<Signal> {
        loop {
            let caught = self.next().await?;
            if caught.signal != Signal::SIGTSTP {
                return Ok(caught.signal);
            }
        }
    }

    /// COMMAND gets them again.
    pub(super) fn release_in(&self, command: &mut Command) {
        freezer_guard::unblock_in_child(command.as_std_mut(), self.caught);
    }
}
