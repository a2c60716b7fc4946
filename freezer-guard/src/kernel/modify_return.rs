//! The programs on LSM hooks, loaded for the functions that call the hooks
//! (`BPF_MODIFY_RETURN` on `security_*`, Linux 5.7): where `bpf` is none of the
//! active security modules, this is the one way to refuse.
//!
//! aya has no such type of program. It makes the maps; the rest is done here.

use std::{
    collections::HashSet,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    Btf, Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, btf::BtfKind};

use super::{Error, pins::missing};
use crate::sys;

/// The object, with the maps of a loaded one in it.
pub(super) struct ModifyReturn {
    object: Object,
}

impl ModifyReturn {
    /// `maps`: the same object as aya has loaded it.
    pub(super) fn new(object: &[u8], maps: &Ebpf) -> Result<Self, Error> {
        const DOING: &str = "prepare the BPF object";
        let mut object = Object::parse(object).map_err(Error::failed(DOING))?;
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
        Ok(Self { object })
    }

    /// Loads the program `name` for `security_NAME` and pins it.
    pub(super) fn load(&self, name: &'static str, btf: &Btf, pin: &Path) -> Result<(), Error> {
        let function = format!("security_{name}");
        let target = btf
            .id_by_type_name_kind(&function, BtfKind::Func)
            .map_err(|_| Error::NoHook {
                program: name,
                function,
            })?;
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
        let loaded = sys::load_modify_return(name, &code.instructions, &program.license, target)
            .map_err(|(source, log)| Error::Load {
                program: name,
                source,
                log,
            })?;
        sys::pin(&loaded, pin).map_err(Error::failed(format!("pin {}", pin.display())))
    }
}

/// The kinds of map that the programs use.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::HashOfMaps(data) => Some(data),
        _ => None,
    }
}
