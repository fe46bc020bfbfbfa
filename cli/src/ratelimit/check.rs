//! `attache ratelimit check`.

use std::fmt::Write as _;

use attache_ratelimit::{
    Rules,
    config::{Allowance, Merge},
};
use attache_service::probe::counted;

use crate::{Failure, args::ratelimit::RatelimitCheckArgs, output};

/// Validates rule files and prints what they hold.
pub(crate) fn run(args: &RatelimitCheckArgs) -> Result<(), Failure> {
    let merge = match args.merge_domain_configs {
        true => Merge::Domains,
        false => Merge::Refuse,
    };
    match Rules::load_files(&args.paths, merge) {
        Ok(rules) => output(&summary(&rules)),
        Err(errors) => {
            eprintln!("{errors}");
            Err(Failure::Found)
        }
    }
}

/// A line for each domain, and what the reference's checker says.
fn summary(rules: &Rules) -> String {
    let mut domains: Vec<&str> = rules.domains().collect();
    domains.sort_unstable();
    let mut text = String::new();
    for domain in domains {
        let limits = || {
            let rules = rules.iter().map(|(_, rule)| rule);
            rules.filter(|rule| &*rule.domain == domain)
        };
        let mut notes = Vec::new();
        let unlimited = limits().filter(|rule| rule.allowance == Allowance::Unlimited);
        let shadow = limits().filter(|rule| rule.shadow_mode);
        let quota = limits().filter(|rule| rule.quota_mode);
        for (count, what) in [
            (unlimited.count(), "unlimited"),
            (shadow.count(), "in shadow mode"),
            (quota.count(), "in quota mode"),
        ] {
            if count > 0 {
                notes.push(format!("{count} {what}"));
            }
        }
        let notes = match notes.is_empty() {
            true => String::new(),
            false => format!(" ({})", notes.join(", ")),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{domain}: {}{notes}",
            counted(limits().count(), "limit")
        );
    }
    let _ = writeln!(text, "all rate limit configs ok");
    text
}
