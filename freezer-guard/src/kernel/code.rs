//! The code of the programs, and how it gets into the kernel.
//!
//! aya makes the maps. It has no programs that modify what a function returns, and
//! parses all of the kernel's BTF for each kind that it has: the rest is done here.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::Object;

use super::{Error, pins::missing};
use crate::sys::{self, Attachment, Functions};

/// The object, with the maps of a loaded one in it.
pub(super) struct Code {
    object: Object,
    btf: OwnedFd,
}

impl Code {
    /// `maps`: the same object as aya has loaded it.
    pub(super) fn new(object: &[u8], maps: &Ebpf) -> Result<Self, Error> {
        const DOING: &str = "prepare the BPF object";
        let mut object = Object::parse(object).map_err(Error::failed(DOING))?;
        let features = aya::features().btf().ok_or_else(|| missing("BTF"))?;
        let btf = object
            .fixup_and_sanitize_btf(features)
            .map_err(Error::failed(DOING))?
            .ok_or_else(|| missing("BTF"))?;
        let btf = sys::load_btf(&btf.to_bytes()).map_err(Error::failed(DOING))?;
        let text_sections: HashSet<_> = object
            .functions
            .keys()
            .map(|(section_index, _)| *section_index)
            .collect();
        let own = object.maps.clone();
        let made: Vec<_> = maps
            .maps()
            .filter_map(|(name, made)| Some((name, data(made)?, own.get(name)?)))
            .map(|(name, data, own)| (name, data.fd().as_fd().as_raw_fd(), own))
            .collect();
        object
            .relocate_maps(made.into_iter(), &text_sections)
            .map_err(Error::failed(DOING))?;
        object
            .relocate_calls(&text_sections)
            .map_err(Error::failed(DOING))?;
        Ok(Self { object, btf })
    }

    /// Loads the program `name`.
    pub(super) fn load(
        &self,
        name: &'static str,
        attachment: Attachment,
    ) -> Result<OwnedFd, Error> {
        let program = self
            .object
            .programs
            .get(name)
            .ok_or_else(|| missing(name))?;
        let code = self
            .object
            .functions
            .get(&(program.section_index, program.address))
            .ok_or_else(|| missing(name))?;
        let functions = Functions {
            btf: &self.btf,
            places: &code.func_info.func_info,
        };
        sys::load(
            name,
            &code.instructions,
            Some(functions),
            &program.license,
            attachment,
        )
        .map_err(|(source, log)| Error::Load {
            program: name,
            source,
            log,
        })
    }
}

/// The kinds of map that the programs use.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::HashOfMaps(data) => Some(data),
        _ => None,
    }
}
