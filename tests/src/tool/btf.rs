//! Changes the types of the kernel, as a program that reads its BTF sees them.
//! The format: Documentation/bpf/btf.rst. (The host tests of `freezer-guard` use this file too.)

use anyhow::{Context as _, Result, bail, ensure};

/// Kinds of types that have members or constants.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const ENUM64: u32 = 19;

/// Makes each change:
///
/// - `OLD=NEW` gives all that has the name `OLD` the name `NEW`, of the same length;
/// - `STRUCT.MEMBER` takes the name of that member away, also inside anonymous structs;
/// - `STRUCT.MEMBER=NEW` gives that member another name;
/// - `STRUCT.MEMBER+BYTES` moves that member;
/// - `STRUCT.MEMBER@nested` puts that member into an anonymous struct, where it has the same place;
/// - `no-enum64` encodes as `pahole --skip_encoding_btf_enum64` does: an enum of 64-bit constants is one of
///   32-bit constants, which are cut off.
pub(super) fn change(bytes: Vec<u8>, changes: &[String]) -> Result<Vec<u8>> {
    let (mut bytes, mut changes) = (bytes, changes.to_vec());
    if let Some(index) = changes.iter().position(|change| change == "no-enum64") {
        changes.remove(index);
        bytes = without_enum64(&bytes)?;
    }
    let btf = Btf::new(&bytes)?;
    // All places first, so that two names can change places.
    let mut edit = Edit::default();
    for change in &changes {
        let (left, right) = change.split_once('=').unwrap_or((change, ""));
        match left.split_once('.') {
            Some((container, member)) => edit.member(&btf, container, member, right)?,
            None if right.is_empty() => bail!("neither OLD=NEW nor STRUCT.MEMBER: {change}"),
            None => {
                ensure!(left.len() == right.len(), "{change}: they differ in length");
                edit.put(btf.strings + btf.name(left)?, right.as_bytes());
            }
        }
    }
    for (place, new) in &edit.writes {
        bytes[*place..*place + new.len()].copy_from_slice(new);
    }
    let Btf { parts, .. } = Btf::new(&bytes)?;
    Ok(parts.with(
        &bytes,
        &[parts.types(&bytes), &edit.types].concat(),
        &[parts.strings(&bytes), &edit.strings].concat(),
    ))
}

/// The changes of a blob.
#[derive(Default)]
struct Edit {
    writes: Vec<(usize, Vec<u8>)>,
    /// New types and names, behind the others.
    types: Vec<u8>,
    strings: Vec<u8>,
    new_types: usize,
}

impl Edit {
    fn put(&mut self, place: usize, bytes: &[u8]) {
        self.writes.push((place, bytes.to_vec()));
    }

    fn member(&mut self, btf: &Btf<'_>, container: &str, member: &str, new: &str) -> Result<()> {
        if let Some((member, distance)) = member.split_once('+') {
            let field = btf.member(container, member)?;
            let bits = word(btf.bytes, field + 8) + 8 * distance.parse::<usize>()?;
            self.put(field + 8, &number(bits)?);
        } else if let Some(member) = member.strip_suffix("@nested") {
            self.nest(btf, btf.member(container, member)?)?;
        } else {
            let field = btf.member(container, member)?;
            let name = match new {
                "" => 0,
                new => {
                    let name = btf.parts.strings_length + self.strings.len();
                    self.strings.extend(new.bytes().chain([0]));
                    name
                }
            };
            self.put(field, &number(name)?);
        }
        Ok(())
    }

    /// The anonymous struct begins one byte before the member.
    fn nest(&mut self, btf: &Btf<'_>, field: usize) -> Result<()> {
        let [name, kind, bits] = [0, 4, 8].map(|place| word(btf.bytes, field + place));
        let before = bits.min(8);
        self.new_types += 1;
        let id = btf.types.len() + self.new_types;
        // name, kind and number of members, size; name, type, offset of the member
        let one = (STRUCT << 24 | 1) as usize;
        for part in [0, one, 16, name, kind, before] {
            self.types.extend(number(part)?);
        }
        for (place, part) in [(0, 0), (4, id), (8, bits - before)] {
            self.put(field + place, &number(part)?);
        }
        Ok(())
    }
}

fn number(number: usize) -> Result<[u8; 4]> {
    Ok(u32::try_from(number)?.to_ne_bytes())
}

/// Where the parts of a blob are, bytes.
#[derive(Clone, Copy)]
struct Parts {
    header: usize,
    first_type: usize,
    types_length: usize,
    first_string: usize,
    strings_length: usize,
}

impl Parts {
    fn types(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.header + self.first_type..][..self.types_length]
    }

    fn strings(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.header + self.first_string..][..self.strings_length]
    }

    /// The same blob with other types and names. Other parts, which newer kernels have, go.
    fn with(self, bytes: &[u8], types: &[u8], strings: &[u8]) -> Vec<u8> {
        /// The length of a header that knows no other parts.
        const HEADER: usize = 24;
        let mut new = bytes[..4].to_vec();
        for word in [HEADER, 0, types.len(), types.len(), strings.len()] {
            new.extend((word as u32).to_ne_bytes());
        }
        [&new, types, strings].concat()
    }
}

/// A BTF blob, and where its parts begin, bytes.
struct Btf<'a> {
    bytes: &'a [u8],
    parts: Parts,
    /// The first byte of each type, by its id less 1.
    types: Vec<usize>,
    strings: usize,
}

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        // magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
        let [
            header,
            first_type,
            types_length,
            first_string,
            strings_length,
        ] = [4, 8, 12, 16, 20].map(|place| word(bytes, place));
        let parts = Parts {
            header,
            first_type,
            types_length,
            first_string,
            strings_length,
        };
        let first = header + first_type;
        let mut types = Vec::new();
        let mut place = first;
        while place < first + types_length {
            types.push(place);
            place += size(info(bytes, place)?)?;
        }
        Ok(Self {
            bytes,
            parts,
            types,
            strings: header + first_string,
        })
    }

    /// Where a name stands among the strings. Each stands there once, between two zeros.
    fn name(&self, name: &str) -> Result<usize> {
        let text = [b"\0", name.as_bytes(), b"\0"].concat();
        let mut windows = self.parts.strings(self.bytes).windows(text.len());
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

fn without_enum64(bytes: &[u8]) -> Result<Vec<u8>> {
    let Btf { parts, types, .. } = Btf::new(bytes)?;
    let mut new = Vec::new();
    let mut changed = 0;
    for place in types {
        let (kind, count) = info(bytes, place)?;
        let whole = &bytes[place..place + size((kind, count))?];
        if kind != ENUM64 {
            new.extend(whole);
            continue;
        }
        changed += 1;
        // The sign and the number of constants stay.
        let info = word(bytes, place + 4) as u32 & !(0x1f << 24) | ENUM << 24;
        new.extend(&whole[..4]);
        new.extend(info.to_ne_bytes());
        new.extend(&whole[8..12]);
        for constant in whole[12..].chunks(12) {
            new.extend(&constant[..8]);
        }
    }
    ensure!(changed > 0, "the BTF has no enum of 64-bit constants");
    Ok(parts.with(bytes, &new, parts.strings(bytes)))
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
            STRUCT | UNION | 15 | ENUM64 => 12 * count,
            // enum, prototype of a function
            ENUM | 13 => 8 * count,
            kind => {
                ensure!(kind <= 18, "unknown kind of type {kind} in the BTF");
                0
            }
        })
}
