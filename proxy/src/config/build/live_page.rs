//! Which headers the live page does not show.

use std::collections::BTreeSet;

use attache_filter::head::header_name;
use attache_service::config::{Errors, Located};

use crate::{
    config::LivePage,
    live::{MASKED, Masks},
};

pub(super) fn masks(raw: Option<&LivePage>, errors: &mut Errors) -> Masks {
    let mut names: BTreeSet<String> = MASKED.map(str::to_owned).into();
    let Some(raw) = raw else {
        return Masks::of(names);
    };
    for written in &raw.mask_headers {
        names.extend(name(written, errors));
    }
    for written in &raw.show_headers {
        let Some(name) = name(written, errors) else {
            continue;
        };
        if raw
            .mask_headers
            .iter()
            .any(|mask| mask.value.eq_ignore_ascii_case(&name))
        {
            errors.push(written, format!("`{name}` stands in `mask_headers` too"));
        } else if !names.remove(&name) {
            errors.push(written, format!("`{name}` is shown anyway"));
        }
    }
    Masks::of(names)
}

fn name(written: &Located<String>, errors: &mut Errors) -> Option<String> {
    let name = header_name(&written.value);
    if name.is_none() {
        errors.push(written, "is no header name");
    }
    Some(name?.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;

    fn planned(text: &str) -> Result<Masks, String> {
        let document = Document::parse("live.yaml", text).map_err(|e| e.to_string())?;
        let (raw, mut errors) = document.decode_partly::<LivePage>();
        let masks = masks(raw.as_ref(), &mut errors);
        errors.into_result(Some(masks)).map_err(|e| e.to_string())
    }

    #[test]
    fn names_are_added_and_taken_away() {
        let masks = planned("{ mask_headers: [X-Pin], show_headers: [Cookie] }").unwrap();
        let shown = ["x-pin", "authorization", "cookie", "accept"].map(|name| !masks.has(name));
        assert_eq!(shown, [false, false, true, true]);
    }

    #[test]
    fn what_changes_nothing_is_a_mistake() {
        for (text, mistake) in [
            ("{ show_headers: [accept] }", "`accept` is shown anyway"),
            (
                "{ mask_headers: [cookie], show_headers: [cookie] }",
                "stands in `mask_headers` too",
            ),
            ("{ mask_headers: ['a b'] }", "no header name"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(mistake), "{error}");
        }
    }
}
