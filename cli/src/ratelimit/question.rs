//! What a service is asked.

use std::ops::RangeInclusive;

use attache_proto::{
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    ratelimit::RateLimitRequest,
};
use attache_service::channel::encode_message;
use bytes::Bytes;
use rand::Rng as _;

use crate::{Failure, args::ratelimit::LoadArgs};

/// The requests of a test, which differ in what is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Questions {
    request: RateLimitRequest,
    drawn: Vec<Drawn>,
    /// The message, if all are the same.
    message: Bytes,
}

/// An entry whose value is drawn for each request.
#[derive(Debug, Clone)]
struct Drawn {
    descriptor: usize,
    entry: usize,
    range: RangeInclusive<u64>,
}

impl Questions {
    pub(crate) fn of(args: &LoadArgs) -> Result<Self, Failure> {
        let descriptors = args.descriptors.iter().map(|entries| {
            let entries = entries.0.iter().map(|(key, value)| Entry {
                key: key.clone(),
                value: value.clone(),
            });
            RateLimitDescriptor {
                entries: entries.collect(),
                hits_addend: args.hits,
                ..RateLimitDescriptor::default()
            }
        });
        let request = RateLimitRequest {
            domain: args.domain.clone(),
            descriptors: descriptors.collect(),
            ..RateLimitRequest::default()
        };
        let mut drawn = Vec::new();
        for spread in &args.spread {
            let before = drawn.len();
            for (descriptor, entries) in request.descriptors.iter().enumerate() {
                for (entry, found) in entries.entries.iter().enumerate() {
                    if found.key == spread.key {
                        drawn.push(Drawn {
                            descriptor,
                            entry,
                            range: spread.range.clone(),
                        });
                    }
                }
            }
            if drawn.len() == before {
                let key = &spread.key;
                let message = format!("--spread: no descriptor has an entry with the key `{key}`");
                return Err(Failure::Usage(message));
            }
        }
        Ok(Self {
            message: encode_message(&request),
            request,
            drawn,
        })
    }

    /// The descriptors, as they are without what is drawn.
    pub(crate) fn descriptors(&self) -> &[RateLimitDescriptor] {
        &self.request.descriptors
    }

    /// The next message, with its gRPC frame.
    pub(crate) fn next(&mut self) -> Bytes {
        if self.drawn.is_empty() {
            return self.message.clone();
        }
        self.draw();
        encode_message(&self.request)
    }

    fn draw(&mut self) {
        let mut random = rand::rng();
        for drawn in &self.drawn {
            let descriptor = self.request.descriptors.get_mut(drawn.descriptor);
            let entry = descriptor.and_then(|found| found.entries.get_mut(drawn.entry));
            if let Some(entry) = entry {
                entry.value = random.random_range(drawn.range.clone()).to_string();
            }
        }
    }
}
