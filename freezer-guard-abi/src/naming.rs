//! Names on the command line, in files and in JSON, read back.

use core::{error, fmt, str::FromStr};

use crate::{Level, LogLevel, Protection};

/// There is no such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchName {
    what: &'static str,
    names: &'static [&'static str],
}

impl fmt::Display for NoSuchName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "there is no such {}: it is one of ", self.what)?;
        for (number, name) in self.names.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(formatter, "{comma}{name}")?;
        }
        Ok(())
    }
}

impl error::Error for NoSuchName {}

/// Looks for a thing by its name; with a `const` of all the names.
macro_rules! named {
    ($type:ident, $what:literal) => {
        impl $type {
            /// The name of each.
            pub const NAMES: [&str; Self::ALL.len()] = {
                let mut names = [""; Self::ALL.len()];
                let mut index = 0;
                while index < names.len() {
                    names[index] = Self::ALL[index].name();
                    index += 1;
                }
                names
            };
        }

        impl FromStr for $type {
            type Err = NoSuchName;

            fn from_str(name: &str) -> Result<Self, NoSuchName> {
                let named = |one: &Self| one.name() == name;
                let found = Self::ALL.into_iter().find(named);
                found.ok_or(NoSuchName {
                    what: $what,
                    names: &Self::NAMES,
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(self.name())
            }
        }
    };
}

named!(Protection, "protection");
named!(Level, "level");
named!(LogLevel, "log level");

/// The name of a file, zeros after it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileName([u64; 4]);

impl FileName {
    /// The longest, bytes.
    pub const LONGEST: usize = size_of::<Self>() - 1;

    /// The name with this text; `None`: it is too long, or cannot be a file's.
    pub fn new(text: &str) -> Option<Self> {
        let is_name = (1..=Self::LONGEST).contains(&text.len())
            && !text.bytes().any(|byte| matches!(byte, 0 | b'/'));
        let mut words = [0; 4];
        for (index, byte) in text.bytes().take(Self::LONGEST).enumerate() {
            let mut bytes = u64::to_ne_bytes(words[index / 8]);
            bytes[index % 8] = byte;
            words[index / 8] = u64::from_ne_bytes(bytes);
        }
        is_name.then_some(Self(words))
    }

    /// Returns whether the file has this name.
    pub fn is(&self, text: &[u8]) -> bool {
        let bytes = self.0.iter().flat_map(|word| word.to_ne_bytes());
        bytes.take_while(|byte| *byte != 0).eq(text.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString as _;

    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for protection in Protection::ALL {
            assert_eq!(protection.name().parse(), Ok(protection));
        }
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for (number, level) in LogLevel::ALL.into_iter().enumerate() {
            assert_eq!(level as usize, number);
            assert_eq!(level.name().parse(), Ok(level));
        }
    }

    #[test]
    fn a_wrong_name_is_told_the_right_ones() {
        let error = "Enforce"
            .parse::<Level>()
            .expect_err("it has a capital")
            .to_string();
        let right = "there is no such level: it is one of detect, best-effort, enforce";
        assert_eq!(error, right);
    }
}
