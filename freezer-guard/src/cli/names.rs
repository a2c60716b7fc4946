//! Options that take one of some names.

use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use freezer_guard_abi::NoSuchName;

/// Takes one of these names.
pub(super) fn one_of<T>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = NoSuchName> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}
