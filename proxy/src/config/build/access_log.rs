//! Access logs.

use attache_filter::{
    context::ResponseFlag, format::Format, fraction::Denominator, matcher::FieldMatcher,
};
use attache_service::{
    config::{Errors, Located, Node, Spanned, Value, parse_duration},
    trace::code_name,
};
use tonic::Code;

use super::Builder;
use crate::{
    access_log::{AccessLogPlan, By, Comparison, Field, Filter, Form, Selection, Share, Sink},
    config::{
        AccessLog, AccessLogFilter, AccessLogFormat, AccessLogOutput, AccessLogs, ComparisonHolder,
        ComparisonOp, FilterList, FilterSpecifier, ResponseFlagFilter, RuntimeFilter, SampleBy,
    },
};

/// Conditions within conditions.
const MAX_DEPTH: usize = 16;

impl Builder<'_> {
    pub(super) fn access_logs(&self, raw: &AccessLogs, errors: &mut Errors) -> Vec<AccessLogPlan> {
        let logs = raw.0.iter();
        logs.filter_map(|log| self.access_log(log, errors))
            .collect()
    }

    fn access_log(&self, raw: &AccessLog, errors: &mut Errors) -> Option<AccessLogPlan> {
        let sink = match (&raw.path, &raw.output) {
            (Some(path), None) => Sink::File(self.document.resolve(&path.value)),
            (Some(_), Some(output)) => {
                errors.push(output, "lines go to `path` already");
                return None;
            }
            (None, Some(output)) if output.value == AccessLogOutput::Stderr => Sink::Stderr,
            (None, _) => Sink::Stdout,
        };
        let form = form(raw, errors);
        let selection = selection(raw, errors);
        Some(AccessLogPlan {
            sink,
            form: form?,
            selection,
        })
    }
}

fn form(raw: &AccessLog, errors: &mut Errors) -> Option<Form> {
    let omit_empty = raw.omit_empty_values.unwrap_or(false);
    let mut parse = |at: &dyn Spanned, text: &str| {
        Format::parse_log(text)
            .map_err(|fault| errors.push(at, fault))
            .ok()
    };
    match (&raw.text_format, &raw.json_format, &raw.format) {
        (Some(text), None, None) => {
            parse(text, text).map(|format| Form::Text { format, omit_empty })
        }
        (None, Some(json), None) => {
            if json.as_map().is_none() {
                errors.expected(json, "an object");
                return None;
            }
            let fields = field(json, errors)?;
            Some(Form::Json { fields, omit_empty })
        }
        (None, None, format) => match format.as_ref().map(|format| format.value) {
            None | Some(AccessLogFormat::Json) => Some(Form::Everything),
            Some(AccessLogFormat::Envoy) => Form::envoy()
                .map_err(|fault| format.iter().for_each(|at| errors.push(at, fault.clone())))
                .ok(),
        },
        (text, json, format) => {
            let message = "`format`, `text_format` and `json_format` exclude each other";
            match (format, text, json) {
                (Some(at), ..) => errors.push(at, message),
                (None, Some(at), _) => errors.push(at, message),
                (None, None, Some(at)) => errors.push(at, message),
                (None, None, None) => {}
            }
            None
        }
    }
}

/// A value of `json_format`.
fn field(node: &Node, errors: &mut Errors) -> Option<Field> {
    Some(match &node.value {
        Value::Map(entries) => {
            let fields: Vec<_> = entries
                .iter()
                .map(|entry| Some((entry.key.name.to_string(), field(&entry.value, errors)?)))
                .collect();
            Field::Object(fields.into_iter().collect::<Option<_>>()?)
        }
        Value::Seq(items) => {
            let items: Vec<_> = items.iter().map(|item| field(item, errors)).collect();
            Field::List(items.into_iter().collect::<Option<_>>()?)
        }
        Value::String(_) => {
            let text = node.as_str().unwrap_or_default();
            match Format::parse_log(text) {
                Ok(format) => match format.fixed() {
                    Some(fixed) => Field::Fixed(fixed.into()),
                    None => Field::Format(format),
                },
                Err(fault) => {
                    errors.push(node, fault);
                    return None;
                }
            }
        }
        _ => Field::Fixed(node.to_json()),
    })
}

fn selection(raw: &AccessLog, errors: &mut Errors) -> Selection {
    let mut selection = Selection::default();
    if let Some(sample) = &raw.sample {
        if !(0.0..=1.0).contains(&sample.rate) {
            errors.push(sample, "`sample` is a part between 0 and 1");
        }
        let by = match sample.by {
            SampleBy::RequestId => By::RequestId,
            SampleBy::TraceId => By::TraceId,
        };
        selection.sample = Share::of(sample.rate, by);
    }
    for condition in &raw.always {
        match condition.strip_prefix("slow>").map(parse_duration) {
            Some(Some(duration)) => selection.always_slower = Some(duration),
            None if condition.value == "errors" => selection.always_errors = true,
            _ => errors.push(
                condition,
                format!(
                    "`{}` is not a condition: `errors` and `slow>1s` are",
                    condition.value
                ),
            ),
        }
    }
    let filter = raw.filter.as_ref();
    selection.filter = filter.and_then(|filter| self::filter(filter, 0, errors));
    selection
}

fn filter(raw: &Located<AccessLogFilter>, depth: usize, errors: &mut Errors) -> Option<Filter> {
    if depth > MAX_DEPTH {
        errors.push(raw, "too many conditions within conditions");
        return None;
    }
    let mut list = |list: &FilterList| {
        if list.filters.len() < 2 {
            errors.push(raw, "there must be two conditions or more");
        }
        let filters = list.filters.iter();
        filters
            .filter_map(|one| filter(one, depth + 1, errors))
            .collect()
    };
    Some(match &raw.specifier {
        FilterSpecifier::StatusCodeFilter(raw) => Filter::Status(comparison(raw)),
        FilterSpecifier::DurationFilter(raw) => Filter::Duration(comparison(raw)),
        FilterSpecifier::HeaderFilter(raw) => {
            Filter::Header(Box::new(FieldMatcher::plan(&raw.header, errors)?))
        }
        FilterSpecifier::ResponseFlagFilter(raw) => Filter::Flags(flags(raw, errors)),
        FilterSpecifier::GrpcStatusFilter(raw) => {
            let mut codes = Vec::new();
            for name in &raw.statuses {
                match (0..=16).find(|code| grpc_name(*code) == name.value) {
                    Some(code) => codes.push(code),
                    None => {
                        errors.unknown_name(name, "gRPC status", (0..=16).map(grpc_name));
                    }
                }
            }
            let exclude = raw.exclude.unwrap_or(false);
            Filter::Grpc { codes, exclude }
        }
        FilterSpecifier::RuntimeFilter(raw) => Filter::Share(share(raw)),
        FilterSpecifier::TraceableFilter(_) => Filter::Traceable,
        FilterSpecifier::AndFilter(raw) => Filter::All(list(raw)),
        FilterSpecifier::OrFilter(raw) => Filter::Any(list(raw)),
    })
}

/// The name of a gRPC status in Envoy's configuration.
fn grpc_name(code: i32) -> &'static str {
    match code {
        1 => "CANCELED",
        code => code_name(Code::from_i32(code)),
    }
}

/// The flags that a condition names; unknown ones are reported.
pub(super) fn flags(raw: &ResponseFlagFilter, errors: &mut Errors) -> Vec<ResponseFlag> {
    let mut flags = Vec::new();
    for name in &raw.flags {
        match ResponseFlag::named(name) {
            Some(flag) => flags.push(flag),
            None => errors.unknown_name(
                name,
                "response flag",
                ResponseFlag::ALL.map(ResponseFlag::short),
            ),
        }
    }
    flags
}

/// What a figure is compared with, and how.
pub(super) fn comparison(raw: &ComparisonHolder) -> Comparison {
    let figure = u64::from(raw.comparison.value.default_value.unwrap_or(0));
    match raw.comparison.op.unwrap_or_default() {
        ComparisonOp::Eq => Comparison::Equal(figure),
        ComparisonOp::Ge => Comparison::AtLeast(figure),
        ComparisonOp::Le => Comparison::AtMost(figure),
        ComparisonOp::Ne => Comparison::NotEqual(figure),
    }
}

fn share(raw: &RuntimeFilter) -> Share {
    let percent = raw.percent_sampled.as_ref();
    let numerator = percent.and_then(|percent| percent.numerator).unwrap_or(0);
    let denominator = match percent.and_then(|percent| percent.denominator) {
        None | Some(Denominator::Hundred) => 100.0,
        Some(Denominator::TenThousand) => 10_000.0,
        Some(Denominator::Million) => 1_000_000.0,
    };
    let by = match raw.use_independent_randomness {
        Some(true) => By::Chance,
        _ => By::RequestId,
    };
    Share::of(f64::from(numerator) / denominator, by)
}
