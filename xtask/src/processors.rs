//! Building programs in other languages: the example processors, by the commands of their
//! READMEs, and what the tests have: a control plane, and clients of gRPC-Web.
//!
//! Each is copied to a folder of `target` and built there, so that nothing is left beside the
//! sources. That of a processor, `target/processors/<language>`, lies as deep as the example's
//! own: the paths to our `.proto` files hold in both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::{process, sources, workspace};

/// An example in another language.
struct Language {
    /// Its folder in `examples/processors`.
    name: &'static str,
    /// What people call it.
    title: &'static str,
    /// The commands that build it.
    build: &'static [&'static str],
}

const LANGUAGES: &[Language] = &[
    Language {
        name: "go",
        title: "Go",
        build: &["go build -o processors ."],
    },
    Language {
        name: "python",
        title: "Python",
        build: &[
            "python3 -m venv .venv",
            ".venv/bin/pip install -r requirements.txt",
            ".venv/bin/python -m grpc_tools.protoc -I ../../../proto/proto \
             --python_out=. --grpc_python_out=. \
             envoy/config/core/v3/base.proto envoy/type/v3/http_status.proto \
             envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto \
             envoy/service/ext_proc/v3/external_processor.proto",
        ],
    },
    Language {
        name: "node",
        title: "Node",
        build: &["npm ci"],
    },
    Language {
        name: "java",
        title: "Java",
        build: &["mvn package"],
    },
];

/// `cargo xtask processors`
pub(crate) fn build_all() -> Result<(), String> {
    build_examples()?;
    build_control_plane()?;
    build_grpc_web()
}

fn build_examples() -> Result<(), String> {
    // They mostly wait for downloads.
    let failed: Vec<String> = thread::scope(|scope| {
        let builds: Vec<_> = LANGUAGES
            .iter()
            .map(|language| scope.spawn(|| language.build()))
            .collect();
        let ends = builds.into_iter().zip(LANGUAGES);
        ends.filter_map(|(build, language)| {
            let end = build.join().unwrap_or_else(|_| Err("panic".to_owned()));
            end.err().map(|why| format!("{}: {why}", language.title))
        })
        .collect()
    });
    if failed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "cannot build the example processors\n{}",
        failed.join("\n")
    ))
}

/// Builds the control plane of the tests.
fn build_control_plane() -> Result<(), String> {
    build(
        "control plane",
        "tests/control-plane",
        "target/control-plane",
        &["go build -o control-plane ."],
    )
    .map_err(|why| format!("cannot build the control plane of the tests: {why}"))
}

/// Builds the clients of gRPC-Web of the tests.
fn build_grpc_web() -> Result<(), String> {
    build(
        "clients of gRPC-Web",
        "tests/grpc-web",
        "target/grpc-web",
        &["npm ci"],
    )
    .map_err(|why| format!("cannot build the clients of gRPC-Web of the tests: {why}"))
}

impl Language {
    fn build(&self) -> Result<(), String> {
        build(
            &format!("{} processors", self.title),
            &format!("examples/processors/{}", self.name),
            &format!("target/processors/{}", self.name),
            self.build,
        )
    }
}

/// Builds what is in the folder `from`, by these commands, in the folder `to`.
fn build(title: &str, from: &str, to: &str, commands: &[&str]) -> Result<(), String> {
    let (from, folder) = (workspace::root().join(from), workspace::root().join(to));
    let files = sources::files(&from).map_err(|why| format!("{}: {why}", from.display()))?;
    if sources::is_built(&files, &folder) {
        println!("{title}: {to}");
        return Ok(());
    }
    let start = Instant::now();
    let written = fresh(&folder).and_then(|()| {
        files.iter().try_for_each(|(path, content)| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&folder))?;
            fs::write(path, content)
        })
    });
    written.map_err(|why| format!("{}: {why}", folder.display()))?;
    for line in commands {
        process::output(&mut command(line, &folder))?;
    }
    sources::mark_built(&files, &folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let seconds = start.elapsed().as_secs();
    println!("{title}: {to} (built in {seconds} s)");
    Ok(())
}

/// An empty folder in place of whatever is there.
fn fresh(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => fs::create_dir_all(folder),
    }
}

/// The command of such a line, run in `folder`.
fn command(line: &str, folder: &Path) -> Command {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    // A program with a slash is one of the folder.
    let program = match program.contains('/') {
        true => folder.join(program),
        false => PathBuf::from(program),
    };
    let mut command = Command::new(program);
    command.args(words).current_dir(folder);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_readme_has_the_commands_that_build_its_example() {
        for language in LANGUAGES {
            let path = workspace::root()
                .join("examples/processors")
                .join(language.name)
                .join("README.md");
            // Long lines are broken there, as a shell allows.
            let text = fs::read_to_string(path).unwrap().replace('\\', " ");
            let words: Vec<&str> = text.split_whitespace().collect();
            for line in language.build {
                let line: Vec<&str> = line.split(' ').collect();
                let found = words.windows(line.len()).any(|window| window == line);
                assert!(found, "{}: {line:?}", language.name);
            }
        }
    }
}
