//! Units of systemd whose stop a guard has refused. systemd gives such a unit up when its SIGKILL has
//! had no effect, and its processes live on: the next start would make a second instance.

use std::{collections::BTreeSet, path::Path, time::Duration};

use freezer_guard::{cgroup::Cgroup, guard::Status, words::escaped};
use freezer_guard_abi::Protection;
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tracing::warn;
use zbus::{Connection, OwnedObjectPath, Proxy, connection, proxy};

use super::{blocking, error::Result};

/// It is there if the host was booted with systemd (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";

/// The system bus, where systemd has it.
const BUS: &str = "/run/dbus/system_bus_socket";

/// Returns a path of the host. A service in a container finds it below the root of PID 1.
fn of_host(path: &str) -> Option<String> {
    let paths = [path.to_owned(), format!("/proc/1/root{path}")];
    paths.into_iter().find(|path| Path::new(path).exists())
}

/// The name of systemd there.
const SERVICE: &str = "org.freedesktop.systemd1";

/// How long systemd may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// `org.freedesktop.systemd1(5)`
#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    #[zbus(name = "GetUnitByPID")]
    fn get_unit_by_pid(&self, pid: u32) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn sub_state(&self) -> zbus::Result<String>;
}

/// Has systemd kill the processes of each unit that it gave up because this guard, which has ended,
/// refused its signals.
pub(super) async fn finish_stops(status: Status) {
    let is_refused = status
        .intruders
        .iter()
        .any(|intruder| intruder.pid == 1 && intruder.protection == Protection::Kill.name());
    if !is_refused || of_host(SYSTEMD).is_none() {
        return;
    }
    let told = match timeout(TIMEOUT, finish(&status)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    warn!(
        guard = status.id,
        "cannot ask systemd whether it has given up a unit whose stop the guard refused: {told}; see \
         `systemctl --failed`, and `systemctl kill -s KILL UNIT`"
    );
}

async fn finish(status: &Status) -> zbus::Result<()> {
    let cgroups = status.cgroups.clone();
    let pids = blocking(move || -> Result<_> {
        Ok(cgroups
            .iter()
            .flat_map(|path| pids_below(path))
            .collect::<Vec<_>>())
    });
    let pids = pids.await.unwrap_or_default();
    if pids.is_empty() {
        return Ok(());
    }
    let bus = of_host(BUS).unwrap_or_else(|| BUS.to_owned());
    let bus = format!("unix:path={bus}");
    let systemd = connection::Builder::address(&*bus).build().await?;
    let manager = ManagerProxy::new(&systemd).await?;
    let mut seen = BTreeSet::new();
    for pid in pids {
        let path = match manager.get_unit_by_pid(pid).await {
            Ok(path) => path,
            // It has ended, or is in no unit.
            Err(zbus::Error::MethodError(..)) => continue,
            Err(error) => return Err(error),
        };
        if seen.insert(path.to_string()) {
            finish_one(status, &systemd, path).await?;
        }
    }
    Ok(())
}

async fn finish_one(
    status: &Status,
    systemd: &Connection,
    path: OwnedObjectPath,
) -> zbus::Result<()> {
    let unit = UnitProxy::builder(systemd)
        .path(path.clone())
        .build()
        .await?;
    let id = unit.id().await?;
    let whom = match kill_mode(systemd, &path, &id).await.as_deref() {
        // The others shall outlive it.
        Ok("process" | "none") => "main",
        _ => "all",
    };
    let (active, sub) = (unit.active_state().await?, unit.sub_state().await?);
    // Before its SIGKILL systemd waits for the unit, and sends that after `TimeoutStopSec`.
    if !matches!(&*active, "failed" | "inactive") && !sub.ends_with("-sigkill") {
        return Ok(());
    }
    let manager = ManagerProxy::new(systemd).await?;
    manager.kill_unit(&id, whom, Signal::SIGKILL as i32).await?;
    warn!(
        guard = status.id,
        kind = "stopped",
        "killed the remaining processes of {}: systemd had given up its stop, which the guard refused",
        escaped(&id)
    );
    Ok(())
}

/// `KillMode` of the unit: services, scopes, sockets, mounts and swaps have one.
async fn kill_mode(systemd: &Connection, path: &OwnedObjectPath, id: &str) -> zbus::Result<String> {
    let kind = id.rsplit('.').next().unwrap_or_default();
    let (first, rest) = kind.split_at_checked(1).unwrap_or_default();
    let interface = format!(
        "org.freedesktop.systemd1.{}{rest}",
        first.to_ascii_uppercase()
    );
    let unit = Proxy::new(systemd, SERVICE, path, interface).await?;
    unit.get_property("KillMode").await
}

/// A task of each cgroup here and below.
fn pids_below(path: &Path) -> Vec<u32> {
    let Ok(cgroup) = Cgroup::open(path) else {
        return Vec::new();
    };
    let below = cgroup.descendants().unwrap_or_default();
    let first = |cgroup: &Cgroup| cgroup.threads().ok()?.first().copied();
    let tids = below.iter().chain([&cgroup]).filter_map(first);
    tids.filter_map(|tid| u32::try_from(tid).ok()).collect()
}
