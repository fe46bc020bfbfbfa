//! When to refuse requests for want of memory.

use std::time::Duration;

use attache_service::config::{Errors, Located};

use crate::{config::Overload, overload::memory_limit, plan::OverloadPlan};

/// The process's files are read each time.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn overload(raw: &Located<Overload>, errors: &mut Errors) -> Option<OverloadPlan> {
    let max = match (&raw.max_memory, &raw.max_memory_share) {
        (Some(size), None) => {
            if size.value.bytes() == 0 {
                errors.push(size, "must be more than 0: no request would be taken");
            }
            Some(size.value.bytes())
        }
        (None, Some(share)) => share_of_limit(share, errors),
        (Some(size), Some(_)) => {
            errors.push(size, "write `max_memory` or `max_memory_share`, not both");
            None
        }
        (None, None) => {
            errors.push(raw, "write `max_memory` or `max_memory_share`");
            None
        }
    };
    let mut plan = OverloadPlan::new(max?);
    if let Some(resume) = &raw.resume {
        check_part(resume, errors);
        plan.resume = resume.value;
    }
    if let Some(interval) = &raw.refresh_interval {
        if interval.value < LEAST_INTERVAL {
            errors.push(interval, "`refresh_interval` is at least 10ms");
        }
        plan.refresh_interval = interval.value;
    }
    Some(plan)
}

fn share_of_limit(share: &Located<f64>, errors: &mut Errors) -> Option<u64> {
    check_part(share, errors);
    let limit = memory_limit();
    if limit.is_none() {
        errors.push(
            share,
            "this process has no limit of memory to take a part of: write `max_memory`",
        );
    }
    // Between 0 and the limit.
    limit.map(|limit| (limit as f64 * share.value) as u64)
}

fn check_part(part: &Located<f64>, errors: &mut Errors) {
    if !(part.value > 0.0 && part.value <= 1.0) {
        errors.push(part, "is a part: more than 0, up to 1");
    }
}
