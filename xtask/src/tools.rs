//! Installing the programs that the tests and benchmarks need.
//!
//! A tool is looked for where it was put last time, then in each of its
//! sources in turn. Whatever is found must pass the tool's own version check
//! before it takes its place in `target/tools`, in one rename: a run that is
//! cut short, or two at once, leave no half-made tool.

use std::fs;
use std::path::{Path, PathBuf};

use crate::debian::Debian;
use crate::go::GoTool;
use crate::python::Python;
use crate::wheel::Wheel;
use crate::workspace;
use crate::{
    chromium, envoy, h2spec, kubernetes, memcached, nginx, opa, ratelimit, redis, systemd,
};

/// A program that we need and do not build.
pub(crate) struct Tool {
    /// Its file in `target/tools`.
    pub(crate) name: &'static str,
    /// What people call it.
    pub(crate) title: &'static str,
    /// Runs the program and tells its name and version, or why it won't do.
    pub(crate) check: fn(&Path) -> Result<String, String>,
    /// Where it may come from, best first.
    pub(crate) sources: &'static [Source],
}

/// Where a tool comes from.
pub(crate) enum Source {
    /// A program of this name on the machine's path.
    Path(&'static str),
    /// A pinned Python wheel that carries the program.
    Wheel(Wheel),
    /// Packages of the system that bring the program.
    Debian(Debian),
    /// A pinned Go module.
    Go(GoTool),
    /// Pinned Python packages.
    Python(Python),
}

/// The installed tools.
pub(crate) struct Tools {
    /// The pinned Envoy.
    pub(crate) envoy: PathBuf,
    /// A Redis or Valkey server.
    pub(crate) redis: PathBuf,
    /// A memcached.
    pub(crate) memcached: PathBuf,
    /// A browser.
    pub(crate) chromium: PathBuf,
    /// What drives it.
    pub(crate) chromedriver: PathBuf,
    /// The pinned Open Policy Agent.
    pub(crate) opa: PathBuf,
    /// The pinned reference of our rate limit service.
    pub(crate) ratelimit: PathBuf,
    /// The pinned conformance tests of HTTP/2.
    pub(crate) h2spec: PathBuf,
    /// An nginx.
    pub(crate) nginx: PathBuf,
    /// What holds manifests against the schemas of Kubernetes.
    pub(crate) kubernetes_validate: PathBuf,
    /// What checks units of systemd.
    pub(crate) systemd_analyze: PathBuf,
}

impl Tools {
    /// Makes sure that all tools are there, and says which they are.
    pub(crate) fn install() -> Result<Tools, String> {
        Ok(Tools {
            envoy: envoy::ENVOY.install()?,
            redis: redis::REDIS.install()?,
            memcached: memcached::MEMCACHED.install()?,
            chromium: chromium::CHROMIUM.install()?,
            chromedriver: chromium::DRIVER.install()?,
            opa: opa::OPA.install()?,
            ratelimit: ratelimit::RATELIMIT.install()?,
            h2spec: h2spec::H2SPEC.install()?,
            nginx: nginx::NGINX.install()?,
            kubernetes_validate: kubernetes::KUBERNETES_VALIDATE.install()?,
            systemd_analyze: systemd::SYSTEMD_ANALYZE.install()?,
        })
    }
}

impl Tool {
    /// Makes sure that the tool is there; gives its path.
    pub(crate) fn install(&self) -> Result<PathBuf, String> {
        let folder = workspace::tools();
        let place = folder.join(self.name);
        if place.exists()
            && let Ok(version) = (self.check)(&place)
        {
            println!("{version}: {}", shown(&place));
            return Ok(place);
        }
        let mut tried = String::new();
        for source in self.sources {
            match self.install_from(source, &folder, &place) {
                Ok(version) => {
                    println!("{version}: {} (installed: {source})", shown(&place));
                    return Ok(place);
                }
                Err(why) => tried = format!("{tried}\n- {source}: {why}"),
            }
        }
        Err(format!("cannot install {}; tried:{tried}", self.title))
    }

    fn install_from(&self, source: &Source, folder: &Path, place: &Path) -> Result<String, String> {
        let scratch = Scratch::new(folder, self.name)?;
        let program = match source {
            Source::Path(name) => link(name, &scratch.0)?,
            Source::Wheel(wheel) => wheel.unpack(&workspace::root(), &scratch.0)?,
            Source::Debian(debian) => {
                debian.install()?;
                link(debian.program, &scratch.0)?
            }
            Source::Go(tool) => tool.build(&workspace::root(), &scratch.0)?,
            Source::Python(python) => python.install(&workspace::root(), &scratch.0)?,
        };
        make_executable(&program)?;
        let version = (self.check)(&program)?;
        fs::rename(&program, place).map_err(|why| format!("{}: {why}", place.display()))?;
        Ok(version)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path(name) => write!(f, "{name} of this machine"),
            Source::Wheel(wheel) => write!(f, "the wheel of xtask/tools/{}", wheel.requirements),
            Source::Debian(debian) => {
                write!(
                    f,
                    "the packages {} of Debian",
                    debian.packages.join(" and ")
                )
            }
            Source::Go(tool) => write!(f, "built from xtask/tools/{}", tool.folder),
            Source::Python(python) => {
                write!(f, "the packages of xtask/tools/{}", python.requirements)
            }
        }
    }
}

/// A folder that goes away with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: &Path, name: &str) -> Result<Scratch, String> {
        let path = folder.join(format!(".{name}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is only clutter inside target/.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A link in `scratch` to the program `name` on the machine's path.
fn link(name: &str, scratch: &Path) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or("not on the path")?;
    let link = scratch.join("program");
    std::os::unix::fs::symlink(&found, &link).map_err(|why| format!("{name}: {why}"))?;
    Ok(link)
}

fn make_executable(program: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    if program.is_symlink() {
        return Ok(());
    }
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
        .map_err(|why| format!("{}: {why}", program.display()))
}

/// A path as people want to read it: from the workspace's root.
fn shown(path: &Path) -> String {
    let root = workspace::root();
    path.strip_prefix(&root)
        .unwrap_or(path)
        .display()
        .to_string()
}
