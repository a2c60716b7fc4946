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
        InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr,
        tcgetwinsize, tcsetattr,
    },
};
use tokio::io::unix::AsyncFd;

/// Another screen, no cursor, no line that goes on in the next.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The same in reverse.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal of a view. Dropping this leaves it as it was.
pub(super) struct Screen {
    /// How the keys were set, if they are the user's.
    keys: Option<Termios>,
    is_entered: bool,
    has_colours: bool,
}

impl Screen {
    /// Returns the terminal, if standard output is one that can be drawn on. Nothing changes before
    /// [`Screen::enter`].
    pub(super) fn find() -> io::Result<Option<Self>> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        if is_dumb || !stdout().is_terminal() {
            return Ok(None);
        }
        let keys = stdin().is_terminal().then(|| tcgetattr(stdin()));
        Ok(Some(Self {
            keys: keys.transpose()?,
            is_entered: false,
            has_colours: std::env::var_os("NO_COLOR").is_none(),
        }))
    }

    /// Shows the other screen. Each key can be read at once, and is not shown.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        if let Some(keys) = &self.keys {
            let mut keys = keys.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // Ctrl-S would stop the output, and with it the view.
            keys.input_modes -= InputModes::IXON;
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
        let kept = lines.len().min(height);
        write(&frame(&lines[..kept], self.has_colours))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may have gone.
        let _ = self.leave();
    }
}

/// The text that shows these lines, and nothing else, on the screen.
///
/// It erases the old text before it writes the new one: the cursor stays on the last cell of a line
/// that is as wide as the terminal, and erasing from there takes that cell away.
fn frame(lines: &[Line], has_colours: bool) -> String {
    let mut text = "\x1b[H".to_owned();
    if lines.is_empty() {
        text += "\x1b[J";
    }
    for (number, line) in lines.iter().enumerate() {
        let end = if number == 0 { "" } else { "\r\n" };
        let is_last = number + 1 == lines.len();
        let erase = if is_last { "\x1b[J" } else { "\x1b[K" };
        let (on, off) = match (has_colours, line.style) {
            (true, Style::Head) => ("\x1b[1m", "\x1b[m"),
            (true, Style::Detail) => ("\x1b[2m", "\x1b[m"),
            (true, Style::Alarm) => ("\x1b[31m", "\x1b[m"),
            _ => ("", ""),
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "{end}{erase}{on}{}{off}", line.text);
    }
    text
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

#[cfg(test)]
mod tests {
    use super::{Line, Style, frame};

    const WIDTH: usize = 6;
    const HEIGHT: usize = 3;

    /// The cells of a terminal that does not wrap lines, as xterm, tmux and the Linux console have
    /// them.
    struct Cells {
        rows: [[char; WIDTH]; HEIGHT],
        row: usize,
        column: usize,
    }

    impl Cells {
        fn show(&mut self, text: &str) {
            let mut rest = text.chars();
            while let Some(next) = rest.next() {
                match next {
                    '\r' => self.column = 0,
                    '\n' => self.row = (self.row + 1).min(HEIGHT - 1),
                    '\x1b' => {
                        assert_eq!(rest.next(), Some('['));
                        let end = rest.find(char::is_ascii_alphabetic);
                        self.control(end.expect("a sequence has an end"));
                    }
                    other => {
                        self.rows[self.row][self.column] = other;
                        // The cursor does not leave the last cell.
                        self.column = (self.column + 1).min(WIDTH - 1);
                    }
                }
            }
        }

        fn control(&mut self, end: char) {
            match end {
                'H' => (self.row, self.column) = (0, 0),
                'K' | 'J' => {
                    self.rows[self.row][self.column..].fill(' ');
                    if end == 'J' {
                        self.rows[self.row + 1..].fill([' '; WIDTH]);
                    }
                }
                'm' => {}
                other => panic!("an unknown sequence: {other}"),
            }
        }
    }

    fn shown(texts: &[&str], has_colours: bool) -> Vec<String> {
        let mut cells = Cells {
            rows: [['#'; WIDTH]; HEIGHT],
            row: 1,
            column: 2,
        };
        let line = |text: &&str| Line {
            text: (*text).to_owned(),
            style: Style::Alarm,
        };
        let lines: Vec<_> = texts.iter().map(line).collect();
        cells.show(&frame(&lines, has_colours));
        let rows = cells.rows.iter().map(|row| row.iter().collect::<String>());
        rows.map(|row| row.trim_end().to_owned()).collect()
    }

    #[test]
    fn lines_as_wide_as_the_terminal_are_whole() {
        for has_colours in [false, true] {
            for texts in [
                ["123456", "abcdef", "654321"],
                ["1", "", "654321"],
                ["123456", "abcdef", ""],
            ] {
                assert_eq!(shown(&texts, has_colours), texts);
            }
        }
    }

    #[test]
    fn nothing_is_left_of_the_lines_before() {
        assert_eq!(shown(&["123456"], true), ["123456", "", ""]);
        assert_eq!(shown(&[], true), ["", "", ""]);
    }
}
