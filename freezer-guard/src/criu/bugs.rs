//! The known bugs of CRIU on this host.

use std::{fs, path::Path};

use nix::unistd::{Uid, geteuid};

use super::{Criu, Error, output_of};
use crate::{
    cgroup,
    quirks::{self, CriuFacts},
};

/// Something of CRIU's that is known to go wrong, whatever we do.
pub struct Bug {
    is_here: fn(&CriuFacts) -> bool,
    /// What goes wrong.
    pub what: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const BUGS: [Bug; 3] = [
    Bug {
        is_here: quirks::criu_does_not_start,
        what: "does not start on this kernel",
        remedy: "use CRIU 4.1.1 or later",
    },
    Bug {
        is_here: quirks::criu_fails_with_action_script_of_runc,
        what: "fails at every checkpoint by runc, since a file in /etc/criu names an action-script",
        remedy: "use CRIU 3.19 or later, or remove the action-script",
    },
    Bug {
        is_here: quirks::criu_takes_v2_for_v1,
        what: "treats every freezer as a v1 freezer on hosts with v1 and v2",
        remedy: "use a v1 cgroup, or a newer CRIU",
    },
];

fn is_hybrid() -> bool {
    matches!(
        (cgroup::freezer_mount(), cgroup::unified_mount()),
        (Ok(Some(_)), Ok(Some(_)))
    )
}

fn runc_has_action_script() -> bool {
    let configured = fs::read_dir("/etc/criu")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .any(|text| {
            text.lines()
                .any(|line| line.trim_start().starts_with("action-script"))
        });
    configured && output_of(Path::new("runc"), &["--version"]).is_ok()
}

/// Returns whether `criu check` fails because of CRIU or the kernel. Without the rights of root it can fail
/// on any kernel.
fn shows_a_bug(check: &Result<(), Error>, user: Uid) -> bool {
    user.is_root() && matches!(check, Err(Error::Check { .. }))
}

impl Criu {
    /// Those of its bugs that show on this host. `check`: the result of [`Criu::check`].
    pub fn bugs(&self, check: &Result<(), Error>) -> impl Iterator<Item = &'static Bug> {
        let facts = CriuFacts {
            version: self.version,
            fails_check: shows_a_bug(check, geteuid()),
            runc_has_action_script: runc_has_action_script(),
            is_hybrid: is_hybrid(),
        };
        BUGS.iter().filter(move |bug| (bug.is_here)(&facts))
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::Uid;

    use super::{Error, shows_a_bug};

    #[test]
    fn a_check_without_rights_shows_no_bug() {
        let (root, user) = (Uid::from_raw(0), Uid::from_raw(1000));
        let said = || "said".to_owned();
        let fails = Err(Error::Check {
            path: "criu".into(),
            said: said(),
        });
        let lacks_rights = Err(Error::Rights {
            path: "criu".into(),
            uid: 0,
            said: said(),
        });
        assert!(shows_a_bug(&fails, root));
        assert!(!shows_a_bug(&fails, user));
        assert!(!shows_a_bug(&lacks_rights, root));
        assert!(!shows_a_bug(&lacks_rights, user));
        assert!(!shows_a_bug(&Err(Error::NotFound("criu".into())), root));
        assert!(!shows_a_bug(&Ok(()), root));
    }
}
