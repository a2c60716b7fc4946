//! Foreign text in words: users choose the names of their tasks and cgroups.
//!
//! A name may hold what drives a terminal, forges a line of a log, or reorders what a reader
//! sees. Text for people escapes it; JSON has the name as it is.

use std::borrow::Cow;

/// Returns the text with each control character, and each that changes the direction of
/// writing, in Rust's escaped form: `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, is_dangerous)
}

/// The same for text of several lines, which stay lines.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| {
        character != '\n' && is_dangerous(character)
    })
}

fn escape(text: &str, is_dangerous: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_dangerous) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_dangerous(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

/// Unicode's bidirectional controls (UAX #9) and its own line ends are no control characters.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use freezer_guard_ebpf::{Act, CgroupKey, Event, EventKind};
    use proptest::prelude::*;

    use super::{escaped, escaped_lines, is_dangerous};
    use crate::guard::{Chronicle, Deed, Outcome};

    #[test]
    fn harmless_text_is_not_changed() {
        for text in ["", "criu", "/sys/fs/cgroup/a b\\x2d", "грузовик 船"] {
            assert_eq!(escaped(text), text);
        }
        assert_eq!(escaped_lines("one\ntwo"), "one\ntwo");
        assert_eq!(escaped("one\ntwo\u{1b}[2J"), "one\\ntwo\\u{1b}[2J");
        assert_eq!(escaped("\u{202e}gnp"), "\\u{202e}gnp");
    }

    proptest! {
        #[test]
        fn no_escaped_text_drives_a_terminal(text: String) {
            prop_assert!(!escaped(&text).contains(is_dangerous));
            prop_assert!(!escaped_lines(&text).replace('\n', "").contains(is_dangerous));
        }

        /// A task has any 15 bytes for a name.
        #[test]
        fn no_name_of_a_task_drives_a_terminal(
            mut comm: [u8; 16], kind in 0..EventKind::ALL.len() as u32,
            act in 0..Act::ALL.len() as u32,
        ) {
            comm[15] = 0;
            let event = Event {
                time_ns: 0, guard: 1, cgroup: CgroupKey::new(0, 0), kind, act, protection: 0,
                detail: 0, victim: 1, pid: 1, tid: 1, uid: 1, checkpointing: 1, reserved: 0, comm,
            };
            let deed = Deed::of_event(&event, Outcome::Done).to_string();
            prop_assert!(!deed.contains(is_dangerous), "{deed:?}");
            let happening = Chronicle::default().tell(&event).to_string();
            prop_assert!(!happening.contains(is_dangerous), "{happening:?}");
        }
    }
}
