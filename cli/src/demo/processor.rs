//! The demonstration's processor: edits headers, and JSON bodies both ways.

use attache_ext_proc::server::{Body, Processor, RequestHead, ResponseHead, Result};
use serde_json::{Map, Value};

/// Fields of JSON requests that the origin must not see.
const SECRET: [&str; 2] = ["password", "token"];

/// Marks requests and responses, hides secrets of JSON requests from the origin, and signs JSON
/// responses.
#[derive(Clone, Default)]
pub(crate) struct DemoProcessor {
    json_request: bool,
    json_response: bool,
}

impl Processor for DemoProcessor {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        self.json_request = request.headers.is_json();
        request.headers.insert("x-attache", "was here")?;
        // The origin has no use for the caller's credentials.
        request.headers.remove("x-api-key")?;
        request.headers.remove("authorization")?;
        Ok(())
    }

    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        if self.json_request
            && let Some(mut object) = body.json::<Map<String, Value>>()?
        {
            for name in SECRET {
                if let Some(value) = object.get_mut(name) {
                    *value = "(hidden by attache)".into();
                }
            }
            body.set_json(&object)?;
        }
        Ok(())
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        self.json_response = response.headers.is_json();
        response.headers.insert("x-processed-by", "attache demo")?;
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        if self.json_response
            && let Some(mut object) = body.json::<Map<String, Value>>()?
        {
            object.insert("added by attache".to_owned(), true.into());
            let mut text = serde_json::to_vec_pretty(&object).unwrap_or_default();
            text.push(b'\n');
            body.replace(text);
        }
        Ok(())
    }
}
