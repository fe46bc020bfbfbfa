//! A fixed answer, and what answers are put into.

use attache_filter::format::{Exchange, Format};
use attache_service::config::json::{Map, Value};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};

/// A fixed answer (`DirectResponseAction`).
#[derive(Debug)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body; empty for none.
    pub body: Bytes,
    /// What the body is put into.
    pub format: Option<BodyFormat>,
}

/// What the bodies of answers are put into (`SubstitutionFormatString`).
#[derive(Debug, Clone)]
pub struct BodyFormat {
    /// Its `content-type`.
    pub content_type: HeaderValue,
    shape: Shape,
    omit_empty: bool,
}

#[derive(Debug, Clone)]
enum Shape {
    Text(Text),
    Json(Json),
}

/// A text with formatters in it; the body stands between the pieces.
#[derive(Debug, Clone)]
struct Text(Vec<Format>);

#[derive(Debug, Clone)]
enum Json {
    Fixed(Value),
    /// A number, or a text that is one.
    Number(Format),
    Text(Text),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

/// The formatter for the body.
const BODY: &str = "%LOCAL_REPLY_BODY%";
/// Formatters whose values are numbers in JSON.
const NUMBERS: [&str; 4] = [
    "%RESPONSE_CODE%",
    "%BYTES_RECEIVED%",
    "%BYTES_SENT%",
    "%DURATION%",
];

impl BodyFormat {
    /// A text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn text(text: &str, omit_empty: bool) -> Result<Self, String> {
        Ok(Self {
            content_type: HeaderValue::from_static("text/plain"),
            shape: Shape::Text(Text::parse(text)?),
            omit_empty,
        })
    }

    /// JSON whose texts are formatters.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn json(json: &Value, omit_empty: bool) -> Result<Self, String> {
        Ok(Self {
            content_type: HeaderValue::from_static("application/json"),
            shape: Shape::Json(Json::parse(json)?),
            omit_empty,
        })
    }

    /// The answer around `body`.
    pub(crate) fn around(&self, body: &[u8], exchange: &Exchange<'_>) -> Bytes {
        match &self.shape {
            Shape::Text(text) => text.value(body, exchange, self.omit_empty).into(),
            Shape::Json(json) => {
                let value = json.value(body, exchange, self.omit_empty);
                let mut text = value.unwrap_or(Value::Null).to_string();
                text.push('\n');
                text.into()
            }
        }
    }
}

impl Text {
    fn parse(text: &str) -> Result<Self, String> {
        text.split(BODY)
            .map(Format::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn value(&self, body: &[u8], exchange: &Exchange<'_>, omit_empty: bool) -> Vec<u8> {
        let mut value = Vec::new();
        for (nth, piece) in self.0.iter().enumerate() {
            if nth > 0 {
                value.extend_from_slice(body);
            }
            piece.write_line(exchange, omit_empty, &mut value);
        }
        value
    }
}

impl Text {
    /// The format, if it is a single formatter or nothing.
    fn alone(&self) -> Option<&Format> {
        match self.0.as_slice() {
            [format] if format.is_single() => Some(format),
            _ => None,
        }
    }
}

impl Json {
    fn parse(json: &Value) -> Result<Self, String> {
        Ok(match json {
            Value::String(text) if NUMBERS.contains(&text.as_str()) => {
                Self::Number(Format::parse(text)?)
            }
            Value::String(text) => Self::Text(Text::parse(text)?),
            Value::Array(items) => {
                let items = items.iter().map(Self::parse);
                Self::List(items.collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), Self::parse(value)?)));
                Self::Map(fields.collect::<Result<_, String>>()?)
            }
            fixed => Self::Fixed(fixed.clone()),
        })
    }

    /// The value; `None` where it is empty and that is left out.
    fn value(&self, body: &[u8], exchange: &Exchange<'_>, omit_empty: bool) -> Option<Value> {
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        Some(match self {
            Self::Fixed(value) => value.clone(),
            Self::Number(format) => {
                let text = text(format.value(exchange));
                text.parse::<u64>().map_or(Value::String(text), Value::from)
            }
            Self::Text(format) => match format.alone().map(|one| one.value(exchange)) {
                Some(value) if value.is_empty() && omit_empty => return None,
                Some(value) if value.is_empty() => Value::Null,
                Some(value) => Value::String(text(value)),
                None => Value::String(text(format.value(body, exchange, omit_empty))),
            },
            Self::List(items) => items
                .iter()
                .filter_map(|item| item.value(body, exchange, omit_empty))
                .collect(),
            Self::Map(fields) => {
                let fields = fields.iter().filter_map(|(name, value)| {
                    Some((name.clone(), value.value(body, exchange, omit_empty)?))
                });
                Value::Object(fields.collect::<Map<_, _>>())
            }
        })
    }
}
