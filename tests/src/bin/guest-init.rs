//! The guest's init: mounts what a test needs, runs the command, ends the guest.
//!
//! With `--image initramfs` it stays pid 1. With `--image systemd` it leads to
//! Debian's own init on the disk and is started again as a service.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::{fs::symlink, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use freezer_guard_tests::config::{
    BIN_DIR, COMMAND_PORT, CONFIG_PATH, CONTROL_PORT, Cgroup, Config, Image, MODULES_DIR,
    POWER_OFF_PATH,
};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, chdir, chroot, execv, pause, setsid},
};

/// How the service on the systemd image calls us.
const AS_SERVICE: &str = "service";
const ROOT: &str = "/newroot";

fn main() {
    let Err(error) = try_main();
    // To the kernel's console: xtask shows its end when the guest ends early.
    eprintln!("guest-init: {error:#}");
    power_off();
}

fn try_main() -> Result<Infallible> {
    if std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == AS_SERVICE)
    {
        return run_command(&read_config()?);
    }
    for (kind, dir) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_new(kind, dir, "")?;
    }
    let config = read_config()?;
    load_modules()?;
    wait_for_ports()?;
    match config.image {
        Image::Initramfs => {
            for (kind, dir) in [
                ("devpts", "/dev/pts"),
                ("tmpfs", "/dev/shm"),
                ("tmpfs", "/tmp"),
                ("tmpfs", "/run"),
                ("bpf", "/sys/fs/bpf"),
                ("securityfs", "/sys/kernel/security"),
                ("tracefs", "/sys/kernel/tracing"),
            ] {
                mount_new(kind, dir, "")?;
            }
            mount_cgroups(config.cgroup)?;
            for (link, target) in [
                ("/dev/fd", "/proc/self/fd"),
                ("/dev/stdin", "/proc/self/fd/0"),
            ] {
                symlink(target, link).with_context(|| format!("link {link}"))?;
            }
            // busybox leaves existing names alone, without an error.
            for command in ["busybox --install -s /bin", "ip link set lo up"] {
                let mut words = command.split(' ');
                let program = words.next().unwrap_or_default();
                let status = Command::new(program).args(words).status();
                let status = status.with_context(|| format!("run {program}"))?;
                ensure!(status.success(), "`{command}` ended with {status}");
            }
            run_command(&config)
        }
        Image::Systemd => switch_root(&config),
    }
}

fn read_config() -> Result<Config> {
    let bytes = fs::read(CONFIG_PATH).with_context(|| format!("read {CONFIG_PATH}"))?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn mount_new(kind: &str, dir: &str, options: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
    match mount(Some(kind), dir, Some(kind), MsFlags::empty(), Some(options)) {
        // The kernel mounts devtmpfs itself when it is configured to.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {kind} on {dir}")),
    }
}

fn load_modules() -> Result<()> {
    let mut modules = fs::read_dir(MODULES_DIR)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => bail!("load {}: {error}", module.display()),
        }
    }
    Ok(())
}

/// The kernel makes them some time after their module is loaded.
fn wait_for_ports() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let start = Instant::now();
    while ![COMMAND_PORT, CONTROL_PORT]
        .iter()
        .all(|port| Path::new(port).exists())
    {
        ensure!(
            start.elapsed() < TIMEOUT,
            "there is no {COMMAND_PORT} or no {CONTROL_PORT}"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn mount_cgroups(layout: Cgroup) -> Result<()> {
    const TOP: &str = "/sys/fs/cgroup";
    if layout == Cgroup::V2 {
        return mount_new("cgroup2", TOP, "");
    }
    mount_new("tmpfs", TOP, "")?;
    for controller in ["freezer", "pids"] {
        mount_new("cgroup", &format!("{TOP}/{controller}"), controller)?;
    }
    if layout == Cgroup::Hybrid {
        mount_new("cgroup2", &format!("{TOP}/unified"), "")?;
    }
    Ok(())
}

/// Puts us and our files on the disk, and starts Debian's own init there.
fn switch_root(config: &Config) -> Result<Infallible> {
    fs::create_dir_all(ROOT)?;
    mount(
        Some("/dev/vda"),
        ROOT,
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mount /dev/vda")?;
    let into = |path: &str| Path::new(ROOT).join(path.trim_start_matches('/'));
    let copy = |from: &str, to: &str| -> Result<()> {
        let to = into(to);
        fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        fs::copy(from, &to).with_context(|| format!("copy {from}"))?;
        Ok(())
    };
    for entry in fs::read_dir(BIN_DIR)? {
        let path = entry?.path();
        let path = path.to_str().context("our programs have plain names")?;
        copy(path, path)?;
    }
    copy(CONFIG_PATH, CONFIG_PATH)?;
    for path in &config.copies {
        copy(path, path)?;
    }
    let unit = format!(
        "[Unit]\nDescription=The guest's command\n\
         [Service]\nExecStart={BIN_DIR}/guest-init {AS_SERVICE}\n\
         StandardError=tty\nTTYPath=/dev/console\nDelegate=yes\n"
    );
    fs::write(into("/etc/systemd/system/guest.service"), unit)?;
    let wants = into("/etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    symlink(
        "/etc/systemd/system/guest.service",
        wants.join("guest.service"),
    )?;
    let default = into("/etc/systemd/system/default.target");
    symlink("/usr/lib/systemd/system/multi-user.target", default)?;
    for dir in ["/proc", "/sys", "/dev"] {
        let target = into(dir);
        fs::create_dir_all(&target)?;
        mount(
            Some(dir),
            &target,
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .with_context(|| format!("move {dir}"))?;
    }
    chdir(ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the root")?;
    chroot(".")?;
    chdir("/")?;
    Ok(execv(c"/sbin/init", &[c"/sbin/init"])?)
}

/// Runs the command on its port, collects orphans meanwhile, says its
/// exit code and ends the guest.
fn run_command(config: &Config) -> Result<Infallible> {
    let open = |path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("open {path}"))
    };
    let mut control = open(CONTROL_PORT)?;
    raw(&control)?;
    writeln!(control, "up")?;
    let port = open(COMMAND_PORT)?;
    let mut command = match &config.command[..] {
        [] => {
            let mut shell = Command::new("bash");
            shell.arg("-i");
            shell
        }
        [program, arguments @ ..] => {
            raw(&port)?;
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
    };
    let path = format!("{BIN_DIR}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if config.command.is_empty() {
        own_terminal(&mut command);
    }
    let started = command
        .current_dir("/")
        .env("PATH", path)
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("LANG", "C.UTF-8")
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::from(port.try_clone()?))
        .stdout(Stdio::from(port.try_clone()?))
        .stderr(Stdio::from(port.try_clone()?))
        .spawn();
    let code = match started {
        Ok(child) => wait_for(Pid::from_raw(i32::try_from(child.id())?))?,
        Err(error) => {
            writeln!(&port, "guest-init: {}: {error}", config.command.concat())?;
            127
        }
    };
    // The shell's end has hung up its terminal: then there is nothing to wait for.
    let _ = tcdrain(port.as_fd());
    writeln!(control, "exit {code}")?;
    if Path::new(POWER_OFF_PATH).exists() {
        writeln!(control, "powers off")?;
        tcdrain(control.as_fd())?;
        Command::new("systemctl").arg("poweroff").status()?;
        loop {
            // systemd ends us, like everything else.
            pause();
        }
    }
    tcdrain(control.as_fd())?;
    power_off()
}

/// Makes Ctrl-C work in the shell.
fn own_terminal(command: &mut Command) {
    #[expect(
        unsafe_code,
        reason = "a session of its own needs a call between fork and exec"
    )]
    // SAFETY: `setsid` and `ioctl` are plain system calls, allowed between fork
    // and exec. Standard input is the port by then.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 1) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

fn wait_for(child: Pid) -> Result<i32> {
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}

/// No echo, no translation of line ends.
fn raw(port: &File) -> Result<()> {
    let mut settings = tcgetattr(port)?;
    cfmakeraw(&mut settings);
    Ok(tcsetattr(port, SetArg::TCSANOW, &settings)?)
}

/// QEMU runs with `-no-reboot`, so a reboot ends it.
fn power_off() -> ! {
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => panic!("reboot: {error}"),
    }
}
