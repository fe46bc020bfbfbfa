//! Traces: where a call stands in one, and the spans that services send to a collector.
//!
//! A [`Tracer`] makes [`Span`]s of calls and hands them, once ended, to an [`Exporter`], which
//! sends them in batches over OTLP/gRPC from a thread of its own. A call never waits for it: what
//! finds the queue full is dropped and counted.
//!
//! A tracer that is off, and a call that is not sampled, cost a look at the call's `traceparent`
//! at most.

mod context;
mod exporter;
mod report;
mod sampler;
mod settings;
mod span;
mod tracer;

pub use context::{RequestTrace, SpanId, TRACEPARENT, TRACESTATE, Trace, TraceId};
pub use exporter::Exporter;
pub use report::{FinishedSpan, SpanSide};
pub use sampler::Sampler;
pub use settings::{TraceError, TraceSettings};
pub use span::{Ended, Span, Value, Waits, code_name};
pub use tracer::Tracer;

#[cfg(test)]
mod tests;
