//! `cargo xtask deny`: the licences, bans and sources of `deny.toml`, checked
//! against what cargo would really build for any target.
//!
//! `cargo deny` checks more, but takes long to build; this is what every
//! change has to pass.

use std::collections::BTreeSet;
use std::fs;

use crate::{licence, process, workspace};

/// `cargo xtask deny`
pub(crate) fn check() -> Result<(), String> {
    let file = workspace::root().join("deny.toml");
    let rules = fs::read_to_string(&file).map_err(|why| format!("{}: {why}", file.display()))?;
    let allowed = strings(&rules, "allow = [")
        .ok_or_else(|| "deny.toml has no list of allowed licences".to_owned())?;
    let banned = strings(&rules, "deny = [")
        .ok_or_else(|| "deny.toml has no list of banned crates".to_owned())?;
    let tree = process::output(
        process::cargo()
            .current_dir(workspace::root())
            .args(["tree", "--workspace", "--target", "all", "--edges", "all"])
            .args(["--prefix", "none", "--format", "{p}\t{l}"]),
    )?;
    let crates: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| line.contains('\t'))
        .collect();
    let faults: Vec<String> = crates
        .iter()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(package, licence)| fault(package, licence, &allowed, &banned))
        .collect();
    if faults.is_empty() {
        println!(
            "{} crates: licences, bans and sources are fine",
            crates.len()
        );
        Ok(())
    } else {
        Err(format!("deny.toml forbids:\n- {}", faults.join("\n- ")))
    }
}

/// What is wrong with a package (`name v1.2.3`, then its origin in parentheses
/// unless that is the registry).
fn fault(package: &str, licence: &str, allowed: &[String], banned: &[String]) -> Option<String> {
    let name = package.split(' ').next().unwrap_or(package);
    if banned.iter().any(|banned| banned == name) {
        return Some(format!("{package}: it is banned"));
    }
    if package.contains("://") {
        return Some(format!("{package}: it comes from outside the registry"));
    }
    if !licence::satisfied(licence, allowed) {
        return Some(format!("{package}: licence `{licence}`"));
    }
    None
}

/// The first quoted string of each line of the list that starts with `key`.
fn strings(toml: &str, key: &str) -> Option<Vec<String>> {
    let body = toml.lines().skip_while(|line| *line != key).skip(1);
    let strings: Vec<String> = body
        .take_while(|line| *line != "]")
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect();
    (!strings.is_empty()).then_some(strings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_read_from_the_file() {
        let toml = "x = 1\nallow = [\n    \"MIT\",\n    # \"GPL\",\n]\ndeny = [\n    { crate = \"ring\", reason = \"no\" },\n]\n";
        assert_eq!(strings(toml, "allow = [").unwrap(), ["MIT"]);
        assert_eq!(strings(toml, "deny = [").unwrap(), ["ring"]);
        assert_eq!(strings(toml, "skip = ["), None);
    }

    #[test]
    fn each_kind_of_fault_is_found() {
        let (allowed, banned) = (vec!["MIT".to_owned()], vec!["ring".to_owned()]);
        let fault = |package, licence| fault(package, licence, &allowed, &banned);
        assert_eq!(fault("bytes v1.0.0", "MIT"), None);
        assert_eq!(fault("ours v1.0.0 (/src/ours)", "MIT"), None);
        assert!(fault("ring v0.17.0", "MIT").is_some());
        assert!(fault("bytes v1.0.0", "GPL-3.0").is_some());
        assert!(fault("bytes v1.0.0 (https://example.com/bytes#1)", "MIT").is_some());
    }
}
