//! The terminal of a view that is refreshed in place.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _, stdin, stdout},
    os::fd::{AsFd as _, OwnedFd},
};

use freezer_guard::{
    report::{Line, Style},
    watch_input,
};
use rustix::{
    io::Errno,
    termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
    },
};
use tokio::io::unix::AsyncFd;

/// Another screen, no cursor, no line that goes on in the next.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The same in reverse.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal while the view has it. Dropping this leaves it as it was.
pub(super) struct Screen {
    /// How the keys were set, if they are the user's.
    keys: Option<Termios>,
    is_entered: bool,
    has_colours: bool,
}

impl Screen {
    /// Takes the terminal, if standard output is one that can be drawn on.
    pub(super) fn take() -> io::Result<Option<Self>> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        if is_dumb || !stdout().is_terminal() {
            return Ok(None);
        }
        let keys = stdin().is_terminal().then(|| tcgetattr(stdin()));
        let mut screen = Self {
            keys: keys.transpose()?,
            is_entered: false,
            has_colours: std::env::var_os("NO_COLOR").is_none(),
        };
        screen.enter()?;
        Ok(Some(screen))
    }

    /// Shows the other screen. Each key can be read at once, and is not shown.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        if let Some(keys) = &self.keys {
            let mut keys = keys.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // A read takes what is there.
            keys.special_codes[SpecialCodeIndex::VMIN] = 0;
            keys.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(stdin(), OptionalActions::Now, &keys)?;
        }
        self.is_entered = true;
        write(ENTER)
    }

    /// Leaves the terminal as it was.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        if !self.is_entered {
            return Ok(());
        }
        self.is_entered = false;
        let restored = match &self.keys {
            Some(keys) => tcsetattr(stdin(), OptionalActions::Now, keys),
            None => Ok(()),
        };
        write(LEAVE)?;
        Ok(restored?)
    }

    /// Its width and height.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (80, 24),
        }
    }

    /// Whether the user can press keys.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// The keys, if they are the user's.
    pub(super) fn keys(&self) -> io::Result<Option<Keys>> {
        match self.keys {
            Some(_) => {
                let descriptor = stdin().as_fd().try_clone_to_owned()?;
                watch_input(descriptor).map(|keys| Some(Keys(keys)))
            }
            None => Ok(None),
        }
    }

    /// Shows these lines in place of those before.
    pub(super) fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let (_, height) = self.size();
        let mut text = "\x1b[H".to_owned();
        for (number, line) in lines.iter().take(height).enumerate() {
            let end = if number == 0 { "" } else { "\r\n" };
            let (on, off) = match (self.has_colours, line.style) {
                (true, Style::Head) => ("\x1b[1m", "\x1b[m"),
                (true, Style::Detail) => ("\x1b[2m", "\x1b[m"),
                (true, Style::Alarm) => ("\x1b[31m", "\x1b[m"),
                _ => ("", ""),
            };
            // Writing to a string cannot fail.
            let _ = write!(text, "{end}{on}{}{off}\x1b[K", line.text);
        }
        text += "\x1b[J";
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may have gone.
        let _ = self.leave();
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// The keys that the user presses.
pub(super) struct Keys(AsyncFd<OwnedFd>);

impl Keys {
    /// The next key; `None` when there are no more.
    pub(super) async fn next(&mut self) -> io::Result<Option<u8>> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut key = [0];
            match rustix::io::read(self.0.get_ref(), &mut key) {
                Ok(1..) => return Ok(Some(key[0])),
                // With VMIN 0, that nothing is there is no end.
                Ok(0) | Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::IO) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
