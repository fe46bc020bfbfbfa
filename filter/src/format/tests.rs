use std::{sync::Arc, time::Duration};

use http::{Request, Response, Version};
use proptest::prelude::*;

use super::*;
use crate::{
    ConnectionInfo, RequestContext, Route,
    calls::Recording,
    context::{Handshake, Times, TlsInfo, UpstreamAttempt, UpstreamConnection, UpstreamTimes},
};

fn struct_of(fields: &[(&str, Kind)]) -> Struct {
    let value = |kind: &Kind| prost_types::Value {
        kind: Some(kind.clone()),
    };
    Struct {
        fields: fields
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), value(kind)))
            .collect(),
    }
}

/// Calls `show` with an exchange that is over.
fn with_exchange<T>(show: impl FnOnce(&Exchange<'_>) -> T) -> T {
    let request = Request::get("/path")
        .header("x-a", "abc")
        .header("host", "h");
    let (request, ()) = request.body(()).unwrap().into_parts();
    let response = Response::builder().status(201).header("x-cost", "9");
    let (response, ()) = response.body(()).unwrap().into_parts();
    let connection = ConnectionInfo {
        peer: Some("10.0.0.1:4000".parse().unwrap()),
        local: Some("10.0.0.2:80".parse().unwrap()),
        ..ConnectionInfo::default()
    };
    let context = RequestContext::new(Arc::new(connection), Version::HTTP_11);
    context.set_route(Some(Arc::new(Route {
        name: "here".to_owned(),
        cluster: Some("web".into()),
        ..Route::default()
    })));
    context.merge_metadata(
        "ns",
        struct_of(&[
            ("text", Kind::StringValue("12".to_owned())),
            ("number", Kind::NumberValue(7.0)),
            ("flag", Kind::BoolValue(true)),
        ]),
    );
    context.set_details("via_upstream");
    show(&Exchange {
        facts: Facts {
            context: &context,
            request: Some(&request),
            response: Some(&response),
        },
        bytes_received: 5,
        bytes_sent: 6,
        finished: None,
    })
}

fn value(format: &str) -> String {
    let format = Format::parse(format).unwrap();
    let value = with_exchange(|exchange| format.value(exchange));
    String::from_utf8(value).unwrap()
}

#[test]
fn facts_are_filled_in() {
    for (format, expected) in [
        ("plain", "plain"),
        ("100%%", "100%"),
        ("<%REQ(x-none)%>", "<>"),
        ("<%REQ(X-A)%>", "<abc>"),
        ("%REQ(x-none?x-a)%", "abc"),
        ("%REQ(x-a?x-none)%", "abc"),
        ("%REQ(x-a):2%", "ab"),
        ("%REQ(:path)%", "/path"),
        ("%REQ(:authority)%", "h"),
        ("%RESP(x-cost)%", "9"),
        ("%RESP(:status)%", "201"),
        ("%PROTOCOL%", "HTTP/1.1"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:4000"),
        (
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
            "10.0.0.1",
        ),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "10.0.0.2:80"),
        ("%ROUTE_NAME%@%UPSTREAM_CLUSTER%", "here@web"),
        ("%UPSTREAM_HOST%", ""),
        ("%DYNAMIC_METADATA(ns:text)%", "12"),
        ("%DYNAMIC_METADATA(ns:number)%", "7"),
        ("%DYNAMIC_METADATA(ns:none)%", ""),
        ("%CEL(request.method)%", "GET"),
        ("%CEL(5 % 3)%!", "2!"),
        ("%RESPONSE_CODE%-%RESPONSE_FLAGS%", "201--"),
        ("%RESPONSE_CODE_DETAILS%", "via_upstream"),
        ("%BYTES_RECEIVED%/%BYTES_SENT%", "5/6"),
    ] {
        assert_eq!(value(format), expected, "{format}");
    }
}

#[test]
fn one_formatter_may_be_a_number() {
    for (format, expected) in [
        ("%DYNAMIC_METADATA(ns:number)%", Some(7.0)),
        ("%DYNAMIC_METADATA(ns:text)%", Some(12.0)),
        ("%DYNAMIC_METADATA(ns:flag)%", None),
        ("%DYNAMIC_METADATA(ns)%", None),
        ("%RESP(x-cost)%", Some(9.0)),
        ("%RESPONSE_CODE%", Some(201.0)),
        ("%CEL(response.code)%", Some(201.0)),
        ("%CEL(request.method)%", None),
        ("%REQ(x-none)%", None),
        ("%BYTES_SENT%", Some(6.0)),
    ] {
        let formatter = Formatter::parse(format).unwrap();
        let number = with_exchange(|exchange| formatter.number(exchange));
        assert_eq!(number, expected, "{format}");
    }
    for format in ["5", "", "%BYTES_SENT%%BYTES_SENT%", "a%BYTES_SENT%"] {
        assert!(Formatter::parse(format).is_err(), "{format}");
    }
}

#[test]
fn what_is_no_formatter_is_refused() {
    for (format, reason) in [
        ("%NOPE%", "is not known here"),
        ("%START_TIME%", "is not known here"),
        ("%REQ(x-a%", "is not known here"),
        ("%REQ(x-a):z%", "is not known here"),
        ("%BYTES_SENT(x)%", "is not known here"),
        ("%REQ(x a)%", "not the name of a header"),
        ("%CEL(request.)%", "not a CEL expression"),
        ("50%", "without its second"),
    ] {
        let error = Format::parse(format).unwrap_err();
        assert!(error.contains(reason), "{format}: {error}");
    }
}

proptest! {
    #[test]
    fn literal_text_stays_what_it_is(text in ".{0,60}") {
        let format = Format::parse(&text.replace('%', "%%")).unwrap();
        prop_assert_eq!(format.fixed(), Some(text.as_str()));
    }

    #[test]
    fn any_text_is_a_format_or_refused(
        text in r"(%|%%|[a-z(): ?]|REQ|RESP|CEL\(|\)%|DYNAMIC_METADATA|:[0-9]{1,30}){0,12}",
    ) {
        if let Ok(format) = Format::parse(&text) {
            with_exchange(|exchange| format.value(exchange));
        }
        if let Ok(formatter) = Formatter::parse(&text) {
            with_exchange(|exchange| formatter.number(exchange));
        }
    }
}

#[test]
fn an_exchange_has_its_points_in_time() {
    let ms = Duration::from_millis;
    let value = |format: &str, begun: i64, tls: bool, complete: bool| {
        let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
        context.recording = Recording::Calls;
        context.keeps_times = true;
        let start = context.started;
        let at = |after| Some(start + ms(after));
        let begun = match u64::try_from(begun) {
            Ok(after) => start + ms(after),
            Err(_) => start.checked_sub(ms(begun.unsigned_abs())).unwrap(),
        };
        context.connection = Arc::new(ConnectionInfo {
            accepted: start.checked_sub(ms(20)),
            tls: tls.then(|| TlsInfo {
                handshake: Some(Handshake {
                    begun: start.checked_sub(ms(19)).unwrap(),
                    ended: start.checked_sub(ms(8)).unwrap(),
                }),
                ..TlsInfo::default()
            }),
            ..ConnectionInfo::default()
        });
        context.record_attempt(UpstreamAttempt {
            endpoint: "e".to_owned(),
            begun: ms(10),
            answered: Some(ms(40)),
            ended: ms(40),
            status: None,
            span: None,
            waited: Some(ms(7)),
            failure: Some("no way there".to_owned()),
        });
        context.note_times(|times| {
            times.upstream = UpstreamTimes {
                connection: Some(UpstreamConnection {
                    begun,
                    connected: begun + ms(3),
                    secured: tls.then(|| begun + ms(5)),
                }),
                sending: at(17),
                sent: at(29),
                answered: at(40),
                body: at(45),
                received: complete.then(|| at(60)).flatten(),
            };
            times.responding = at(42);
        });
        let finished = Finished {
            duration: ms(66),
            complete,
            received: Some(ms(25)),
            trailers: None,
        };
        let exchange = Exchange {
            facts: Facts {
                context: &context,
                request: None,
                response: None,
            },
            bytes_received: 0,
            bytes_sent: 0,
            finished: Some(&finished),
        };
        let mut line = Vec::new();
        let format = Format::parse_log(format).unwrap();
        format.write_line(&exchange, false, &mut line);
        String::from_utf8(line).unwrap()
    };
    for (format, expected) in [
        ("%UPSTREAM_CONNECTION_POOL_READY_DURATION%", "7"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "no_way_there"),
        ("%REQUEST_DURATION% %REQUEST_TX_DURATION%", "25 29"),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "40 26"),
        ("%ROUNDTRIP_DURATION%", "-"),
        ("%COMMON_DURATION(DS_CX_BEG:DS_RX_BEG)%", "20"),
        ("%COMMON_DURATION(DS_HS_BEG:DS_HS_END)%", "-"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_RX_HDR_END:ns)%", "0"),
        ("%COMMON_DURATION(DS_RX_BEG:US_CX_BEG)%", "10"),
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END:us)%", "3000"),
        ("%COMMON_DURATION(US_CX_BEG:US_HS_END)%", "-"),
        ("%COMMON_DURATION(DS_RX_BEG:US_TX_BEG)%", "17"),
        ("%COMMON_DURATION(US_TX_BEG:US_TX_END:us)%", "12000"),
        ("%COMMON_DURATION(US_TX_END:US_RX_BEG)%", "11"),
        ("%COMMON_DURATION(US_RX_BEG:DS_TX_BEG)%", "2"),
        ("%COMMON_DURATION(US_RX_BEG:US_RX_BODY_BEG)%", "5"),
        ("%COMMON_DURATION(US_RX_BODY_BEG:US_RX_END)%", "15"),
        ("%COMMON_DURATION(DS_TX_BEG:DS_TX_END)%", "24"),
        ("%COMMON_DURATION(DS_TX_END:DS_TX_BEG)%", "-"),
    ] {
        assert_eq!(value(format, 10, false, true), expected, "{format}");
    }
    for (format, expected) in [
        ("%COMMON_DURATION(DS_HS_BEG:DS_HS_END)%", "11"),
        ("%COMMON_DURATION(US_CX_BEG:US_HS_END)%", "5"),
        // It was there before the request.
        ("%COMMON_DURATION(US_CX_BEG:US_CX_END)%", "3"),
        ("%COMMON_DURATION(DS_RX_BEG:US_CX_BEG)%", "-"),
        ("%COMMON_DURATION(US_CX_BEG:DS_RX_BEG)%", "99"),
        // The answer was cut off.
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_END)%", "-"),
        ("%RESPONSE_TX_DURATION%", "-"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%", "-"),
    ] {
        assert_eq!(value(format, -99, true, false), expected, "{format}");
    }
}

#[test]
fn points_in_time_are_kept_for_formats_that_ask_for_them_alone() {
    let reads_times = |format| Format::parse_log(format).unwrap().reads_times();
    for format in [
        "%DURATION% %REQUEST_DURATION% %UPSTREAM_CONNECTION_POOL_READY_DURATION%",
        "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)% %UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ] {
        assert!(!reads_times(format), "{format}");
    }
    for format in [
        "%RESPONSE_DURATION%",
        "%REQUEST_TX_DURATION%",
        "%COMMON_DURATION(DS_CX_BEG:DS_RX_BEG)%",
        "a %COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    ] {
        assert!(reads_times(format), "{format}");
    }
    let context = RequestContext::new(Arc::default(), Version::HTTP_11);
    context.note_times(|_| panic!("nobody asks"));
    assert_eq!(context.times(), Times::default());
}
