//! The BPF object that this program carries.

use aya_obj::Object;

use super::Error;

/// The BPF object, for the verifier.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/freezer-guard.bpf.o"));

/// Its hash. Pins that another object has left belong to another version.
pub(super) const OBJECT_ID: &str = env!("FREEZER_GUARD_OBJECT_ID");

/// Parses it.
pub(super) fn parse() -> Result<Object, Error> {
    Object::parse(OBJECT).map_err(Error::failed("parse the BPF object"))
}

/// The error for what is not in it.
pub(super) fn missing(name: &str) -> Error {
    Error::failed(format!("find {name}"))("the BPF object does not hold it")
}
