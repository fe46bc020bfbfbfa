//! `cargo xtask dist`: the program as it is released, in `target/dist/out`.
//!
//! It is one static file that runs in an empty root: the C library is linked in, and asks no files
//! of the machine but those that name hosts. The same sources and tools give the same bytes,
//! wherever they lie.

mod empty_root;
mod notices;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, workspace};

/// What the program is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The program's package and file.
const PROGRAM: &str = "attache";
/// Most bytes of the program, without and with policies in WebAssembly.
const MOST: (u64, u64) = (12_000_000, 30_000_000);

/// What goes into the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Everything but WebAssembly.
    Plain,
    /// Also policies that `opa build -t wasm` has compiled.
    Wasm,
}

impl Variant {
    fn of(args: &[String]) -> Result<Self, String> {
        match args {
            [] => Ok(Self::Plain),
            [one] if one == "--opa-wasm" => Ok(Self::Wasm),
            [other, ..] => Err(format!("`{other}` is not expected: only `--opa-wasm` is")),
        }
    }

    fn features(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Wasm => &["--features", "opa-wasm"],
        }
    }

    fn most(self) -> u64 {
        match self {
            Self::Plain => MOST.0,
            Self::Wasm => MOST.1,
        }
    }
}

/// `cargo xtask dist`
pub(crate) fn dist(args: &[String]) -> Result<(), String> {
    let variant = Variant::of(args)?;
    let root = workspace::root();
    let folder = workspace::target().join("dist").join("out");
    fs::create_dir_all(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let built = build(&root, variant)?;
    let program = folder.join(PROGRAM);
    strip(&built, &program)?;
    copy(&root.join("LICENSE"), &folder.join("LICENSE"))?;
    write(&folder, "NOTICES.txt", &notices::all(variant.features())?)?;
    write(&folder, "VERSION", &version(&root))?;
    let sum = process::output(Command::new("sha256sum").arg(PROGRAM).current_dir(&folder))?;
    write(&folder, "attache.sha256", &sum)?;
    names_no_place(&program, &root)?;
    println!("{}", empty_root::try_in(&folder, &program)?);
    let size = fs::metadata(&program)
        .map_err(|why| format!("{}: {why}", program.display()))?
        .len();
    println!("{}: {size} bytes", program.display());
    if size > variant.most() {
        println!("larger than the {} bytes that are wanted", variant.most());
    }
    Ok(())
}

/// Builds the program; gives its path.
fn build(root: &Path, variant: Variant) -> Result<PathBuf, String> {
    let loader = loader(root)?;
    let mut cargo = process::cargo();
    cargo
        .current_dir(root)
        .args(["rustc", "--locked", "--profile", "dist"])
        .args(["--target", TARGET, "--package", PROGRAM, "--bin", PROGRAM])
        .args(variant.features())
        .env("CARGO_INCREMENTAL", "0")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            flags(root),
        )
        .arg("--")
        .args(["-C", "link-arg=-Wl,--wrap=__libc_dlopen_mode"])
        .args(["-C", "link-arg=-Wl,--wrap=dlsym", "-C"])
        .arg(format!("link-arg={}", loader.display()));
    process::run(&mut cargo)?;
    Ok(workspace::target().join(TARGET).join("dist").join(PROGRAM))
}

/// The flags for every crate: a static program, in whose file the addresses of a vtable take a bit
/// each and not 24 bytes, and no path of this machine in it.
fn flags(root: &Path) -> String {
    format!(
        "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
         --remap-path-prefix={}=/crates --remap-path-prefix={}=/attache",
        notices::crates().display(),
        root.display()
    )
}

/// Compiles what stands for the loader of shared libraries.
fn loader(root: &Path) -> Result<PathBuf, String> {
    let object = workspace::target().join("loader.o");
    process::output(
        Command::new("cc")
            .args(["-O2", "-fPIC", "-c", "-o"])
            .arg(&object)
            .arg(root.join("xtask/src/dist/loader.c")),
    )?;
    Ok(object)
}

/// The version, and the commit where there is one.
fn version(root: &Path) -> String {
    let commit = process::output(
        Command::new("git")
            .current_dir(root)
            .args(["rev-parse", "HEAD"]),
    );
    match commit {
        Ok(commit) => format!("{} {commit}", env!("CARGO_PKG_VERSION")),
        Err(_) => format!("{}\n", env!("CARGO_PKG_VERSION")),
    }
}

/// An error if the program names a folder of this machine.
fn names_no_place(program: &Path, root: &Path) -> Result<(), String> {
    let bytes = fs::read(program).map_err(|why| format!("{}: {why}", program.display()))?;
    for place in [root.to_owned(), notices::crates()] {
        let place = place.display().to_string();
        if bytes
            .windows(place.len())
            .any(|window| window == place.as_bytes())
        {
            return Err(format!("the program names `{place}`"));
        }
    }
    Ok(())
}

/// Leaves symbols out: a seventh of the file.
fn strip(from: &Path, to: &Path) -> Result<(), String> {
    process::output(Command::new("strip").arg("-o").arg(to).arg(from)).map(|_| ())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|why| format!("{} to {}: {why}", from.display(), to.display()))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|why| format!("{}: {why}", path.display()))
}
