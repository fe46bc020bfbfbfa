//! The order of replies, as rows of events: no proxy, no clock.

use bytes::Bytes;

use super::{
    BodyMode, Direction,
    encode::Kind,
    outbox::{Outbox, Shown},
    sink::BodySink,
};

const WAY: Direction = Direction::Request;

/// An event, and everything that is sent because of it.
#[derive(Debug)]
enum Event {
    /// A part is shown; whether it is the end.
    Show(Kind, bool),
    /// The reply with this number, and what it says.
    Reply(u32, &'static str),
    Take,
    Push(&'static str),
    Finish,
    Silence,
}
use Event::{Finish, Push, Reply, Show, Silence, Take};
use Kind::{Body, Headers, Trailers};

fn sent(outbox: &Outbox) -> String {
    let mut all = Vec::new();
    while let Some(bytes) = outbox.pop() {
        all.extend_from_slice(&bytes);
    }
    String::from_utf8(all).unwrap()
}

fn run(mode: BodyMode, rows: &[(Event, &str)]) {
    let outbox = Outbox::default();
    outbox.lock().set_modes(mode, BodyMode::None);
    for (event, expected) in rows {
        {
            let mut queue = outbox.lock();
            match event {
                Show(kind, over) => {
                    queue.shown(WAY, *kind, *over);
                }
                Reply(number, text) => queue.reply(WAY, *number, |out| {
                    out.put(|buffer| {
                        buffer.extend_from_slice(text.as_bytes());
                        None
                    });
                }),
                Take => assert!(queue.take_stream(WAY)),
                Push(text) => {
                    assert!(queue.push(WAY, |_| Some(Bytes::from_static(text.as_bytes()))));
                }
                Finish => queue.finish(WAY),
                Silence => queue.silence(WAY),
            }
        }
        assert_eq!(sent(&outbox), *expected, "{event:?} of {rows:?}");
    }
}

#[test]
fn replies_are_sent_in_the_order_in_which_they_are_owed() {
    run(
        BodyMode::Streamed,
        &[
            (Show(Headers, false), ""),
            (Show(Body, false), ""),
            (Show(Body, true), ""),
            (Reply(2, "c"), ""),
            (Reply(1, "b"), ""),
            (Reply(0, "a"), "abc"),
        ],
    );
}

#[test]
fn output_waits_for_the_head_to_be_answered() {
    run(
        BodyMode::FullDuplexStreamed,
        &[
            (Show(Headers, false), ""),
            (Take, ""),
            (Show(Body, false), ""),
            (Push("b"), ""),
            (Reply(0, "a"), "ab"),
            (Push("c"), "c"),
        ],
    );
}

#[test]
fn a_piece_leaves_in_what_the_kernel_sends_at_once() {
    /// Linux puts whole packets, on Ethernet of 1448 bytes, into less than 64 KiB.
    const AT_ONCE: usize = 44 * 1448;
    const DATA_FRAME: usize = 9;
    let outbox = Outbox::default();
    {
        let mut queue = outbox.lock();
        queue.set_modes(BodyMode::FullDuplexStreamed, BodyMode::None);
        assert!(queue.take_stream(WAY));
        queue.shown(WAY, Headers, false);
        queue.reply(WAY, 0, |_| {});
        queue.shown(WAY, Body, false);
    }
    let mut sink = BodySink::new(outbox.clone(), WAY);

    sink.push(vec![b'x'; 124 << 10]).unwrap();

    let frames: Vec<Bytes> = std::iter::from_fn(|| outbox.pop()).collect();
    let pieces = frames
        .chunks(2)
        .map(|piece| piece.iter().map(|frame| DATA_FRAME + frame.len()).sum());
    let pieces: Vec<usize> = pieces.collect();
    assert_eq!(pieces.len(), 2);
    assert!(pieces.iter().all(|piece| *piece <= AT_ONCE), "{pieces:?}");
    sink.finish();
}

#[test]
fn output_waits_for_the_first_piece() {
    run(
        BodyMode::FullDuplexStreamed,
        &[
            (Show(Headers, false), ""),
            (Take, ""),
            (Reply(0, "a"), "a"),
            (Push("b"), ""),
            (Show(Body, false), "b"),
        ],
    );
}

#[test]
fn trailers_wait_for_the_end_of_the_output() {
    run(
        BodyMode::FullDuplexStreamed,
        &[
            (Take, ""),
            (Show(Headers, false), ""),
            (Show(Body, false), ""),
            (Show(Trailers, true), ""),
            (Reply(1, "t"), ""),
            (Reply(0, "a"), "a"),
            (Push("b"), "b"),
            (Finish, "t"),
        ],
    );
}

#[test]
fn pieces_that_are_answered_one_by_one_come_before_taken_output() {
    run(
        BodyMode::FullDuplexStreamed,
        &[
            (Show(Headers, false), ""),
            (Show(Body, false), ""),
            (Take, ""),
            (Show(Body, false), ""),
            (Push("c"), ""),
            (Reply(0, "a"), "a"),
            (Reply(1, "b"), "bc"),
        ],
    );
}

#[test]
fn a_replaced_body_is_answered_no_more() {
    run(
        BodyMode::Streamed,
        &[
            (Show(Headers, false), ""),
            (Show(Body, false), ""),
            (Reply(0, "a"), "a"),
            (Silence, ""),
            (Reply(1, "b"), ""),
        ],
    );
}

#[test]
fn a_message_without_a_body_has_no_output() {
    let outbox = Outbox::default();
    let mut queue = outbox.lock();
    queue.set_modes(BodyMode::FullDuplexStreamed, BodyMode::None);
    assert!(queue.take_stream(WAY));
    assert_eq!(queue.shown(WAY, Headers, true), Shown::Owed(0));
    assert!(!queue.push(WAY, |_| None));
    assert!(queue.give_up(WAY));
}

#[test]
fn output_that_came_before_a_message_without_a_body_is_an_error() {
    let outbox = Outbox::default();
    let mut queue = outbox.lock();
    queue.set_modes(BodyMode::FullDuplexStreamed, BodyMode::None);
    assert!(queue.take_stream(WAY));
    assert!(queue.push(WAY, |_| Some(Bytes::from_static(b"x"))));
    assert_eq!(queue.shown(WAY, Headers, true), Shown::Bodiless);
}

#[test]
fn half_of_a_body_is_never_taken_for_all_of_it() {
    let outbox = Outbox::default();
    {
        let mut queue = outbox.lock();
        queue.set_modes(BodyMode::FullDuplexStreamed, BodyMode::None);
        assert!(queue.take_stream(WAY));
        // Nothing of it has come: it can be answered piece by piece as if nothing was.
        assert!(queue.give_up(WAY));
        assert!(queue.take_stream(WAY));
        queue.shown(WAY, Body, false);
        assert!(!queue.give_up(WAY));
    }
    assert!(outbox.end().is_err());
}

#[tokio::test]
async fn much_that_waits_stops_the_reading() {
    let outbox = Outbox::default();
    let room = || std::future::poll_fn(|cx| outbox.poll_room(cx));
    assert!(futures_util::FutureExt::now_or_never(room()).is_some());
    outbox.lock().send(|_| Some(vec![0; 1 << 20].into()));
    assert!(futures_util::FutureExt::now_or_never(room()).is_none());
    while outbox.pop().is_some() {}
    assert!(futures_util::FutureExt::now_or_never(room()).is_some());
}

#[test]
fn output_that_nothing_lets_go_is_bounded() {
    let outbox = Outbox::default();
    {
        let mut queue = outbox.lock();
        queue.set_modes(BodyMode::FullDuplexStreamed, BodyMode::None);
        assert!(queue.take_stream(WAY));
        queue.shown(WAY, Headers, false);
        queue.shown(WAY, Body, false);
        let piece = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..64 {
            assert!(queue.push(WAY, |_| Some(piece.clone())));
        }
        assert!(!queue.is_closed());
        queue.push(WAY, |_| Some(piece.clone()));
        assert!(queue.is_closed());
    }
    assert_eq!(
        outbox.end().unwrap_err().code(),
        tonic::Code::ResourceExhausted
    );
}
