//! A log that goes to an HTTP service.

use std::{io::Write, time::Duration};

use attache_service::{config::Size, fetch::Fetcher};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Method, StatusCode, header};

use crate::policy::config;

const BATCH: Size = Size(512 << 10);
/// How often a batch is sent before it is given up: some four minutes.
const MAX_TRIES: u32 = 12;
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A service that takes batches.
#[derive(Debug)]
pub(super) struct LogService {
    fetcher: Fetcher,
    gzip: bool,
    batch: usize,
    interval: Duration,
    pause: Duration,
}

impl LogService {
    pub(super) fn new(fetcher: Fetcher, raw: &config::LogService, interval: Duration) -> Self {
        Self {
            fetcher,
            gzip: raw.gzip.unwrap_or(false),
            batch: raw.batch.unwrap_or(BATCH).as_usize(),
            interval,
            pause: Duration::from_millis(250),
        }
    }

    /// The contents of the files that the settings name.
    pub(super) fn files(&self) -> Vec<Vec<u8>> {
        let files = self.fetcher.files().iter();
        files
            .map(|file| std::fs::read(file).unwrap_or_default())
            .collect()
    }

    /// Largest batch in bytes, and how long it waits to be filled.
    pub(super) fn batch(&self) -> (usize, Duration) {
        (self.batch, self.interval)
    }

    /// Sends a batch, again if need be.
    ///
    /// # Errors
    /// When the service will not have it.
    pub(super) async fn send(&self, records: &[Vec<u8>]) -> Result<(), String> {
        let body = self.body(records).map_err(|error| error.to_string())?;
        let mut pause = self.pause;
        let mut tries = 1;
        loop {
            let problem = match self.post(body.clone()).await {
                Ok(status) if status.is_success() => return Ok(()),
                Ok(status) if passes(status) => format!("it answered {status}"),
                Ok(status) => return Err(format!("it answered {status}")),
                Err(problem) => problem,
            };
            if tries >= MAX_TRIES {
                return Err(problem);
            }
            tracing::warn!(problem, "decisions are not taken; they are sent again");
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(MAX_PAUSE);
            tries += 1;
        }
    }

    async fn post(&self, body: Bytes) -> Result<StatusCode, String> {
        let mut request = self.fetcher.request(Method::POST);
        request = request.header(header::CONTENT_TYPE, "application/json");
        if self.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let request = request.body(body).map_err(|error| error.to_string())?;
        let answer = self.fetcher.send(request).await;
        answer
            .map(|answer| answer.status())
            .map_err(|error| error.to_string())
    }

    /// A JSON array of the records.
    fn body(&self, records: &[Vec<u8>]) -> std::io::Result<Bytes> {
        let array = [b"[", records.join(&b',').as_slice(), b"]"].concat();
        if !self.gzip {
            return Ok(array.into());
        }
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&array)?;
        gzip.finish().map(Bytes::from)
    }
}

/// Whether it is worth trying again.
fn passes(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        )
}
