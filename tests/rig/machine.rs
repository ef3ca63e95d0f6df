//! A small virtual machine in software whose power can be cut: the rig's own driver at work on a data disk.
//!
//! Owns the kernel, the first file system and the emulator's arguments; never judges a disk. The disk is written through, so
//! what the kernel inside has not handed over is lost with its page cache, as with a real cut. Marks leave by a virtio port
//! whose kicks are served before the write inside returns: what was told is in the host's file, and nothing else is.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::case::Outcome;

const QEMU: &str = "qemu-system-x86_64";
const TOOLS: [&str; 7] = [QEMU, "busybox", "cpio", "strip", "ldd", "mkfs.ext4", "setpriv"];
const TOOLS_FROM: &str = "apt-get install qemu-system-x86 busybox-static cpio binutils libc-bin e2fsprogs util-linux";
const KERNEL_FROM: &str = "apt-get install linux-image-cloud-amd64, or a package that `dpkg-deb -x` unpacked into";
/// In the order in which they need each other; what a kernel has built in has no file.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "drivers/char/virtio_console",
];
/// Kernel, stripped driver and a page cache that never needs to write back early.
const MEMORY_MIB: &str = "384";
/// The driver's own cap is 64 MiB, with its log and the file system's journal on top.
pub const DISK_BYTES: u64 = 160 << 20;
/// Room for marks behind the file system of a recorded disk: some 30,000 of a block each.
const MARKS_BYTES: u64 = 16 << 20;
/// More rows than any cycle lives to see.
const ROWS: u64 = 1_000_000;
/// What the console shows once the driver is about to start.
const BEGUN: &str = "rig: begin";
const INIT: &str = "#!/bin/busybox sh
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
for module in /modules/*; do busybox insmod $module; done
busybox mount -t ext4 -o ${RIG_MOUNT:-rw} /dev/vda /data || busybox poweroff -f
export RIG_DIR=/data RIG_MARKS=${RIG_MARKS:-$(echo /dev/vport*p1)}
[ -e $RIG_MARKS ] || busybox poweroff -f
echo 'rig: begin'
/bin/rig --drive $RIG_WORKLOAD
echo \"rig: the driver ended with $?\"
busybox poweroff -f
";

/// Everything that a machine starts with but its disk.
pub struct Machine {
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// A machine at work; its power goes with the value.
pub struct Running {
    qemu: Child,
    marks: PathBuf,
    console: PathBuf,
}

impl Machine {
    /// Packs the first file system into `folder`.
    pub fn build(folder: &Path) -> Result<Machine, Outcome> {
        let missing: Vec<&str> = TOOLS.into_iter().filter(|name| program(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(Outcome::Missing(format!("{}: {TOOLS_FROM}", missing.join(", "))));
        }
        let unpacked = std::env::var_os("RIG_KERNEL")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel"), PathBuf::from);
        let Some((kernel, modules)) = [unpacked.as_path(), Path::new("/")].into_iter().find_map(kernel_in) else {
            let wanted = format!("a kernel with its modules: {KERNEL_FROM} {} (or $RIG_KERNEL)", unpacked.display());
            return Err(Outcome::Missing(wanted));
        };
        let initramfs = folder.join("initramfs");
        let packed = pack(&folder.join("machine"), &modules, &initramfs);
        packed.map_err(|fault| Outcome::Missing(format!("no first file system: {fault}")))?;
        Ok(Machine { kernel, initramfs })
    }

    /// Makes an empty data disk.
    pub fn disk(at: &Path) -> io::Result<()> {
        File::create(at)?.set_len(DISK_BYTES)?;
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(at))
    }

    /// Switches a machine on: this workload on this disk, its requests numbered from `first`.
    pub fn start(&self, disk: &Path, workload: &str, first: u64, name: &Path) -> io::Result<Running> {
        let drive = format!("file={},format=raw,if=none,id=disk,cache=writethrough", disk.display());
        let words = format!("RIG_WORKLOAD={workload} RIG_ROWS={ROWS} RIG_FIRST={first}");
        self.switch_on(&["-drive".to_owned(), drive], &words, name)
    }

    /// Lets one do so many rows on a disk with a cache, which keeps what it is given until it is told to flush. Everything the
    /// disk is given and told is in `log`, the marks too, behind `DISK_BYTES`.
    pub fn record(&self, disk: &Path, log: &Path, workload: &str, (rows, mount): (u64, &str)) -> io::Result<Running> {
        File::options().write(true).open(disk)?.set_len(DISK_BYTES + MARKS_BYTES)?;
        File::create(log)?;
        let nodes = [
            format!("driver=file,node-name=under,filename={}", disk.display()),
            format!("driver=file,node-name=log,filename={}", log.display()),
            "driver=blklogwrites,node-name=disk,file=under,log=log".to_owned(),
        ];
        let nodes: Vec<String> = nodes.into_iter().flat_map(|node| ["-blockdev".to_owned(), node]).collect();
        let words = format!(
            "RIG_WORKLOAD={workload} RIG_ROWS={rows} RIG_MARKS=/dev/vda RIG_MARKS_AT={DISK_BYTES} RIG_MOUNT={mount}"
        );
        self.switch_on(&nodes, &words, &log.with_extension("run"))
    }

    /// A machine with these disks; of what the kernel does not know itself, `words` become the environment of its first process.
    fn switch_on(&self, disks: &[String], words: &str, name: &Path) -> io::Result<Running> {
        let (marks, console) = (name.with_extension("marks"), name.with_extension("console"));
        let mut line = format!("console=ttyS0 quiet panic=-1 random.trust_cpu=on {words}");
        if let Ok(plant) = std::env::var("HOLDFAST_PLANT") {
            let _ = write!(line, " HOLDFAST_PLANT={plant}");
        }
        // A rig that is stopped leaves no machine behind.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", QEMU]);
        qemu.args(["-accel", "tcg", "-cpu", "qemu64,+rdrand", "-m", MEMORY_MIB, "-nodefaults", "-no-user-config"]);
        qemu.args(["-no-reboot", "-display", "none", "-append", &line]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        qemu.args(disks).args(["-device", "virtio-blk-pci,drive=disk"]);
        qemu.args(["-chardev", &format!("file,id=marks,path={}", marks.display())]);
        qemu.args(["-device", "virtio-serial-pci,ioeventfd=off", "-device", "virtserialport,chardev=marks,nr=1"]);
        qemu.args(["-serial", &format!("file:{}", console.display())]);
        let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Running { qemu, marks, console })
    }
}

impl Running {
    /// What the driver told so far, whole lines only.
    pub fn marks(&self) -> String {
        let mut text = fs::read_to_string(&self.marks).unwrap_or_default();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    /// Whether the machine came up as far as the driver.
    pub fn begun(&self) -> bool {
        fs::read_to_string(&self.console).is_ok_and(|text| text.contains(BEGUN))
    }

    /// Whether it has switched itself off.
    pub fn over(&mut self) -> bool {
        !matches!(self.qemu.try_wait(), Ok(None))
    }

    /// The end of what its console shows.
    pub fn last_words(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(4)..].join(" / ")
    }

    /// Pulls the plug.
    pub fn cut(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cut();
    }
}

/// The newest kernel below `root` whose modules are there, and their folder.
fn kernel_in(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut names: Vec<String> = fs::read_dir(root.join("boot"))
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
        .collect();
    names.sort();
    names.into_iter().rev().find_map(|name| {
        let modules = root.join("lib/modules").join(&name).join("kernel");
        modules.is_dir().then(|| (root.join("boot").join(format!("vmlinuz-{name}")), modules))
    })
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(name)).find(|path| path.is_file())
}

/// This program as the driver, the libraries that it names, busybox, the modules and the first script.
fn pack(root: &Path, modules: &Path, archive: &Path) -> io::Result<()> {
    for folder in ["bin", "dev", "proc", "data", "modules"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let driver = std::env::current_exe()?;
    let busybox = program("busybox").ok_or(io::ErrorKind::NotFound)?;
    done(Command::new("strip").arg("-o").arg(root.join("bin/rig")).arg(&driver))?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for needy in [&driver, &busybox] {
        // A static program names none, and `ldd` fails on it.
        let named = Command::new("ldd").arg(needy).output()?;
        for library in String::from_utf8_lossy(&named.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            let target = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap_or(root))?;
            fs::copy(library, target)?;
        }
    }
    for (n, name) in MODULES.into_iter().enumerate() {
        let module = modules.join(name).with_extension("ko");
        if module.is_file() {
            fs::copy(module, root.join(format!("modules/{n}.ko")))?;
        }
    }
    fs::write(root.join("init"), INIT)?;
    done(Command::new("chmod").arg("755").arg(root.join("init")))?;
    let script = "cd \"$0\" && find . | cpio -o -H newc --quiet > \"$1\"";
    done(Command::new("sh").args(["-c", script]).arg(root).arg(archive))
}

fn done(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    let said = || String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    if output.status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {}", said()))) }
}
