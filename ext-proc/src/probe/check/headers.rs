//! Header mutations, judged as Envoy applies them.

use std::borrow::Cow;

use attache_filter::mutation::{MutationRules, Operation, Verdict};
use attache_proto::{
    core::{HeaderMap, HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
    ext_proc::HeaderMutation,
};
use bytes::Bytes;
use http::HeaderName;

use crate::probe::code::Code;

/// Envoy's default limits of a header map, which mutations may not exceed.
const MAX_COUNT: usize = 100;
const MAX_BYTES: usize = 60 << 10;

/// What headers a mutation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Headers or trailers on their way.
    Message,
    /// Headers in a reply with CONTINUE_AND_REPLACE, where `:method` may always be set.
    Replaced,
    /// The headers of an answer to the caller.
    Immediate,
}

/// Header lines, names in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Vec<(String, Bytes)>);

/// Takes what is found: a code and what the processor did.
pub(super) type Found<'f> = &'f mut dyn FnMut(Code, String);

impl Lines {
    pub(super) fn of(map: Option<&HeaderMap>) -> Self {
        let lines = map.into_iter().flat_map(|map| &map.headers);
        Self(
            lines
                .map(|h| (h.key.clone(), h.raw_value.clone()))
                .collect(),
        )
    }

    /// The value of a name, if it stands there once or more.
    pub(super) fn get(&self, name: &str) -> Option<&Bytes> {
        self.0
            .iter()
            .find(|line| line.0 == name)
            .map(|line| &line.1)
    }

    /// `content-length` as a number.
    pub(super) fn content_length(&self) -> Option<u64> {
        std::str::from_utf8(self.get("content-length")?)
            .ok()?
            .parse()
            .ok()
    }

    /// Applies a mutation and reports what is wrong with it.
    pub(super) fn apply(
        &mut self,
        mutation: &HeaderMutation,
        target: Target,
        rules: &MutationRules,
        found: Found<'_>,
    ) {
        for (field, count) in [
            ("set_headers", mutation.set_headers.len()),
            ("remove_headers", mutation.remove_headers.len()),
        ] {
            if count > MAX_COUNT {
                found(Code::TooManyOperations, format!("It gave {count} {field}."));
            }
        }
        for name in &mutation.remove_headers {
            self.remove(name, rules, found);
        }
        let before = self.clone();
        for option in &mutation.set_headers {
            self.set(option, &before, target, rules, found);
        }
        let bytes: usize = self
            .0
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if !mutation.set_headers.is_empty() && (self.0.len() > MAX_COUNT || bytes > MAX_BYTES) {
            let did = format!(
                "Its changes lead to {} headers of {bytes} bytes.",
                self.0.len()
            );
            found(Code::TooLarge, did);
        }
    }

    fn remove(&mut self, name: &str, rules: &MutationRules, found: Found<'_>) {
        let lower = name.to_ascii_lowercase();
        if !is_name(&lower) {
            let did = format!("It removed {}, which is no header name.", quote(name));
            return found(
                match name {
                    "" => Code::EmptyName,
                    _ => Code::InvalidName,
                },
                did,
            );
        }
        if rules.check(Operation::Remove, &lower) != Verdict::Allow {
            let did = format!("It removed {}.", quote(name));
            return found(refusal(Operation::Remove, &lower), did);
        }
        self.0.retain(|line| line.0 != lower);
    }

    fn set(
        &mut self,
        option: &HeaderValueOption,
        before: &Self,
        target: Target,
        rules: &MutationRules,
        found: Found<'_>,
    ) {
        let Some(header) = &option.header else {
            return found(
                Code::NoHeader,
                "It gave an entry without a header.".to_owned(),
            );
        };
        let name = header.key.to_ascii_lowercase();
        if !check_text(header, &name, found) {
            return;
        }
        let append = option.append == Some(true);
        check_action(option, &name, before, found);
        if target == Target::Immediate && (name == ":status" || name == "content-length") {
            let did = format!("It set {} in an immediate response.", quote(&name));
            return found(Code::ImmediateHeaders, did);
        }
        let operation = if append {
            Operation::Append
        } else {
            Operation::Set
        };
        let always = target == Target::Replaced && name == ":method" && !append;
        let allowed = always || rules.check(operation, &name) == Verdict::Allow;
        if !allowed || !is_fitting(&name, &header.raw_value) {
            let what = if append { "appended to" } else { "set" };
            let did = match name.starts_with(':') {
                true => format!("It {what} {} ({}).", quote(&name), shown(&header.raw_value)),
                false => format!("It {what} {}.", quote(&name)),
            };
            let code = match allowed {
                true => Code::NeverAllowed,
                false => refusal(operation, &name),
            };
            return found(code, did);
        }
        match name.as_str() {
            "transfer-encoding" => {
                found(
                    Code::TransferEncoding,
                    "It set transfer-encoding.".to_owned(),
                );
            }
            "connection" | "keep-alive" | "proxy-connection" => {
                found(Code::ConnectionHeader, format!("It set {name}."));
            }
            ":path" if !header.raw_value.starts_with(b"/") => {
                let did = format!("It set :path to {}.", shown(&header.raw_value));
                found(Code::BadPath, did);
            }
            _ => {}
        }
        if !append {
            self.0.retain(|line| line.0 != name);
        }
        self.0.push((name, header.raw_value.clone()));
    }
}

/// Whether name and value are such that the rest needs looking at.
fn check_text(header: &HeaderValue, name: &str, found: Found<'_>) -> bool {
    if name.is_empty() {
        found(
            Code::EmptyName,
            "It set a header without a name.".to_owned(),
        );
        return false;
    }
    if !is_name(name) {
        let did = format!("It set {}, which is no header name.", quote(&header.key));
        found(Code::InvalidName, did);
        return false;
    }
    if let Some(at) = header
        .raw_value
        .iter()
        .position(|b| matches!(b, b'\r' | b'\n' | 0))
    {
        let did = format!(
            "It set {} to a value with CR, LF or NUL at byte {at}.",
            quote(name)
        );
        found(Code::InvalidValue, did);
        return false;
    }
    match (header.value.is_empty(), header.raw_value.is_empty()) {
        (false, true) => {
            let did = format!("It set {} through `value`.", quote(name));
            found(Code::OnlyValue, did);
        }
        (false, false) if header.value.as_bytes() != &*header.raw_value => {
            let did = format!("It set {} with two different values.", quote(name));
            found(Code::BothValues, did);
        }
        _ => {}
    }
    true
}

/// Envoy looks at `append` only.
fn check_action(option: &HeaderValueOption, name: &str, before: &Lines, found: Found<'_>) {
    let action = option.append_action();
    let exists = before.get(name).is_some();
    let append = option.append == Some(true);
    let code = match action {
        // The default value cannot be told from an absent field.
        HeaderAppendAction::AppendIfExistsOrAdd => return,
        HeaderAppendAction::OverwriteIfExistsOrAdd if !append => return,
        HeaderAppendAction::OverwriteIfExistsOrAdd if exists => Code::AppendActionWrong,
        HeaderAppendAction::AddIfAbsent if exists => Code::AppendActionWrong,
        HeaderAppendAction::OverwriteIfExists if !exists || append => Code::AppendActionWrong,
        _ => Code::AppendAction,
    };
    let state = if exists { "is there" } else { "is absent" };
    let did = format!(
        "It used append_action {} for {}, which {state}.",
        action.as_str_name(),
        quote(name)
    );
    found(code, did);
}

/// Values that some pseudo-headers must have.
fn is_fitting(name: &str, value: &[u8]) -> bool {
    match name {
        ":status" => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
            .is_some_and(|status| status >= 200),
        ":scheme" => matches!(value, b"http" | b"https"),
        _ => true,
    }
}

fn is_name(lower: &str) -> bool {
    let bare = lower.strip_prefix(':').unwrap_or(lower);
    HeaderName::from_bytes(bare.as_bytes()).is_ok()
}

/// Whether no configuration would allow it.
fn refusal(operation: Operation, name: &str) -> Code {
    let never = match operation {
        Operation::Set => false,
        Operation::Append => name.starts_with(':'),
        Operation::Remove => name.starts_with(':') || name == "host",
    };
    match never {
        true => Code::NeverAllowed,
        false => Code::RefusedByDefault,
    }
}

fn quote(name: &str) -> String {
    format!("`{}`", shortened(name).escape_debug())
}

/// The value of a pseudo-header. Others are not shown: they may be secrets.
fn shown(value: &[u8]) -> String {
    format!(
        "`{}`",
        shortened(&String::from_utf8_lossy(value)).escape_debug()
    )
}

fn shortened(text: &str) -> Cow<'_, str> {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
    }
}
