//! What stands in `packaging/`: the tools of those who read it find no fault, and every
//! configuration in it is one of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{attache, folder, outcome, path, peers::program, workspace};

/// Where the units have the program.
const INSTALLED: &str = "/usr/local/bin/attache";

fn packaging(folder: &str) -> Vec<PathBuf> {
    let folder = workspace().join("packaging").join(folder);
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn name(file: &Path) -> &str {
    file.file_name().unwrap().to_str().unwrap()
}

/// Runs a tool; panics with what it says unless it is content.
#[track_caller]
fn content(command: &mut Command) -> String {
    let ended = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command:?}:\n{said}");
    said.into_owned()
}

#[test]
fn kubernetes_takes_the_manifests() {
    let Some(validate) = program("ATTACHE_KUBERNETES_VALIDATE", "kubernetes-validate") else {
        return;
    };
    // The oldest that has all that is in them, and the newest.
    for version in ["1.30", "1.37"] {
        let mut command = Command::new(&validate);
        command.args(["--strict", "--kubernetes-version", version]);
        content(command.args(packaging("kubernetes")));
    }
}

/// The files of a manifest's configuration: texts (`NAME.yaml: |`) below `data:`.
fn configurations(manifest: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    let data = manifest.lines().skip_while(|line| *line != "data:").skip(1);
    for line in data.take_while(|line| *line != "---") {
        if let Some(name) = line.strip_prefix("  ").and_then(|l| l.strip_suffix(": |")) {
            files.push((name.to_owned(), String::new()));
        } else {
            let (_, text) = files.last_mut().unwrap();
            *text += line.strip_prefix("    ").unwrap_or_default();
            *text += "\n";
        }
    }
    files
}

#[test]
fn the_configurations_in_the_manifests_are_valid() {
    for manifest in packaging("kubernetes") {
        let text = fs::read_to_string(&manifest).unwrap();
        let files = configurations(&text);
        assert!(!files.is_empty(), "{}", manifest.display());
        let mounted = folder(&[]);
        for (name, text) in &files {
            // Where the volume's items put it, if they say.
            let item = text_after(&manifest, &format!("key: {name}, path: "));
            let path = mounted.path().join(item.as_ref().unwrap_or(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let ended = outcome(&["check", &path(&mounted, "attache.yaml")]);
        assert_eq!(
            ended.code(),
            0,
            "{}: {}",
            manifest.display(),
            ended.stderr()
        );
    }
}

/// What stands in a file after `text`, up to the end of the value.
fn text_after(file: &Path, text: &str) -> Option<String> {
    let content = fs::read_to_string(file).unwrap();
    let rest = content.split_once(text)?.1;
    rest.split([' ', '}', '\n']).next().map(str::to_owned)
}

#[test]
fn systemd_takes_the_units() {
    let Some(analyze) = program("ATTACHE_SYSTEMD_ANALYZE", "systemd-analyze") else {
        return;
    };
    let units = folder(&[]);
    let mut verify = Command::new(&analyze);
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    for unit in packaging("systemd") {
        let text = fs::read_to_string(&unit).unwrap();
        let here = units.path().join(name(&unit));
        // It looks for the programs that units name.
        fs::write(
            &here,
            text.replace(INSTALLED, env!("CARGO_BIN_EXE_attache")),
        )
        .unwrap();
        verify.arg(here);
    }
    // It warns of what it does not know, and is content.
    assert_eq!(content(&mut verify), "");
    for unit in packaging("systemd") {
        if unit.extension().is_some_and(|kind| kind == "service") {
            let mut security = Command::new(&analyze);
            security.args(["security", "--offline=true", "--threshold=20"]);
            content(security.arg(units.path().join(name(&unit))));
        }
    }
}

#[test]
fn units_manifests_and_the_image_call_commands_that_there_are() {
    let mut calls = Vec::new();
    for unit in packaging("systemd") {
        let text = fs::read_to_string(&unit).unwrap();
        calls.extend(text.lines().filter_map(|line| {
            let (_, arguments) = line.split_once(&format!("={INSTALLED} "))?;
            Some(arguments.replace(['"', ','], ""))
        }));
    }
    for file in [
        packaging("kubernetes"),
        vec![workspace().join("packaging/Containerfile")],
    ]
    .concat()
    {
        let text = fs::read_to_string(&file).unwrap();
        calls.extend(text.lines().filter_map(|line| {
            let (_, call) = line
                .split_once("[/attache, ")
                .or(line.split_once("[\"/attache\", "))?;
            Some(call.split(']').next().unwrap().replace(['"', ','], ""))
        }));
    }
    assert!(calls.len() >= 12, "{calls:?}");
    for call in calls {
        // With this it is read as a whole, and then nothing is done.
        let ended = attache(&[])
            .args(call.split(' '))
            .arg("--help")
            .output()
            .unwrap();
        assert!(ended.status.success(), "{call}");
    }
}
