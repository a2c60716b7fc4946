//! The completion scripts of the packages. Each asks freezer-guard itself for the candidates.

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::File;
use crate::cli::{
    NAME,
    complete::VARIABLE,
    error::{Error, Result},
};

/// Returns a script for each shell.
pub(super) fn all() -> Result<Vec<File>> {
    Ok(vec![
        ("freezer-guard.bash".into(), bash()?),
        ("_freezer-guard".into(), zsh()?),
        ("freezer-guard.fish".into(), fish()?),
    ])
}

fn script(shell: &dyn EnvCompleter) -> Result<String> {
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, NAME, NAME, NAME, &mut script)
        .map_err(Error::io("make a completion script"))?;
    String::from_utf8(script).map_err(|error| Error::Unexpected(error.to_string()))
}

/// Replaces a part of a script that clap_complete is known to make.
fn replace(script: &str, part: &str, other: &str) -> Result<String> {
    match script.contains(part) {
        true => Ok(script.replace(part, other)),
        false => Err(Error::Unexpected(format!(
            "the completion script has no {part:?}"
        ))),
    }
}

/// A completion prints no errors, also if freezer-guard has just been removed.
fn bash() -> Result<String> {
    let quiet = r#"-- "${words[@]}" 2> /dev/null \"#;
    replace(&script(&Bash)?, r#"-- "${words[@]}" \"#, quiet)
}

/// zsh runs this file as a function at the first completion: that has to complete, too.
fn zsh() -> Result<String> {
    let script = script(&Zsh)?;
    let function = "_clap_dynamic_completer_freezer_guard";
    let now =
        format!("if [[ $funcstack[1] == _freezer-guard ]]; then\n    {function} \"$@\"\nfi\n");
    replace(&script, function, function).map(|script| script + &now)
}

fn fish() -> Result<String> {
    let token = "(commandline --current-token))";
    let quiet = "(commandline --current-token) 2>/dev/null)";
    replace(&script(&Fish)?, token, quiet)
}
