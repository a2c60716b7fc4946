//! What `cargo xtask vm` tells the guest's init: one file for both sides.

use serde::{Deserialize, Serialize};

/// Where init finds the [`Config`], and the directory of all that comes with it.
pub const CONFIG_PATH: &str = "/guest/config.json";
/// The directory with `freezer-guard` and the test helpers, first in `PATH`.
pub const BIN_DIR: &str = "/guest/bin";
/// The Debian package of freezer-guard, in a guest with systemd.
pub const PACKAGE_PATH: &str = "/guest/freezer-guard.deb";
/// The container image of freezer-guard, in a guest with systemd.
pub const CONTAINER_IMAGE_PATH: &str = "/guest/freezer-guard.oci.tar";
/// The youki that is compiled for the suite of engines.
pub const YOUKI_PATH: &str = "/guest/bin/youki";
/// The kernel modules to load, in the order of their names.
pub const MODULES_DIR: &str = "/guest/modules";
/// The file that a test leaves if systemd shall power the guest off at the end.
pub const POWER_OFF_PATH: &str = "/run/power-off";
/// The port of the command's input and output.
pub const COMMAND_PORT: &str = "/dev/hvc0";
/// The port that says `up` once init runs and `exit N` at the end, and then `powers off` if
/// systemd does that.
pub const CONTROL_PORT: &str = "/dev/hvc1";

/// One boot of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// `6.1`, as `--kernel` has it.
    pub kernel: String,
    /// The cgroup layout.
    pub cgroup: Cgroup,
    /// The root file system.
    pub image: Image,
    /// Which of the integration tests there are.
    pub suite: Suite,
    /// Boot parameters that are part of what is tested.
    pub boot: Vec<String>,
    /// The command and its arguments; empty for a shell on a terminal.
    pub command: Vec<String>,
    /// Files besides [`BIN_DIR`] that were copied in, by their paths in the guest.
    pub copies: Vec<String>,
}

impl Config {
    /// `6.1 v2 initramfs lsm=lockdown,yama`: says in every test's output where it
    /// ran.
    pub fn label(&self) -> String {
        let mut words = vec![&*self.kernel, self.cgroup.name(), self.image.name()];
        words.extend(self.boot.iter().map(String::as_str));
        words.join(" ")
    }
}

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $type { $($(#[$variant_doc])* $variant,)+ }

        impl $type {
            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;
            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("one of: {}", [$($name),+].join(", "))),
                }
            }
        }
    };
}

named!(
    /// Which cgroup hierarchies the guest mounts.
    Cgroup {
        /// The v1 hierarchies alone, the freezer among them.
        V1 = "v1",
        /// The one v2 hierarchy.
        V2 = "v2",
        /// The v1 hierarchies, and v2 at `/sys/fs/cgroup/unified`.
        Hybrid = "hybrid",
    }
);

named!(
    /// A part of the tests: `integration/table.rs` lists the contents of each.
    Suite {
        /// How far protections go, and what `doctor` says.
        Levels = "levels",
        /// A kernel on which no guard can begin: each is refused with a clear error.
        Refused = "refused",
        /// The host's service and `checkpoint`, in a guest with systemd.
        Service = "service",
        /// A short test of each container engine and of the container image, in a guest with systemd.
        Short = "short",
        /// Real checkpointers and container engines, in a guest with systemd.
        Engines = "engines",
        /// The differences on a host with both hierarchies.
        Mixed = "mixed",
        /// What tells quickly whether a kernel will do.
        Core = "core",
        /// Everything that needs no systemd, no engine and no patience.
        Full = "full",
        /// Long tests: storms, many guards, CRIU without a guard, the benchmark.
        Soak = "soak",
    }
);

named!(
    /// What the guest's root file system is.
    Image {
        /// busybox, CRIU and strace, with our own init as pid 1.
        Initramfs = "initramfs",
        /// Debian with systemd.
        Systemd = "systemd",
    }
);
