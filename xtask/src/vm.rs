//! `cargo xtask vm`: boots a guest, runs a command in it, ends with its exit code.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use tempfile::TempDir;

use crate::{
    build::{Profile, Programs},
    config::{self, Cgroup, Config, Image, Suite},
    image::Archive,
    kernel::{self, Kernel},
    kvm,
    machine::Machine,
    setup::{self, Needs},
    tools,
};

/// Half of it is what its `/tmp` may hold.
const MEMORY_MIB: &str = "4096";
/// How a guest's CPUs are emulated: by one thread, in turns.
///
/// With a thread for each, one CPU may run into a breakpoint that another one has
/// removed meanwhile, since QEMU translated the code while it changed. The kernel
/// changes its code whenever somebody attaches a BPF program, and panics then
/// ("Oops: int3", seen on 6.12, 6.18 and 7.2). Two guests at a time keep two CPUs
/// of the host busy either way, and take a quarter less time like this.
const TCG: &str = "tcg,thread=single";

/// The most that an ordinary user's pipe may hold, bytes: as much as most guests write in all.
const PIPE_BYTES: i32 = 1 << 20;

/// A guest whose ports say nothing for this long is taken for dead.
const SILENCE: Duration = Duration::from_secs(180);
/// One whose clock counts instructions may have a second take a minute.
const LONG_SILENCE: Duration = Duration::from_secs(1800);

/// A KVM that works has reached init long before.
const KVM_PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Boot this kernel
    #[arg(long, default_value = "6.12", value_parser = kernel::names())]
    kernel: String,
    /// Use this root file system: initramfs or systemd
    #[arg(long, default_value = "initramfs")]
    image: Image,
    /// Mount cgroups in this layout: v1, v2 or hybrid
    #[arg(long, default_value = "v2")]
    cgroup: Cgroup,
    /// Activate these security modules (boot parameter lsm=)
    #[arg(long, value_name = "LIST")]
    lsm: Option<String>,
    /// Add these boot parameters
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Copy a file of this machine into the guest
    #[arg(long, value_name = "SRC:DST")]
    copy: Vec<String>,
    /// Run this command in the guest [default: a shell]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// A guest to boot.
pub(crate) struct Vm {
    pub(crate) config: Config,
    pub(crate) copies: Vec<(PathBuf, String)>,
    /// Whether its clock counts executed instructions; then it has one CPU.
    pub(crate) counts_instructions: bool,
}

impl Vm {
    pub(crate) fn new(kernel: &str, cgroup: Cgroup, image: Image, command: Vec<String>) -> Self {
        let config = Config {
            kernel: kernel.to_owned(),
            cgroup,
            image,
            suite: Suite::Full,
            boot: Vec::new(),
            command,
            copies: Vec::new(),
        };
        Self {
            config,
            copies: Vec::new(),
            counts_instructions: false,
        }
    }
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let mut vm = Vm::new(&args.kernel, args.cgroup, args.image, args.command);
    let boot = &mut vm.config.boot;
    boot.extend(args.lsm.map(|list| format!("lsm={list}")));
    boot.extend(args.cmdline);
    for copy in &args.copy {
        let (source, destination) = copy
            .split_once(':')
            .filter(|(_, destination)| destination.starts_with('/'))
            .with_context(|| {
                format!("--copy {copy}: write SRC:DST, where DST is an absolute path in the guest")
            })?;
        vm.copies.push((source.into(), destination.to_owned()));
    }
    let kernel = Kernel::named(&args.kernel)?;
    let needs = Needs::guests([(kernel, args.image)]);
    let programs = setup::guest_programs(&needs, |_| Profile::Release)?;
    let code = vm.boot(&programs, |line| println!("{line}"))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// What a running guest does, as it is noticed.
enum Event {
    /// A line that the command wrote.
    Line(String),
    /// The command's port was closed: QEMU has ended.
    Closed,
}

impl Vm {
    /// Boots the guest, hands on what its command writes, returns the
    /// command's exit code.
    ///
    /// # Errors
    /// When the guest cannot be started, panics, stalls or falls silent; the
    /// error then holds the end of its console.
    pub(crate) fn boot(&self, programs: &Programs, mut line: impl FnMut(&str)) -> Result<i32> {
        if !self.counts_instructions && !self.kernel()?.machine().is_foreign() && kvm::may_work() {
            if let Some(code) = self.boot_with("kvm", programs, &mut line)? {
                return Ok(code);
            }
            kvm::remember_it_is_broken()?;
            eprintln!(
                "KVM cannot boot a guest on this machine: continuing without KVM, which is slower"
            );
        }
        self.boot_with(TCG, programs, &mut line)?
            .context("the guest has not started")
    }

    /// `None`: with KVM, init was not reached.
    fn boot_with(
        &self,
        accel: &str,
        programs: &Programs,
        line: &mut impl FnMut(&str),
    ) -> Result<Option<i32>> {
        let dir = tempfile::Builder::new()
            .prefix("freezer-guard-vm-")
            .tempdir()?;
        let initrd = self.initrd(&dir, programs.of(self.kernel()?.machine())?)?;
        let interactive = self.config.command.is_empty();
        let mut qemu = self.qemu(accel, dir.path(), &initrd)?;
        qemu.stdin(if interactive {
            Stdio::inherit()
        } else {
            Stdio::null()
        });
        qemu.stdout(if interactive {
            Stdio::inherit()
        } else {
            Stdio::piped()
        });
        let kvm = accel == "kvm";
        if kvm {
            // What a broken KVM makes QEMU say helps nobody.
            qemu.stderr(Stdio::null());
        }
        let mut qemu = Killed(qemu.spawn().context("start QEMU")?);
        let control = dir.path().join("control");
        if interactive {
            qemu.0.wait()?;
        } else {
            let output = qemu.0.stdout.take().context("QEMU's output is a pipe")?;
            // QEMU drops the output of a virtconsole that a full pipe does not take.
            fcntl(&output, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).context("enlarge a pipe")?;
            let events = read_lines(output);
            if !self.follow(&events, dir.path(), kvm, line)? {
                return Ok(None);
            }
            qemu.0.wait()?;
        }
        let said = fs::read_to_string(&control).unwrap_or_default();
        if kvm && !said.contains("up") {
            return Ok(None);
        }
        let Some(code) = said.lines().find_map(|line| line.strip_prefix("exit ")) else {
            bail!(
                "the guest ended before its command exited\n{}",
                console(dir.path())
            );
        };
        if said.contains("powers off") {
            check_power_off(&console(dir.path()))?;
        }
        Ok(Some(code.trim().parse()?))
    }

    /// Hands on lines until QEMU closes the port; `false` when KVM shows no life.
    fn follow(
        &self,
        events: &Receiver<Event>,
        dir: &Path,
        kvm: bool,
        line: &mut impl FnMut(&str),
    ) -> Result<bool> {
        let start = Instant::now();
        let mut last_sign = Instant::now();
        let mut console_size = 0;
        loop {
            match events.recv_timeout(Duration::from_secs(1)) {
                Ok(Event::Line(text)) => {
                    last_sign = Instant::now();
                    line(&text);
                }
                Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => return Ok(true),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let size = fs::metadata(dir.join("console")).map_or(0, |metadata| metadata.len());
            if size != console_size {
                console_size = size;
                last_sign = Instant::now();
            }
            let up = || fs::metadata(dir.join("control")).is_ok_and(|file| file.len() > 0);
            if kvm && start.elapsed() > KVM_PATIENCE && !up() {
                return Ok(false);
            }
            let silence = match self.counts_instructions {
                true => LONG_SILENCE,
                false => SILENCE,
            };
            ensure!(
                last_sign.elapsed() < silence,
                "the guest ({}) has written nothing for {} s\n{}",
                self.config.label(),
                silence.as_secs(),
                console(dir)
            );
        }
    }

    fn kernel(&self) -> Result<&'static Kernel> {
        Kernel::named(&self.config.kernel)
    }

    /// The kernel's command line.
    fn command_line(&self, machine: &Machine) -> String {
        let console = format!("console={}", machine.console);
        let mut cmdline = vec![
            &*console,
            "quiet",
            "panic=-1",
            "oops=panic",
            "sysctl.kernel.panic_on_rcu_stall=1",
            "net.ifnames=0",
            // It would hang up the command's port.
            "systemd.getty_auto=no",
        ];
        if self.config.image == Image::Systemd {
            cmdline.extend([
                "systemd.show_status=false",
                "systemd.default_device_timeout_sec=5",
            ]);
            match self.config.cgroup {
                Cgroup::V1 => cmdline.extend([
                    "systemd.unified_cgroup_hierarchy=0",
                    "systemd.legacy_systemd_cgroup_controller=1",
                ]),
                Cgroup::V2 => cmdline.push("systemd.unified_cgroup_hierarchy=1"),
                Cgroup::Hybrid => cmdline.extend([
                    "systemd.unified_cgroup_hierarchy=0",
                    "systemd.legacy_systemd_cgroup_controller=0",
                ]),
            }
        }
        cmdline.extend(self.config.boot.iter().map(String::as_str));
        cmdline.join(" ")
    }

    fn qemu(&self, accel: &str, dir: &Path, initrd: &Path) -> Result<Command> {
        let kernel = self.kernel()?;
        let machine = kernel.machine();
        let file = |prefix: &str, name: &str| {
            let mut value = OsString::from(prefix);
            value.push(dir.join(name));
            value
        };
        let mut qemu = tools::qemu(machine);
        let cpus = if self.counts_instructions { "1" } else { "2" };
        qemu.args(machine.board)
            .args(["-accel", accel, "-smp", cpus, "-m", MEMORY_MIB])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &self.command_line(machine)])
            .arg("-serial")
            .arg(file("file:", "console"))
            // `COMMAND_PORT`, `CONTROL_PORT`
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", "stdio,id=command,signal=off"])
            .args(["-device", "virtconsole,chardev=command", "-chardev"])
            .arg(file("file,id=control,path=", "control"))
            .args(["-device", "virtconsole,chardev=control"]);
        if self.counts_instructions {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        if self.config.image == Image::Systemd {
            let disk = kernel.userland.disk();
            qemu.arg("-drive").arg(format!(
                "file={},format=raw,if=virtio,snapshot=on",
                disk.display()
            ));
        }
        Ok(qemu)
    }

    /// The root of the guest or what leads to it: our programs, the modules,
    /// the copies and the configuration.
    fn initrd(&self, dir: &TempDir, programs: &[PathBuf]) -> Result<PathBuf> {
        let path = dir.path().join("initrd");
        let mut archive = Archive::create(&path)?;
        archive.folder("guest")?;
        archive.folder("guest/bin")?;
        archive.folder("guest/modules")?;
        for program in programs {
            let name = program
                .file_name()
                .context("a program has a name")?
                .to_string_lossy();
            let inside = match name.as_ref() {
                "guest-init" => "init".to_owned(),
                name => format!("guest/bin/{name}"),
            };
            archive.file(&inside, program)?;
        }
        archive.symlink("guest/bin/guest-init", "/init")?;
        let kernel = self.kernel()?;
        for module in kernel.modules()? {
            let name = module
                .file_name()
                .context("a module has a name")?
                .to_string_lossy();
            archive.file(&format!("guest/modules/{name}"), &module)?;
        }
        let mut config = self.config.clone();
        for (source, destination) in &self.copies {
            let inside = destination.trim_start_matches('/');
            archive.parents(inside)?;
            archive.file(inside, source)?;
            config.copies.push(destination.clone());
        }
        let inside = config::CONFIG_PATH.trim_start_matches('/');
        archive.bytes(inside, 0o644, &serde_json::to_vec(&config)?)?;
        match self.config.image {
            Image::Initramfs => archive.append(&kernel.userland.initramfs())?,
            Image::Systemd => archive.finish()?,
        }
        Ok(path)
    }
}

/// A QEMU that does not outlive us.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has ended already, or nobody is left to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_lines(output: impl std::io::Read + Send + 'static) -> Receiver<Event> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader
            .read_until(b'\n', &mut bytes)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&bytes);
            if sender
                .send(Event::Line(text.trim_end_matches(['\n', '\r']).to_owned()))
                .is_err()
            {
                return;
            }
            bytes.clear();
        }
        // The other side may be gone: then nobody asks.
        let _ = sender.send(Event::Closed);
    });
    receiver
}

/// Checks what `systemd-shutdown` has written on the console: there were processes left, it could
/// kill all of them, and unmount all file systems.
fn check_power_off(console: &str) -> Result<()> {
    ensure!(
        console.contains("Waiting for process")
            && console.contains("All filesystems unmounted")
            && !console.contains("Could not kill"),
        "at the power-off, systemd could not end all processes or unmount all file systems\n{console}"
    );
    Ok(())
}

/// The end of what the kernel wrote.
fn console(dir: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(dir.join("console")) {
        // Whatever could be read is shown.
        let _ = file.read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let end = &lines[lines.len().saturating_sub(120)..];
    format!("the last lines on its console:\n{}", end.join("\n"))
}
