//! The interface `io.freezerguard`.

use std::{path::PathBuf, pin::Pin, rc::Rc};

use freezer_guard::{
    cgroup::{self, Cgroup},
    doctor,
    guard::{self, Event, EventDecoder, Incident, PidFd, Preparation, Status, Target},
};
use freezer_guard_abi::GuardId;
use tokio_stream::{
    Stream, StreamExt as _, once,
    wrappers::{BroadcastStream, errors::BroadcastStreamRecvError},
};
use zlink::{Connection, Reply, connection::socket::FetchPeerCredentials, service};

use super::{
    Daemon,
    access::Peer,
    accounts::{Share, account},
    begin, blocking, error, idl,
    reply::{Check, Error, Events, Examination, Guards, OneGuard, State, Text},
};

/// Where the daemon listens.
pub(crate) const SOCKET: &str = "/run/freezer-guard/io.freezerguard";

/// How many guards a user may hold who is not trusted.
const GUARDS_OF_ONE: usize = 8;

/// Returns the description of the interface, which `GetInterfaceDescription` answers too. (The macro
/// `service` of zlink makes the constant.)
pub(crate) fn description() -> String {
    idl::formatted(__Client_INTERFACE_0)
}

/// One connection.
pub(super) struct Client {
    daemon: Rc<Daemon>,
    /// The process that has connected, as far as it was there when we saw that.
    process: Option<PidFd>,
}

impl Client {
    pub(super) fn new(daemon: Rc<Daemon>, process: Option<PidFd>) -> Self {
        Self { daemon, process }
    }

    async fn peer<Sock>(&self, connection: &mut Connection<Sock>) -> Result<Peer, Error>
    where
        Sock: zlink::connection::Socket,
        Sock::ReadHalf: FetchPeerCredentials,
    {
        let peer = Peer::of(connection, self.process.as_ref()).await;
        peer.map_err(|error| Error::Failed {
            message: format!("ask who is calling: {}", guard::chain(&error)),
        })
    }

    fn is_trusted(&self, peer: &Peer) -> bool {
        peer.is_trusted(&self.daemon.config.borrow().group)
    }

    fn trust(&self, peer: &Peer) -> Result<(), Error> {
        match self.is_trusted(peer) {
            true => Ok(()),
            false => Err(self.not_trusted(peer)),
        }
    }

    fn not_trusted(&self, peer: &Peer) -> Error {
        let group = &self.daemon.config.borrow().group;
        Error::denied(format!(
            "uid {} may not do that: it takes root, or a member of the group {group:?}, or to \
             begin a guard an open descriptor of the cgroup's freezer file for writing",
            peer.uid
        ))
    }

    /// Reserves room for one more guard of a user who is not trusted.
    async fn reserve(&self, uid: u32) -> Result<Share, Error> {
        let account = account(uid);
        // Counted first: of many that begin at once, each sees the others.
        let share = self.daemon.beginning.add(account);
        let guards = blocking(guard::list).await?;
        let owners = guards.iter().filter_map(|guard| guard.owner_uid);
        let held = owners.filter(|owner| self::account(*owner) == account);
        match held.count() + self.daemon.beginning.of(account) > GUARDS_OF_ONE {
            true => Err(Error::Busy {
                message: format!("uid {uid} holds {GUARDS_OF_ONE} guards, and may hold no more"),
            }),
            false => Ok(share),
        }
    }
}

/// The containers that these cgroups are, or that the process is in: one that is
/// named in both hierarchies is one.
async fn open(paths: Vec<PathBuf>, pid: Option<i32>) -> Result<Vec<Target>, Error> {
    let targets = blocking(move || -> Result<Vec<Target>, cgroup::Error> {
        match pid {
            Some(pid) if paths.is_empty() => Ok(vec![cgroup::own_of_pid(pid)?]),
            _ => cgroup::open_all(&paths),
        }
    })
    .await
    .map_err(|error| Error::bad(guard::chain(&error)))?;
    if targets.iter().flatten().next().is_none() {
        return Err(Error::bad(
            "neither `cgroups` nor `pid` names a cgroup with a freezer",
        ));
    }
    Ok(targets)
}

fn pid(number: Option<i64>) -> Result<Option<i32>, Error> {
    number
        .map(i32::try_from)
        .transpose()
        .map_err(|_| Error::bad("`pid` is none"))
}

type BoxedStream = Pin<Box<dyn Stream<Item = Result<Reply<Events>, Error>>>>;

/// Guards of cgroups that a checkpointer such as CRIU works in. See io.freezerguard(7).
#[service(
    interface = "io.freezerguard",
    types = [Status, Incident, Event, Check],
    vendor = "freezer-guard",
    product = "freezer-guard",
    version = freezer_guard::VERSION
)]
impl<Sock> Client
where
    Sock::ReadHalf: FetchPeerCredentials,
{
    /// Begins a guard, and replies when it is CHECKPOINTING.
    /// The guard protects the directories in `cgroups`, or the cgroups of the process `pid`. With
    /// `freeze` the service freezes them first, for at most `freezeTimeoutSeconds` (10 by default);
    /// without, they have to be FROZEN. If `pid` is there, the tree below it has to be in the cgroups.
    /// `allow` lifts protections (freeze, kill, migrate, ptrace), and `require` is the weakest level
    /// that is enough (detect, best-effort, enforce).
    /// The holder is the calling process, or the process whose pidfd is descriptor number `holderFd`
    /// of the call. The guard ends with `End`, or with the last process of the holder. A caller
    /// without permission sends descriptors of the cgroups' freezer files, open for writing, and its
    /// guard covers at most 64 directories, those above the cgroups included.
    async fn begin(
        &self,
        cgroups: Option<Vec<PathBuf>>,
        freeze: Option<bool>,
        #[zlink(rename = "freezeTimeoutSeconds")] freeze_timeout_seconds: Option<f64>,
        pid: Option<i64>,
        allow: Option<Vec<String>>,
        require: Option<String>,
        #[zlink(rename = "holderFd")] holder_fd: Option<i64>,
        #[zlink(connection)] connection: &mut Connection<Sock>,
        #[zlink(fds)] fds: Vec<OwnedFd>,
    ) -> Result<OneGuard, Error> {
        let peer = self.peer(connection).await?;
        let is_trusted = self.is_trusted(&peer);
        let root = self::pid(pid)?;
        let targets = match open(cgroups.unwrap_or_default(), root).await {
            // What there is and what there is not is no business of his.
            Err(_) if !is_trusted => return Err(self.not_trusted(&peer)),
            targets => targets?,
        };
        let may_write = |cgroup: &Cgroup| Peer::may_write(cgroup, &fds);
        if !is_trusted && !targets.iter().flatten().all(may_write) {
            return Err(self.not_trusted(&peer));
        }
        let uid = peer.uid;
        if !is_trusted {
            begin::refuse_many(targets.iter().flatten().map(Cgroup::path), uid)?;
        }
        let (caller, named) = (peer.pid, begin::named(holder_fd, fds)?);
        // The caller may have become another program by now, which is not his.
        if (named.is_none() || !is_trusted)
            && !peer.owns(named.as_ref().unwrap_or_else(|| peer.process()))
        {
            return Err(Error::denied(
                "the holder has to be a process of the caller's own",
            ));
        }
        let holder = named.unwrap_or_else(|| peer.into_process());
        let _share = match is_trusted {
            true => None,
            false => Some(self.reserve(uid).await?),
        };
        let weakest = self.daemon.config.borrow().require;
        let wanted = begin::requirements(allow.unwrap_or_default(), require, weakest, uid)?;
        let how = Preparation {
            freeze: freeze.unwrap_or_default(),
            timeout: begin::freeze_timeout(freeze_timeout_seconds, is_trusted)?,
            roots: root.into_iter().collect(),
        };
        let begun = move || begin::begin(targets, &wanted, &how, caller, &holder);
        let guard = blocking(begun).await?;
        Ok(OneGuard { guard })
    }

    /// Ends the guard with the id `guard`, or else the guard of a cgroup.
    /// The holder gets the cgroups back in the state that they had before the guard. Any other caller
    /// needs permission and `force`; the cgroups then keep their state, and the checkpoint of the
    /// holder is violated.
    async fn end(
        &self,
        cgroup: Option<PathBuf>,
        guard: Option<GuardId>,
        force: Option<bool>,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<OneGuard, Error> {
        let peer = self.peer(connection).await?;
        let name = match (&cgroup, guard) {
            (Some(path), _) => path.clone(),
            (None, Some(id)) => format!("guard {id}").into(),
            (None, None) => return Err(Error::bad("neither `cgroup` nor `guard` names a guard")),
        };
        let path = name.clone();
        let found = blocking(move || match guard {
            Some(id) => guard::of_id(id),
            None => Ok(State::of(&path, None)?.guard),
        })
        .await;
        let found = match found {
            Err(_) if !self.is_trusted(&peer) => return Err(self.not_trusted(&peer)),
            found => found?,
        };
        let is_holder = found
            .as_ref()
            .is_some_and(|guard| peer.is_among(&guard.holder_pids));
        if !is_holder {
            self.trust(&peer)?;
        }
        let not_guarded = |name| error::Error::from(guard::Error::NotGuarded(name));
        let Some(found) = found else {
            return Err(not_guarded(name).into());
        };
        if !is_holder && !force.unwrap_or_default() {
            return Err(Error::denied(
                "the caller does not belong to its holder: to cut it off, set `force`",
            ));
        }
        let of = name.clone();
        let ended = blocking(move || match is_holder {
            true => guard::end_by_holder(found.id, &of).map(|(ended, _)| Some(ended)),
            false => guard::end_by_force(found.id),
        })
        .await?;
        let guard = ended.ok_or_else(|| not_guarded(name))?;
        Ok(OneGuard { guard })
    }

    /// Returns the guards in force.
    async fn list(
        &self,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<Guards, Error> {
        self.trust(&self.peer(connection).await?)?;
        let guards = blocking(guard::list).await?;
        Ok(Guards { guards })
    }

    /// Returns the last 64 guards that have ended, the oldest first.
    async fn list_ended(
        &self,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<Guards, Error> {
        self.trust(&self.peer(connection).await?)?;
        let guards = self.daemon.history.borrow().last();
        Ok(Guards { guards })
    }

    /// Returns the state of a cgroup, and its guard.
    /// The holder of a guard may call it without permission, and may name its guard by the id in
    /// `guard`, since the cgroup may be gone.
    async fn status(
        &self,
        cgroup: PathBuf,
        guard: Option<GuardId>,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<State, Error> {
        let peer = self.peer(connection).await?;
        let state = match blocking(move || State::of(&cgroup, guard)).await {
            Err(_) if !self.is_trusted(&peer) => return Err(self.not_trusted(&peer)),
            state => state?,
        };
        let is_holder = state
            .guard
            .as_ref()
            .is_some_and(|guard| peer.is_among(&guard.holder_pids));
        if !is_holder {
            self.trust(&peer)?;
        }
        Ok(state)
    }

    /// Checks that the whole tree below `pid` is in the cgroups, and that no process traces it.
    /// Without `pid`: that all threads of the processes in the cgroups are there.
    async fn verify(
        &self,
        cgroups: Vec<PathBuf>,
        pid: Option<i64>,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<(), Error> {
        self.trust(&self.peer(connection).await?)?;
        let root = self::pid(pid)?;
        let targets = open(cgroups, None).await?;
        blocking(move || -> Result<(), guard::Error> {
            let target = targets.into_iter().flatten().collect();
            guard::verify(&[target], root.as_slice()).map(drop)
        })
        .await?;
        Ok(())
    }

    /// Returns the events of the guards in force, and with `more` each new event as it happens.
    #[zlink(more)]
    async fn monitor(
        &self,
        more: bool,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> impl Stream<Item = Result<Reply<Events>, Error>> + Unpin {
        let follower = BroadcastStream::new(self.daemon.events.subscribe());
        let so_far = async {
            self.trust(&self.peer(connection).await?)?;
            let guards = blocking(guard::list).await?;
            Ok::<_, Error>(EventDecoder::default().so_far(&guards))
        };
        let reply = |events, more| Reply::new(Some(Events { events })).set_continues(Some(more));
        let stream: BoxedStream = match so_far.await {
            Err(error) => Box::pin(once(Err(error))),
            Ok(events) if !more => Box::pin(once(Ok(reply(events, false)))),
            Ok(events) => {
                let later = follower.map(move |event| {
                    let event = match event {
                        Ok(event) => event,
                        Err(BroadcastStreamRecvError::Lagged(count)) => Event::lost(count),
                    };
                    Ok(reply(vec![event], true))
                });
                Box::pin(once(Ok(reply(events, true))).chain(later))
            }
        };
        stream
    }

    /// Checks whether this host can guard checkpoints, with a guard of its own for a moment.
    async fn doctor(
        &self,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<Examination, Error> {
        self.trust(&self.peer(connection).await?)?;
        let report = blocking(|| Ok::<_, guard::Error>(doctor::examine())).await?;
        let verdict = |verdict: doctor::Verdict| format!("{verdict:?}").to_lowercase();
        Ok(Examination {
            verdict: verdict(report.verdict),
            kernel: report.kernel,
            checks: report
                .checks
                .into_iter()
                .map(|check| Check {
                    name: check.name.to_owned(),
                    verdict: verdict(check.verdict),
                    finding: check.finding,
                    remedy: check.remedy,
                })
                .collect(),
        })
    }

    /// Returns the metrics in Prometheus's text format.
    async fn metrics(
        &self,
        #[zlink(connection)] connection: &mut Connection<Sock>,
    ) -> Result<Text, Error> {
        self.trust(&self.peer(connection).await?)?;
        let text = self.daemon.metrics().await?.prometheus;
        Ok(Text { text })
    }
}

#[cfg(test)]
mod tests {
    use zlink::idl::Interface;

    use super::{__Client_INTERFACE_0, description};

    #[test]
    fn the_description_is_that_of_the_interface() {
        let text = description();
        let parsed = Interface::try_from(text.as_str()).expect("it is valid");
        assert_eq!(&parsed, __Client_INTERFACE_0);
        assert_eq!(parsed.methods().count(), 9);
    }
}
