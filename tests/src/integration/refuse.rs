//! Every way to write is refused, and only while there is a guard.

use std::{fs::File, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    List,
    cgroups::{Cgroup, Hierarchy},
    mounts::Mount,
    process::{Held, LONG, Process, tool},
    scratch, scratch_folder,
};

const METHODS: [&str; 10] = [
    "write",
    "writev",
    "pwrite",
    "pwritev2",
    "sendfile",
    "splice",
    "aio",
    "io_uring",
    "io_uring_wq",
    "handle",
];

pub(super) fn list(list: &mut List<'_>) {
    for method in METHODS {
        list.add(method, move |h| by_method(h, method));
    }
    list.add("thread", |h| {
        outside(h, |path| {
            Ok(tool(["threads", text(path)?, h.frozen()])?.code)
        })
    });
    list.add("opened_before", |h| before(h, "late"));
    list.add("received_over_a_socket", |h| before(h, "passed"));
    list.add("second_mount", second_mount);
    list.add("bind_mount_of_directory", bind_directory);
    list.add("bind_mount_of_file", bind_file);
    list.add("cgroup_namespace", namespace);
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a plain path")
}

/// A way to write, given the freezer file, returns 0 or the errno: it must be
/// refused under a guard, and work on a sibling meanwhile and when it is over.
fn outside(hierarchy: Hierarchy, write: impl Fn(&Path) -> Result<i32>) -> Result<()> {
    let parent = Cgroup::new(hierarchy)?;
    let target = parent.child("target")?;
    let sibling = parent.child("sibling")?;
    let held = Held::new(&[&target])?;
    expect(libc::EBUSY, write(&target.freezer())?, "the target")?;
    expect(0, write(&sibling.freezer())?, "the sibling")?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    expect(0, write(&target.freezer())?, "the target after the guard")
}

fn expect(expected: i32, got: i32, what: &str) -> Result<()> {
    anyhow::ensure!(
        got == expected,
        "writing to {what} gave errno {got}, not {expected}"
    );
    Ok(())
}

fn by_method(hierarchy: Hierarchy, method: &str) -> Result<()> {
    outside(hierarchy, |path| {
        Ok(tool(["write", method, text(path)?, hierarchy.frozen()])?.code)
    })
}

/// A descriptor that is older than the guard.
fn before(hierarchy: Hierarchy, how: &str) -> Result<()> {
    let target = Cgroup::new(hierarchy)?;
    let mut command = Command::new("guest-tool");
    command
        .arg(how)
        .arg(target.freezer())
        .arg(hierarchy.thawed());
    let mut writer = Process::spawn(&mut command)?;
    writer.expect_line("ready")?;
    let held = Held::new(&[&target])?;
    writer.tell("go")?;
    writer.wait(LONG)?.expect(libc::EBUSY)?;
    held.release()?.expect(0)?.says("refused 1 attempt")?;
    Ok(())
}

fn second_mount(hierarchy: Hierarchy) -> Result<()> {
    let top = scratch_folder("mount")?;
    let (kind, options) = match hierarchy {
        Hierarchy::V1 => ("cgroup", Some("freezer")),
        Hierarchy::V2 => ("cgroup2", None),
    };
    let top = Mount::new(kind, top, options)?;
    outside(hierarchy, |path| {
        let path = top.0.join(path.strip_prefix(hierarchy.root())?);
        Ok(tool(["write", "write", text(&path)?, hierarchy.frozen()])?.code)
    })
}

fn bind_directory(hierarchy: Hierarchy) -> Result<()> {
    outside(hierarchy, |path| {
        let place = scratch_folder("bind")?;
        let place = Mount::bind(path.parent().context("a file lies in a directory")?, place)?;
        let file = place.0.join(hierarchy.file());
        Ok(tool(["write", "write", text(&file)?, hierarchy.frozen()])?.code)
    })
}

fn bind_file(hierarchy: Hierarchy) -> Result<()> {
    outside(hierarchy, |path| {
        let place = scratch("bind");
        File::create(&place)?;
        let place = Mount::bind(path, place)?;
        Ok(tool(["write", "write", text(&place.0)?, hierarchy.frozen()])?.code)
    })
}

fn namespace(hierarchy: Hierarchy) -> Result<()> {
    outside(hierarchy, |path| {
        let cgroup = path.parent().context("a file lies in a directory")?;
        let ancestor = cgroup.parent().context("it has a parent")?;
        let file = path.strip_prefix(ancestor)?;
        Ok(tool(["cgroupns", text(ancestor)?, text(file)?, hierarchy.frozen()])?.code)
    })
}
