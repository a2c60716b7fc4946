//! How much of the service each user has: of connections, and of guards that are being begun.

use std::{cell::RefCell, collections::BTreeMap, fs, rc::Rc};

/// Counts by account.
#[derive(Debug, Default)]
pub(super) struct Accounts(RefCell<BTreeMap<u32, usize>>);

/// One that is counted, for as long as this lives.
#[derive(Debug)]
pub(super) struct Share {
    accounts: Rc<Accounts>,
    account: u32,
}

impl Accounts {
    /// Adds one to an account.
    pub(super) fn add(self: &Rc<Self>, account: u32) -> Share {
        *self.0.borrow_mut().entry(account).or_default() += 1;
        Share {
            accounts: self.clone(),
            account,
        }
    }

    /// Returns how many one account has.
    pub(super) fn of(&self, account: u32) -> usize {
        self.0.borrow().get(&account).copied().unwrap_or_default()
    }

    /// Returns how many all accounts have together.
    pub(super) fn sum(&self) -> usize {
        self.0.borrow().values().sum()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.accounts.0.borrow_mut();
        if let Some(count) = counts.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.account);
            }
        }
    }
}

/// Returns the uid that this uid counts for: the user to whom `/etc/subuid` gives it, or
/// itself. Otherwise each user with subordinate uids would have 65,536 accounts.
pub(super) fn account(uid: u32) -> u32 {
    // Names and comments may be in any encoding.
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    match uid {
        0 => 0,
        _ => account_by(uid, &read("/etc/subuid"), || read("/etc/passwd")),
    }
}

/// `subuid`: lines of `user:first:count`, the user by name or uid.
fn account_by(uid: u32, subuid: &str, passwd: impl Fn() -> String) -> u32 {
    let owner = subuid.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let first: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        (uid.checked_sub(first)? < count).then_some(owner)
    });
    let Some(owner) = owner else { return uid };
    owner.parse().unwrap_or_else(|_| {
        let passwd = passwd();
        let mut lines = passwd.lines();
        let of_line = |line: &str| {
            let mut fields = line.split(':');
            (fields.next() == Some(owner))
                .then(|| fields.nth(1)?.parse().ok())
                .flatten()
        };
        lines.find_map(of_line).unwrap_or(uid)
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::{Accounts, account_by};

    #[test]
    fn a_subordinate_uid_counts_for_its_user() {
        let subuid = "alice:100000:65536\n1002:165536:65536\nghost:300000:10\nnot a line\n";
        let passwd = || "root:x:0:0::/:/bin/sh\nalice:x:1001:1001::/:/bin/sh\n".to_owned();
        for (uid, account) in [
            (1001, 1001),
            (100_000, 1001),
            (165_535, 1001),
            (165_536, 1002),
            (231_072, 231_072),
            // Nobody knows this user.
            (300_001, 300_001),
        ] {
            assert_eq!(account_by(uid, subuid, passwd), account, "{uid}");
        }
    }

    #[test]
    fn a_share_counts_while_it_lives() {
        let accounts = Rc::new(Accounts::default());
        let first = accounts.add(7);
        let second = accounts.add(7);
        let other = accounts.add(8);
        assert_eq!((accounts.of(7), accounts.sum()), (2, 3));
        drop((first, second));
        assert_eq!((accounts.of(7), accounts.sum()), (0, 1));
        drop(other);
        assert_eq!(accounts.sum(), 0);
    }
}
