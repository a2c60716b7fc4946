//! Changes the types of the kernel, as a program that reads its BTF sees them.
//! The format: Documentation/bpf/btf.rst.

use anyhow::{Context as _, Result, ensure};

/// Kinds of types that have members or constants.
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// Makes each change: `OLD=NEW` gives all that has the name `OLD` the name `NEW`, of the same length;
/// `STRUCT.MEMBER` takes the name of that member away, also inside anonymous structs.
pub(super) fn change(mut bytes: Vec<u8>, changes: &[String]) -> Result<Vec<u8>> {
    let btf = Btf::new(&bytes)?;
    // All places first, so that two names can change places.
    let mut writes = Vec::new();
    for change in changes {
        writes.push(match (change.split_once('='), change.split_once('.')) {
            (Some((old, new)), _) => {
                ensure!(old.len() == new.len(), "{old} and {new} differ in length");
                (btf.strings + btf.name(old)?, new.as_bytes().to_vec())
            }
            (None, Some((container, member))) => {
                (btf.member(container, member)?, 0_u32.to_ne_bytes().to_vec())
            }
            (None, None) => anyhow::bail!("neither OLD=NEW nor STRUCT.MEMBER: {change}"),
        });
    }
    for (place, new) in writes {
        bytes[place..place + new.len()].copy_from_slice(&new);
    }
    Ok(bytes)
}

/// A BTF blob, and where its parts begin, bytes.
struct Btf<'a> {
    bytes: &'a [u8],
    /// The first byte of each type, by its id less 1.
    types: Vec<usize>,
    strings: usize,
}

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        // magic, version, flags, hdr_len, type_off, type_len, str_off
        let [header, first, length, strings] = [4, 8, 12, 16].map(|place| word(bytes, place));
        let first = header + first;
        let mut types = Vec::new();
        let mut place = first;
        while place < first + length {
            types.push(place);
            place += size(info(bytes, place)?)?;
        }
        Ok(Self {
            bytes,
            types,
            strings: header + strings,
        })
    }

    /// Where a name stands among the strings. Each stands there once, between two zeros.
    fn name(&self, name: &str) -> Result<usize> {
        let text = [b"\0", name.as_bytes(), b"\0"].concat();
        let mut windows = self.bytes[self.strings..].windows(text.len());
        let place = windows.position(|window| window == text);
        Ok(place.with_context(|| format!("no {name} in the BTF"))? + 1)
    }

    /// Where the name of a member is.
    fn member(&self, container: &str, member: &str) -> Result<usize> {
        let (container_name, member_name) = (self.name(container)?, self.name(member)?);
        let found = self.types.iter().find_map(|place| {
            let is_it = word(self.bytes, *place) == container_name;
            is_it.then(|| self.inside(*place, member_name)).flatten()
        });
        found.with_context(|| format!("no {container}.{member} in the BTF"))
    }

    fn inside(&self, place: usize, member: usize) -> Option<usize> {
        let (kind, count) = info(self.bytes, place).ok()?;
        if kind != STRUCT && kind != UNION {
            return None;
        }
        // name, type, offset
        (0..count)
            .map(|index| place + 12 + 12 * index)
            .find_map(|field| match word(self.bytes, field) {
                name if name == member => Some(field),
                0 => self.inside(
                    *self
                        .types
                        .get(word(self.bytes, field + 4).checked_sub(1)?)?,
                    member,
                ),
                _ => None,
            })
    }
}

fn word(bytes: &[u8], place: usize) -> usize {
    let word = bytes[place..place + 4].try_into().expect("four bytes");
    u32::from_ne_bytes(word) as usize
}

/// The kind of the type here, and how many members, constants or parameters it has.
fn info(bytes: &[u8], place: usize) -> Result<(u32, usize)> {
    let info = u32::try_from(word(bytes, place + 4))?;
    Ok((info >> 24 & 0x1f, (info & 0xffff) as usize))
}

/// The size of such a type in the blob, bytes.
fn size((kind, count): (u32, usize)) -> Result<usize> {
    Ok(12
        + match kind {
            // int, variable, declaration tag
            1 | 14 | 17 => 4,
            // array
            3 => 12,
            // struct, union, section, 64-bit enum
            STRUCT | UNION | 15 | 19 => 12 * count,
            // enum, prototype of a function
            6 | 13 => 8 * count,
            kind => {
                ensure!(kind <= 18, "unknown kind of type {kind} in the BTF");
                0
            }
        })
}
