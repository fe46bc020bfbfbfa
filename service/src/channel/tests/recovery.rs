//! Lost, refused, silent and returning services.

use std::sync::{Mutex, atomic::Ordering};

use tokio::{io::AsyncWriteExt, net::TcpListener, time::Instant};

use super::{
    peers::{Raw, connector, raw_server},
    *,
};
use crate::{Address, Shutdown};

async fn serve_at(address: &str) -> (Address, Shutdown, tokio::task::JoinHandle<()>) {
    let bound = host().bind(&address.parse().unwrap()).await.unwrap();
    let (address, shutdown) = (bound.address().clone(), Shutdown::new());
    let stop = shutdown.clone();
    let serving = tokio::spawn(async move { bound.serve(stop).await.unwrap() });
    (address, shutdown, serving)
}

/// Asks until it works; panics when it does not within a few seconds.
async fn until_answered(channel: &Channel) -> Bytes {
    let answered = async {
        loop {
            match ask(channel, "again", 0, Some(Duration::from_secs(1))).await {
                Ok(answer) => return answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), answered)
        .await
        .expect("recovered")
}

#[tokio::test]
async fn a_killed_service_fails_its_calls_and_is_found_again_when_it_returns() {
    let (address, shutdown, serving) = serve_at("127.0.0.1:0").await;
    let channel = channel(Target::Address(address.clone()));
    let mut open = channel.stream(&bidi(), HeaderMap::new());
    open.send(frame_message(b""));
    assert!(next(&mut open).await.unwrap().is_ok());

    shutdown.trigger_immediate();
    let status = next(&mut open).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    serving.await.unwrap();
    let begun = Instant::now();
    let status = ask(&channel, "x", 0, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&address.to_string()), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(1));

    let (_, shutdown, _) = serve_at(&address.to_string()).await;
    assert_eq!(until_answered(&channel).await, "again");
    shutdown.trigger();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_speaks_is_unavailable_after_the_connect_timeout() {
    let held = Arc::new(Mutex::new(Vec::new()));
    let keep = held.clone();
    let silent: EmbeddedConnector = Arc::new(move || {
        let (near, far) = tokio::io::duplex(1 << 16);
        keep.lock().unwrap().push(far);
        near
    });
    let channel = channel(Target::Embedded(silent));
    let begun = Instant::now();

    let status = ask(&channel, "x", 0, None).await.unwrap_err();

    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("not connected within 1s"),
        "{status}"
    );
    assert_eq!(begun.elapsed().as_secs(), 1);
    // From now on calls do not wait for the attempts that go on behind them.
    for _ in 0..10 {
        assert!(ask(&channel, "x", 0, None).await.is_err());
    }
    assert_eq!(begun.elapsed().as_secs(), 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(held.lock().unwrap().len() >= 3, "it goes on trying");
}

#[tokio::test]
async fn a_peer_that_speaks_another_protocol_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    });
    let channel = channel(Target::Address(address.parse().unwrap()));
    let status = ask(&channel, "x", 0, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("HTTP/2"), "{status}");
    serving.abort();
}

#[tokio::test]
async fn calls_in_flight_finish_on_a_connection_that_goes_away_and_new_ones_move() {
    let (open, mut opened) = tokio::sync::mpsc::unbounded_channel();
    let connector = h2_server(move |number, mut connection| {
        let open = open.clone();
        Box::pin(async move {
            let mut first = None;
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let _ = open.send(number);
                let mut body = respond
                    .send_response(head(StatusCode::OK, GRPC), false)
                    .unwrap();
                let _ = body.send_data(frame_message(&[number as u8]), false);
                if number == 0 && first.is_none() {
                    connection.graceful_shutdown();
                    first = Some(tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        let _ = body.send_trailers(trailers("0"));
                    }));
                } else {
                    let _ = body.send_trailers(trailers("0"));
                }
            }
        })
    });
    let channel = channel(Target::Embedded(connector));
    let mut long = channel.stream(&bidi(), HeaderMap::new());
    assert_eq!(next(&mut long).await.unwrap().unwrap(), &[0][..]);

    // The GOAWAY may still be under way, so the first of these may be on either side of it.
    let mut answers = Vec::new();
    for _ in 0..20 {
        let answer = channel
            .unary(&unary(), b"", HeaderMap::new(), None)
            .await
            .unwrap();
        answers.extend_from_slice(&answer);
        tokio::task::yield_now().await;
    }

    assert_eq!(answers.last(), Some(&1), "{answers:?}");
    assert!(next(&mut long).await.is_none(), "it ended with OK");
    assert_eq!(opened.recv().await, Some(0));
}

#[tokio::test]
async fn a_call_that_the_service_has_not_seen_is_sent_again() {
    let acts: [fn(usize) -> Raw; 2] = [
        |number| match number {
            0 => Raw::GoAwayUnseen,
            _ => Raw::Answer,
        },
        |number| match number {
            0 => Raw::Refuse,
            _ => Raw::Answer,
        },
    ];
    let (goes_away, calls) = raw_server(acts[0]);
    let answer = channel(Target::Embedded(goes_away))
        .unary(&unary(), b"m", HeaderMap::new(), None)
        .await;
    assert_eq!(answer.unwrap(), "x");
    assert_eq!(calls.load(Ordering::Relaxed), 2);

    // Two endpoints: what one refuses the other takes.
    let (refuses, _) = raw_server(|_| Raw::Refuse);
    let (answers, _) = raw_server(|_| Raw::Answer);
    let targets = vec![Target::Embedded(refuses), Target::Embedded(answers)];
    let channel = Channel::new(ChannelSettings::new("policy", targets));
    for _ in 0..10 {
        let answer = channel.unary(&unary(), b"m", HeaderMap::new(), None).await;
        assert_eq!(answer.unwrap(), "x");
    }
}

#[tokio::test]
async fn a_service_that_refuses_everything_is_not_asked_forever() {
    let (refuses, calls) = raw_server(|_| Raw::Refuse);
    let status = channel(Target::Embedded(refuses))
        .unary(&unary(), b"m", HeaderMap::new(), None)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_stream_is_sent_again_with_its_one_message_but_not_with_two() {
    let make = || {
        raw_server(|number| match number {
            0 => Raw::GoAwayUnseen,
            _ => Raw::Answer,
        })
    };
    let (connector, _) = make();
    let mut stream = channel(Target::Embedded(connector)).stream(&bidi(), HeaderMap::new());
    stream.send(frame_message(b"one"));
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "x");

    let (connector, _) = make();
    let mut stream = channel(Target::Embedded(connector)).stream(&bidi(), HeaderMap::new());
    stream.send(frame_message(b"one"));
    stream.send(frame_message(b"two"));
    let status = next(&mut stream).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_service_is_found_out_and_left() {
    let connector = connector(|number, io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        if number == 0 {
            // Accepts one call and then does nothing at all, not even reading.
            let _held = connection.accept().await;
            std::future::pending::<()>().await;
        }
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond
                .send_response(head(StatusCode::OK, GRPC), false)
                .unwrap();
            body.send_data(frame_message(b"x"), false).unwrap();
            body.send_trailers(trailers("0")).unwrap();
        }
    });
    let channel = channel(Target::Embedded(connector));
    let timeout = Some(Duration::from_millis(200));
    let mut outcomes = Vec::new();
    for _ in 0..60 {
        let answer = channel
            .unary(&unary(), b"", HeaderMap::new(), timeout)
            .await;
        outcomes.push(answer.map_err(|status| status.code()));
    }
    assert_eq!(outcomes.first(), Some(&Err(Code::DeadlineExceeded)));
    assert_eq!(outcomes.last(), Some(&Ok(Bytes::from_static(b"x"))));
}

#[tokio::test]
async fn late_answers_to_cancelled_calls_do_not_cost_the_connection() {
    let (late, calls) = raw_server(|number| match number {
        0 => Raw::AnswerLate,
        _ => Raw::Refuse,
    });
    let channel = channel(Target::Embedded(late));
    let ask = async || channel.unary(&unary(), b"m", HeaderMap::new(), None).await;
    assert_eq!(ask().await.unwrap(), "x");
    let mut open: Vec<_> = (0..5000)
        .map(|_| channel.stream(&bidi(), HeaderMap::new()))
        .collect();
    for call in &mut open {
        assert!(next(call).now_or_never().is_none());
    }
    while calls.load(Ordering::Relaxed) < 5001 {
        tokio::task::yield_now().await;
    }

    drop(open);

    assert_eq!(ask().await.unwrap(), "x");
}

#[tokio::test]
async fn of_several_endpoints_the_dead_one_costs_nothing_and_is_used_once_it_lives() {
    let (living, stop, _) = serve_at("127.0.0.1:0").await;
    let (dead, gone, ended) = serve_at("127.0.0.1:0").await;
    gone.trigger_immediate();
    ended.await.unwrap();
    let targets = [&dead, &living].map(|address| Target::Address(address.clone()));
    let channel = Channel::new(ChannelSettings::new("policy", targets.to_vec()));
    for _ in 0..20 {
        assert_eq!(ask(&channel, "x", 0, None).await.unwrap(), "x");
    }

    let (_, stop_returned, _) = serve_at(&dead.to_string()).await;
    stop.trigger_immediate();

    assert_eq!(until_answered(&channel).await, "again");
    stop_returned.trigger();
}

#[tokio::test]
async fn endpoints_that_live_take_turns() {
    let answering = |who: &'static [u8]| {
        h2_server(move |_, mut connection| {
            Box::pin(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut body = respond
                        .send_response(head(StatusCode::OK, GRPC), false)
                        .unwrap();
                    body.send_data(frame_message(who), false).unwrap();
                    body.send_trailers(trailers("0")).unwrap();
                }
            })
        })
    };
    let targets = [&b"a"[..], b"b"].map(|who| Target::Embedded(answering(who)));
    let channel = Channel::new(ChannelSettings::new("policy", targets.to_vec()));
    channel.warm_up();
    let mut answers = Vec::new();
    for _ in 0..400 {
        answers.push(
            channel
                .unary(&unary(), b"", HeaderMap::new(), None)
                .await
                .unwrap(),
        );
    }
    let of_a = answers.iter().filter(|answer| *answer == "a").count();
    // Six standard deviations of picks at random.
    assert!((140..=260).contains(&of_a), "{of_a} of 400");
}

#[tokio::test]
async fn a_connection_that_is_too_old_is_replaced_without_a_failed_call() {
    let mut settings = ChannelSettings::new("policy", vec![Target::Embedded(host().embedded())]);
    settings.max_connection_duration = Some(Duration::from_millis(20));
    let endpoint = settings.endpoints.members()[0].endpoint.clone();
    let channel = Channel::new(settings);
    let replaced = async {
        while endpoint.connects().0 < 3 {
            let answer = ask(&channel, "again", 0, Some(Duration::from_secs(5))).await;
            answer.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), replaced)
        .await
        .unwrap();
}
