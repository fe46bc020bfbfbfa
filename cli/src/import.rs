//! `attache import`.

use std::fmt::Write as _;

use attache_proxy::import::{self, Effect, Imported, Unprotected};

use crate::{
    Failure,
    args::{ImportArgs, ImportSource},
    findings, output,
};

/// Prints another proxy's configuration in ours, and lists what was left out.
pub(crate) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let ImportSource::Envoy {
        file,
        output: target,
        all,
        unprotected,
    } = &args.source;
    let unprotected = match unprotected {
        true => Unprotected::Kept,
        false => Unprotected::LeftOut,
    };
    let imported = import::bootstrap(&import::load(file)?, unprotected)?;
    findings::list(&imported.dropped, *all);
    let text = document(&imported, &file.display().to_string());
    match target {
        Some(path) => std::fs::write(path, text)
            .map_err(|error| Failure::run(format!("cannot write {}: {error}", path.display())))?,
        None => output(&text)?,
    }
    findings::judge(&imported.dropped)
}

/// The configuration, with what it does not say at its head.
fn document(imported: &Imported, file: &str) -> String {
    let mut text = format!("# Made from {file}.\n");
    let lost = |effect: Effect| imported.dropped.iter().filter(move |d| d.effect == effect);
    for (effect, head) in [
        (
            Effect::Protection,
            "Not done here, and it protected something:",
        ),
        (Effect::Behaviour, "Done otherwise, or not at all:"),
    ] {
        for (index, dropped) in lost(effect).enumerate() {
            if index == 0 {
                let _ = writeln!(text, "# {head}");
            }
            // A sentence may quote what stands in the file.
            let why = dropped.why.replace(['\n', '\r'], " ");
            let _ = writeln!(
                text,
                "# - {} (line {}): {why}",
                dropped.path,
                dropped.at.line()
            );
        }
    }
    text.push_str(&import::to_yaml(&imported.config));
    text
}
