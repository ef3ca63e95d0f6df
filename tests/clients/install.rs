//! Fetches clients with the ordinary tools of their languages, once, and tells which versions came.
//!
//! Everything goes below `target/tmp/clients`; nothing of this machine is changed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::rows::{Client, Kind};
use crate::support::within;

/// Slow links and two busy cores.
const INSTALL_S: u64 = 900;
/// The newest of npm's clients want this much.
const NODE: u32 = 22;

/// A client that is ready to be started.
pub struct Installed {
    pub program: PathBuf,
    pub arguments: Vec<PathBuf>,
    /// Name and version of each package.
    pub versions: Vec<(String, String)>,
}

/// What is missing here, and how to get it.
pub type Missing = String;

/// One client is fetched at a time: several rows share an environment.
static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Fetches a client unless it is there.
pub async fn client(client: &Client, fresh: bool) -> Result<Installed, Missing> {
    let _making = MAKING.lock().await;
    let name = client.name.replace(' ', "-");
    match &client.kind {
        Kind::Python { packages } => python(client, &folder(&name), packages, fresh).await,
        Kind::Node { packages } => node(client, &folder(&name), packages, fresh).await,
        Kind::Rust { name } => rust(client, name, fresh).await,
    }
}

/// Where something of this name is kept.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name)
}

/// Where the programs of a language are.
pub fn sources(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(language)
}

/// Runs a command to its end; what it said, or why it failed with a hint.
pub async fn finish(command: &mut Command, hint: &str) -> Result<String, Missing> {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = within("fetching a client", INSTALL_S, running).await.map_err(|error| format!("{hint} ({error})"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    eprintln!("{command:?} failed:\n{complaint}");
    Err(format!("{hint} ({})", complaint.lines().last().unwrap_or("it said nothing")))
}

/// Whether a folder already has these packages; `fresh` empties it.
fn is_complete(folder: &Path, packages: &[&str], fresh: bool) -> bool {
    let mark = folder.join("complete");
    let same = std::fs::read_to_string(mark).is_ok_and(|installed| installed == packages.join(" "));
    if (!same || fresh) && folder.exists() {
        std::fs::remove_dir_all(folder).unwrap();
    }
    same && !fresh
}

fn mark_complete(folder: &Path, packages: &[&str]) {
    std::fs::write(folder.join("complete"), packages.join(" ")).unwrap();
}

/// The python of a virtual environment with these packages.
async fn environment(folder: &Path, packages: &[&str], fresh: bool) -> Result<PathBuf, Missing> {
    let python = folder.join("bin/python");
    if is_complete(folder, packages, fresh) {
        return Ok(python);
    }
    let hint = "needs python3 with venv and pip, and a package index that pip can reach \
                (Debian: apt-get install python3-venv python3-pip)";
    finish(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder), hint).await?;
    finish(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages), hint).await?;
    mark_complete(folder, packages);
    Ok(python)
}

async fn python(client: &Client, folder: &Path, packages: &[&str], fresh: bool) -> Result<Installed, Missing> {
    let python = environment(folder, packages, fresh).await?;
    let versions = listed(&python, packages).await?;
    let script = sources("python").join(client.program).with_extension("py");
    Ok(Installed { program: python, arguments: vec![script], versions })
}

/// The python of an environment of this name with these packages, and their versions.
pub async fn packages(name: &str, packages: &[&str], fresh: bool) -> Result<(PathBuf, Vec<(String, String)>), Missing> {
    let _making = MAKING.lock().await;
    let python = environment(&folder(name), packages, fresh).await?;
    let versions = listed(&python, packages).await?;
    Ok((python, versions))
}

/// Versions of these packages, and of what speaks HTTP underneath.
async fn listed(python: &Path, packages: &[&str]) -> Result<Vec<(String, String)>, Missing> {
    let listed = finish(Command::new(python).args(["-m", "pip", "list", "--format=json"]), "needs pip").await?;
    let listed: Value = serde_json::from_str(&listed).map_err(|error| error.to_string())?;
    let version = |name: &str| {
        let found = listed.as_array().into_iter().flatten().find(|package| package["name"] == name);
        found.and_then(|package| package["version"].as_str()).unwrap_or("?").to_owned()
    };
    let mut names: Vec<_> = packages.iter().map(|package| bare(package)).collect();
    if names[0] != "openai" && version("openai") != "?" {
        names.push("openai");
    }
    Ok(names.into_iter().map(|name| (name.to_owned(), version(name))).collect())
}

/// A package's name without the wish for a version.
fn bare(package: &str) -> &str {
    let end = package.char_indices().skip(1).find(|(_, c)| matches!(c, '=' | '>' | '<' | '[' | '@'));
    &package[..end.map_or(package.len(), |(at, _)| at)]
}

async fn node(client: &Client, folder: &Path, packages: &[&str], fresh: bool) -> Result<Installed, Missing> {
    let (node, npm_path) = runtime().await?;
    let hint = format!("needs npm and a registry that it can reach, and Node.js {NODE} (Debian: apt-get install npm)");
    if !is_complete(folder, packages, fresh) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("package.json"), "{\"private\":true,\"type\":\"module\"}").unwrap();
        let newest =
            packages.iter().map(|p| if p[1..].contains('@') { (*p).to_owned() } else { format!("{p}@latest") });
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-fund", "--no-audit", "--loglevel=error"]).args(newest);
        finish(npm.current_dir(folder).env("PATH", npm_path), &hint).await?;
        mark_complete(folder, packages);
    }
    let version = |name: &str| {
        let text = std::fs::read_to_string(folder.join("node_modules").join(name).join("package.json"));
        let package: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        package["version"].as_str().unwrap_or("?").to_owned()
    };
    let mut versions: Vec<_> = packages.iter().map(|p| (bare(p).to_owned(), version(bare(p)))).collect();
    versions
        .push(("node".to_owned(), said_version(&node).await.unwrap_or_default().trim_start_matches('v').to_owned()));
    // Packages are looked for beside the program that wants them.
    for file in ["steps.mjs".to_owned(), format!("{}.mjs", client.program)] {
        std::fs::copy(sources("node").join(&file), folder.join(&file)).unwrap();
    }
    Ok(Installed { program: node, arguments: vec![folder.join(format!("{}.mjs", client.program))], versions })
}

async fn said_version(node: &Path) -> Result<String, Missing> {
    finish(Command::new(node).arg("--version"), "needs Node.js").await.map(|said| said.trim().to_owned())
}

/// A Node.js that is new enough: this machine's, or the one that npm has as a package; and the `PATH` to find it.
async fn runtime() -> Result<(PathBuf, String), Missing> {
    let path = std::env::var("PATH").unwrap_or_default();
    let here = said_version(Path::new("node")).await.unwrap_or_default();
    let major = here.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= NODE) {
        return Ok((PathBuf::from("node"), path));
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let (folder, package) = (folder("node"), format!("node-linux-{architecture}"));
    let bin = folder.join("node_modules").join(&package).join("bin");
    if !bin.join("node").exists() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("package.json"), "{\"private\":true}").unwrap();
        let hint = format!("needs Node.js {NODE} or newer, or npm to fetch it (Debian: apt-get install npm)");
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-fund", "--no-audit", "--loglevel=error", &format!("{package}@{NODE}")]);
        finish(npm.current_dir(&folder), &hint).await?;
    }
    Ok((bin.join("node"), format!("{}:{path}", bin.display())))
}

async fn rust(client: &Client, name: &str, fresh: bool) -> Result<Installed, Missing> {
    let (manifest, target) = (sources("rust").join("Cargo.toml"), folder("rust"));
    let hint = "needs cargo and a crate registry that it can reach";
    if fresh || !manifest.with_file_name("Cargo.lock").exists() {
        finish(Command::new("cargo").args(["update", "--quiet", "--manifest-path"]).arg(&manifest), hint).await?;
    }
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--manifest-path"]).arg(&manifest).arg("--target-dir").arg(&target);
    finish(&mut build, hint).await?;
    let lock = std::fs::read_to_string(manifest.with_file_name("Cargo.lock")).unwrap_or_default();
    let after = lock.split(&format!("name = \"{name}\"\nversion = \"")).nth(1).unwrap_or("?");
    let version = after.split('"').next().unwrap_or("?").to_owned();
    let program = target.join("debug").join(client.program);
    Ok(Installed { program, arguments: Vec::new(), versions: vec![(name.to_owned(), version)] })
}
