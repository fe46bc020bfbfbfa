//! Our framework, asked by a proxy that says anything.

use std::{future::poll_fn, task::Poll, time::Duration};

use attache_ext_proc::server::{
    Body, Immediate, OnFailure, Processor, RequestHead, ResponseHead, Result, Server, Trailers,
};
use attache_service::{
    Channel, ChannelSettings, Method,
    channel::{Target, encode_message, frame_message},
};
use bytes::Bytes;
use http::HeaderMap;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use crate::random::{self, chance};

const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

pub(crate) async fn case(random: &mut SmallRng) {
    let server = Server::with({
        let seed = random.random();
        move || Moody(SmallRng::seed_from_u64(seed))
    })
    .on_failure(*[OnFailure::Report, OnFailure::Pass].choose(random).unwrap())
    .max_body(100_000);
    let target = Target::Embedded(server.into_host().embedded());
    let channel = Channel::new(ChannelSettings::new("processor", vec![target]));
    let mut stream = channel.stream(&Method::new(PROCESS), HeaderMap::new());
    for message in conversation(random) {
        stream.send(message);
        let reads = chance(random, 70);
        poll_fn(|cx| {
            // A proxy that does not read, or not yet.
            while reads && let Poll::Ready(Some(Ok(_))) = stream.poll_message(cx) {}
            Poll::Ready(())
        })
        .await;
        if chance(random, 50) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        }
    }
    if chance(random, 15) {
        // The proxy may leave at any time.
        return;
    }
    stream.finish();
    while let Some(Ok(_)) = poll_fn(|cx| stream.poll_message(cx)).await {}
}

fn conversation(random: &mut SmallRng) -> Vec<Bytes> {
    let mut messages: Vec<Bytes> = random::lawful(random).iter().map(encode_message).collect();
    let errors = *[0, 0, 1, 3].choose(random).unwrap();
    for _ in 0..errors {
        let at = random.random_range(0..=messages.len());
        match random.random_range(0..6) {
            0 => {
                let garbage: Vec<u8> = (0..random.random_range(0..40))
                    .map(|_| random.random())
                    .collect();
                messages.insert(at, frame_message(&garbage));
            }
            1 if at < messages.len() => drop(messages.remove(at)),
            2 => messages.truncate(at),
            3 if at < messages.len() => {
                let again = messages[at].clone();
                messages.insert(at, again);
            }
            _ => messages.insert(at, encode_message(&random::request(random))),
        }
    }
    messages
}

/// Does something else each time.
struct Moody(SmallRng);

impl Moody {
    async fn mood(&mut self) -> Result {
        let random = &mut self.0;
        match random.random_range(0..40) {
            0 => panic!("a bad day"),
            1 => Err(std::io::Error::other("a bad day").into()),
            2 => Err(Immediate::new(403).body("no").into()),
            // Longer than a handler may take.
            3 => std::future::pending().await,
            4..10 => {
                let nap = Duration::from_millis(random.random_range(0..400));
                tokio::time::sleep(nap).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn body(&mut self, body: &mut Body<'_>) -> Result {
        self.mood().await?;
        match self.0.random_range(0..6) {
            0 => {
                let data = body.take();
                body.push(data.to_ascii_uppercase());
                body.push(data);
            }
            1 => {
                body.whole()?;
            }
            2 => body.replace(random::bytes(&mut self.0)),
            3 => {
                let data = body.take();
                body.hold(data);
            }
            4 => drop(body.take()),
            _ => {}
        }
        Ok(())
    }
}

impl Processor for Moody {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        self.mood().await?;
        request.headers.insert("x-mood", "good")?;
        match self.0.random_range(0..6) {
            0 => request.replace_body(random::bytes(&mut self.0)),
            1 => request.clear_route_cache(),
            2 => request.set_path("/elsewhere")?,
            3 => {
                request.headers.remove("content-length")?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        self.body(body).await
    }

    async fn request_trailers(&mut self, trailers: &mut Trailers) -> Result {
        self.mood().await?;
        Ok(trailers.headers.insert("x-mood", "good")?)
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        self.mood().await?;
        if chance(&mut self.0, 10) {
            response.replace_body(random::bytes(&mut self.0));
        }
        Ok(response.headers.append("x-mood", "good")?)
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        self.body(body).await
    }

    async fn response_trailers(&mut self, _: &mut Trailers) -> Result {
        self.mood().await
    }
}
