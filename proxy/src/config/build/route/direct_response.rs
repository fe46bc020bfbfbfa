//! Fixed answers, and texts of answers.

use std::io::Read;

use attache_service::config::{Errors, Located};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;

use crate::{
    config::{BodyFormat, DataSource, DirectResponse, Source, SubstitutionFormat},
    export::resolved,
    route::{BodyFormat as Format, DirectResponse as Plan},
};

/// Bytes of a text that answers are put into.
const MOST_FORMAT: usize = 64 << 10;

/// Compiles a direct response; faults are reported at their place.
pub(super) fn plan(raw: &DirectResponse, most: usize, errors: &mut Errors) -> Option<Plan> {
    let body = match &raw.body {
        Some(source) => data(source, most, errors)?,
        None => Bytes::new(),
    };
    let format = match &raw.body_format {
        Some(raw) => Some(body_format(raw, errors)?),
        None => None,
    };
    Some(Plan {
        status: raw.status.0,
        body,
        format,
    })
}

/// The text of a source, of at most so many bytes.
pub(crate) fn data(raw: &DataSource, most: usize, errors: &mut Errors) -> Option<Bytes> {
    let too_long = |length: usize| format!("{length} bytes are more than the {most} allowed here");
    let (at, bytes): (&Located<_>, _) = match &raw.source {
        Source::InlineString(text) => (text, Bytes::from(text.value.clone())),
        Source::InlineBytes(text) => match STANDARD.decode(text.as_bytes()) {
            Ok(bytes) => (text, bytes.into()),
            Err(error) => {
                errors.push(text, format!("is not base64: {error}"));
                return None;
            }
        },
        Source::Filename(path) => {
            let mut bytes = Vec::new();
            let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
            let read = std::fs::File::open(resolved(path))
                .and_then(|file| file.take(limit).read_to_end(&mut bytes));
            match read {
                Ok(length) if length <= most => return Some(bytes.into()),
                Ok(length) => errors.push(path, too_long(length)),
                Err(error) => {
                    errors.push(path, format!("`{}`: {error}", path.value.display()));
                }
            }
            return None;
        }
    };
    if bytes.len() > most {
        errors.push(at, too_long(bytes.len()));
        return None;
    }
    Some(bytes)
}

/// Compiles what answers are put into; faults are reported at their place.
pub(crate) fn body_format(raw: &BodyFormat, errors: &mut Errors) -> Option<Format> {
    let omit = raw.omit_empty_values.unwrap_or(false);
    let format = match &raw.format {
        SubstitutionFormat::TextFormat(text) => {
            Format::text(text, omit).map_err(|fault| errors.push(text, fault))
        }
        SubstitutionFormat::JsonFormat(json) => {
            Format::json(json, omit).map_err(|fault| errors.push(json, fault))
        }
        SubstitutionFormat::TextFormatSource(source) => {
            let text = data(source, MOST_FORMAT, errors)?;
            let text = String::from_utf8_lossy(&text);
            let format = Format::text(&text, omit);
            format.map_err(|fault| match &source.source {
                Source::InlineString(at) | Source::InlineBytes(at) => errors.push(at, fault),
                Source::Filename(at) => errors.push(at, fault),
            })
        }
    };
    let mut format = format.ok()?;
    if let Some(content_type) = &raw.content_type {
        match HeaderValue::from_str(content_type) {
            Ok(value) => format.content_type = value,
            Err(_) => errors.push(content_type, "is no value of a header"),
        }
    }
    Some(format)
}
