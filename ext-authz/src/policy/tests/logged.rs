//! What the decision log says, and how it leaves the process.

use std::{io::Read as _, path::Path, time::Duration};

use flate2::read::GzDecoder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::testing::view;

const RULES: &str = r#"
identity:
- name: keys
  api_key: { from: [{ header: x-token }, { query: pass }], keys: [{ id: acme, hash: "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b", claims: { team: red, phone: "555" } }] }
- { name: anyone, anonymous: {} }
rules:
- { name: open, action: allow, paths: [{ prefix: /pub }], identity: [anyone] }
- { name: closed, action: deny, paths: [{ prefix: /closed }], response: { status: 410 } }
- { name: known, action: allow }
"#;

fn fixture(more: &str) -> Fixture {
    Fixture::new(&format!("{RULES}{more}"))
}

/// All records of a log file so far.
async fn records(fixture: &Fixture, name: &str) -> Vec<Value> {
    fixture.service.flush(Duration::from_secs(10)).await;
    read(&fixture.directory.path().join(name))
}

fn read(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn a_record_says_who_asked_for_what_and_what_was_decided_by_what() {
    let fixture = fixture(
        "decision_log: { file: { path: d.log }, headers: [User-Agent], query: [page], claims: [team] }",
    );
    let uri = "http://shop.example.com/x/%61?page=1&page=2&other=3";
    let request = Request::get(uri)
        .header("x-token", "secret")
        .header("user-agent", "curl")
        .header("accept", "*/*");
    assert_eq!(fixture.status(request).await, 200);
    assert_eq!(fixture.status(get("/closed")).await, 410);
    assert_eq!(fixture.status(get("/")).await, 401);
    assert_eq!(fixture.status(get("/x/../y")).await, 400);

    let records = records(&fixture, "d.log").await;
    let [allowed, closed, unknown, ambiguous] = records.as_slice() else {
        panic!("{records:#?}");
    };
    let mut first = allowed.clone();
    let taken =
        |record: &mut Value, name: &str| record.as_object_mut().unwrap().remove(name).unwrap();
    let id = taken(&mut first, "decision_id");
    assert_eq!(id.as_str().unwrap().len(), 36);
    assert_ne!(id, closed["decision_id"]);
    assert!(taken(&mut first, "time").as_str().unwrap().ends_with('Z'));
    assert!(taken(&mut first, "latency_ms").as_f64().unwrap() > 0.0);
    assert_eq!(taken(&mut first, "revision"), closed["revision"]);
    assert!(taken(&mut first["request"], "id").is_string());
    assert_eq!(
        first,
        json!({
            "type": "decision", "decision": "allow", "cached": false,
            "pipeline": "default", "source": "keys", "subject": "acme", "rule": "known",
            "claims": { "team": "red" },
            "request": {
                "method": "GET", "host": "shop.example.com", "path": "/x/%61",
                "headers": { "user-agent": "curl" }, "query": { "page": ["1", "2"] },
            },
        })
    );
    assert_eq!(
        (
            &closed["decision"],
            &closed["status"],
            &closed["rule"],
            &closed["source"]
        ),
        (
            &json!("deny"),
            &json!(410),
            &json!("closed"),
            &json!("anyone")
        )
    );
    assert_eq!(
        (&unknown["reason"], &unknown["status"]),
        (&json!("no identity"), &json!(401))
    );
    assert_eq!(
        (&ambiguous["status"], &ambiguous["pipeline"]),
        (&json!(400), &Value::Null)
    );
}

#[tokio::test]
async fn credentials_are_never_shown() {
    let fixture = fixture(
        "
decision_log:
  file: { path: d.log }
  headers: ['*']
  query: ['*']
  claims: ['*']
  mask: { headers: [X-Private], query: [private], claims: [phone, sub] }
  explain: true
decision_metadata: { id: true, explain: 4KiB }
",
    );
    let request = get("/?pass=hushed&private=hushed&token=hushed&Token=hushed&page=1")
        .header("x-token", "secret")
        .header("authorization", "Bearer hushed")
        .header("cookie", "session=hushed")
        .header("x-private", "hushed")
        .header("referer", "https://a.test/b?token=hushed")
        .header("accept", "text/html");
    let decision = fixture
        .service
        .decide(&view(&request.body(()).unwrap()))
        .await
        .unwrap();
    let text = format!("{:?}{decision:?}", records(&fixture, "d.log").await);
    assert!(
        !text.contains("hushed") && !text.contains("secret") && !text.contains("acme"),
        "{text}"
    );

    let record = records(&fixture, "d.log").await.remove(0);
    assert_eq!(
        (&record["subject"], &record["claims"]),
        (
            &json!("(masked)"),
            &json!({ "sub": "(masked)", "phone": "(masked)", "team": "red" })
        )
    );
    let headers = &record["request"]["headers"];
    assert_eq!(headers["x-token"], "(masked)");
    assert_eq!(headers["accept"], "text/html");
    assert_eq!(headers["referer"], "https://a.test/b");
    let masked = json!(["(masked)"]);
    assert_eq!(
        record["request"]["query"],
        json!({ "pass": masked, "private": masked, "token": masked, "Token": masked, "page": ["1"] })
    );
    assert_eq!(
        record["explain"],
        json!({
            "steps": [
                { "stage": "pipeline", "name": "default", "found": "takes it" },
                { "stage": "identity", "name": "keys", "found": "known" },
                { "stage": "rule", "name": "known", "found": "allowed" },
            ],
            // How the parameter is written decides what is taken out of the query.
            "reads": ["path", "query", "query parameter `pass`", "header `x-token`"],
        })
    );
}

#[tokio::test]
async fn an_answer_that_was_kept_is_explained_as_it_was_made() {
    let fixture = fixture(
        "{ }\ndecision_log: { file: { path: d.log }, explain: true }\ndecision_cache: {}\n"
            .trim_start_matches("{ }\n"),
    );
    for _ in 0..2 {
        assert_eq!(
            fixture.status(get("/").header("x-token", "secret")).await,
            200
        );
    }
    let records = records(&fixture, "d.log").await;
    assert_eq!(
        (&records[0]["cached"], &records[1]["cached"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(records[0]["explain"], records[1]["explain"]);
    for known in ["source", "subject", "rule", "pipeline"] {
        assert_eq!(records[0][known], records[1][known], "{known}");
    }
}

#[tokio::test]
async fn allowed_requests_are_sampled_and_others_always_logged() {
    let fixture = fixture("decision_log: { file: { path: d.log }, sample: 0.25 }");
    for _ in 0..1000 {
        fixture.status(get("/pub")).await;
    }
    for _ in 0..10 {
        fixture.status(get("/")).await;
    }
    let records = records(&fixture, "d.log").await;
    let (allowed, denied): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| record["decision"] == "allow");
    assert_eq!(denied.len(), 10);
    // Beyond eight standard deviations.
    assert!((130..370).contains(&allowed.len()), "{}", allowed.len());
}

#[tokio::test]
async fn a_reload_loses_no_record() {
    let fixture = fixture("decision_log: { file: { path: d.log } }");
    for number in 0..20 {
        fixture.status(get(&format!("/pub/{number}"))).await;
        if number % 5 == 0 {
            assert_eq!(fixture.service.reload().unwrap(), Reload::Done);
        }
    }
    let records = records(&fixture, "d.log").await;
    let paths: Vec<_> = records
        .iter()
        .map(|record| record["request"]["path"].clone())
        .collect();
    let expected: Vec<_> = (0..20)
        .map(|number| json!(format!("/pub/{number}")))
        .collect();
    assert_eq!(paths, expected);
}

#[tokio::test]
async fn the_proxy_learns_id_and_steps_within_the_bound() {
    let fixture = fixture(
        "decision_log: { file: { path: d.log } }\ndecision_metadata: { id: true, explain: 60B }",
    );
    let view = view(&get("/").body(()).unwrap());
    let decision = fixture.service.decide(&view).await.unwrap();
    let response = decision.into_response(&view).unwrap();
    let metadata = response.dynamic_metadata.unwrap();
    let text = format!("{metadata:?}");
    let record = records(&fixture, "d.log").await.remove(0);
    assert!(
        text.contains(record["decision_id"].as_str().unwrap()),
        "{text}"
    );
    assert!(text.contains("pipeline `default`: takes it"), "{text}");
    assert!(text.contains("...") && !text.contains("rule"), "{text}");
}

/// What a log service was sent: whether compressed, and the records.
async fn batch(listener: &TcpListener) -> (TcpStream, bool, Vec<Value>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut data = Vec::new();
    let end = loop {
        stream.read_buf(&mut data).await.unwrap();
        if let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8(data[..end].to_vec())
        .unwrap()
        .to_lowercase();
    assert!(
        head.starts_with("post /logs") && head.contains("authorization: bearer hushed"),
        "{head}"
    );
    assert!(head.contains("content-type: application/json"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.unwrap().parse().unwrap();
    while data.len() < end + length {
        stream.read_buf(&mut data).await.unwrap();
    }
    let body = &data[end..];
    let gzip = head.contains("content-encoding: gzip");
    let mut text = Vec::new();
    if gzip {
        GzDecoder::new(body).read_to_end(&mut text).unwrap();
    } else {
        text = body.to_vec();
    }
    (stream, gzip, serde_json::from_slice(&text).unwrap())
}

async fn answer(mut stream: TcpStream, status: &str) {
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

fn service(listener: &TcpListener, more: &str) -> String {
    let address = listener.local_addr().unwrap();
    format!(
        "
decision_log:
  http:
    service: {{ url: 'http://{address}/logs', headers: {{ authorization: {{ value: 'Bearer hushed' }} }} }}
    interval: 50ms
{more}
"
    )
}

#[tokio::test]
async fn a_service_gets_batches_until_it_takes_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fixture = fixture(&service(&listener, "    gzip: true"));
    for path in ["/pub/1", "/pub/2"] {
        fixture.status(get(path)).await;
    }
    let (stream, gzip, refused) = batch(&listener).await;
    assert!(gzip);
    answer(stream, "503 Later").await;
    let (stream, _, again) = batch(&listener).await;
    assert_eq!(refused, again);
    answer(stream, "204 No Content").await;
    let mut paths: Vec<_> = again
        .iter()
        .map(|one| one["request"]["path"].clone())
        .collect();
    if paths.len() == 1 {
        let (stream, _, rest) = batch(&listener).await;
        answer(stream, "200 OK").await;
        paths.extend(rest.iter().map(|one| one["request"]["path"].clone()));
    }
    assert_eq!(paths, ["/pub/1", "/pub/2"]);
    fixture.service.flush(Duration::from_secs(10)).await;
    let text = fixture.metrics.render();
    assert!(
        text.contains(r#"log_records_total{result="written"} 2"#),
        "{text}"
    );
    assert!(
        text.contains("attache_auth_decision_log_queued_bytes{} 0"),
        "{text}"
    );
}

#[tokio::test]
async fn what_does_not_fit_is_lost_counted_and_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fixture = fixture(&service(&listener, "  buffer: 64KiB"));
    fixture.status(get("/pub/first")).await;
    let (stream, _, first) = batch(&listener).await;
    assert_eq!(first.len(), 1);
    // The service is busy with the first, and no check waits for it.
    let path = format!("/pub/{}", "x".repeat(900));
    for _ in 0..100 {
        assert_eq!(fixture.status(get(&path)).await, 200);
    }
    answer(stream, "200 OK").await;
    let (mut lost, mut seen) = (0, 0);
    while lost + seen < 100 {
        let (stream, gzip, records) = batch(&listener).await;
        answer(stream, "200 OK").await;
        assert!(!gzip);
        for record in records {
            match record["type"].as_str().unwrap() {
                "lost" => lost += record["count"].as_u64().unwrap(),
                _ => seen += 1,
            }
        }
    }
    assert!(
        lost > 20 && seen > 20 && lost + seen == 100,
        "{lost} {seen}"
    );
    fixture.service.flush(Duration::from_secs(10)).await;
    let text = fixture.metrics.render();
    assert!(
        text.contains(&format!(r#"log_records_total{{result="lost"}} {lost}"#)),
        "{text}"
    );
}

#[tokio::test]
async fn batches_that_are_refused_for_good_are_lost_and_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fixture = fixture(&service(&listener, ""));
    fixture.status(get("/pub/1")).await;
    let (stream, ..) = batch(&listener).await;
    answer(stream, "400 Bad Request").await;
    fixture.service.flush(Duration::from_millis(1)).await;
    let (stream, _, records) = loop {
        fixture.status(get("/pub/2")).await;
        let next = tokio::time::timeout(Duration::from_secs(1), batch(&listener));
        if let Ok(next) = next.await {
            break next;
        }
    };
    answer(stream, "200 OK").await;
    assert_eq!(
        (&records[0]["type"], &records[0]["count"]),
        (&json!("lost"), &json!(1))
    );
}

#[test]
fn mistakes_of_the_log_are_reported_with_their_places() {
    let text = errors_of(
        "
identity: [{ name: anyone, anonymous: {} }]
rules: []
decision_log: { file: { path: /none/such/d.log }, sample: 1.5, buffer: 1KiB }
",
    );
    for expected in [
        "auth.yaml:4:31: cannot write `/none/such/d.log`",
        "expected a share from 0 to 1",
        "at least 64 KiB",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    let text = errors_of(
        "
identity: [{ name: anyone, anonymous: {} }]
rules: []
decision_log: { http: { service: 'ftp://x', interval: 2m } }
",
    );
    for expected in ["expected `http://` or `https://`", "at most a minute"] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
}

#[tokio::test]
async fn a_check_that_is_given_up_is_logged_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let signer = Signer::new("k1");
    let fixture = Fixture::new(&format!(
        "
identity: [{{ name: users, jwt: {{ issuer: https://issuer, audiences: [shop], jwks_url: '{url}' }} }}]
rules: []
decision_log: {{ file: {{ path: d.log }}, sample: 0 }}
"
    ));
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.read_buf(&mut Vec::new()).await.unwrap();
    let keys = json!({ "keys": [signer.jwk()] }).to_string();
    let length = keys.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + &keys).as_bytes()).await.unwrap();
    fixture.service.ready().await;
    // A key that has to be asked for, and nobody answers.
    let token = Signer::new("k2").sign(&claims(json!({})));
    let view = view(&bearer(&token).body(()).unwrap());
    {
        let mut checking = Box::pin(fixture.service.decide(&view));
        assert!(futures_util::poll!(&mut checking).is_pending());
    }
    let records = records(&fixture, "d.log").await;
    assert_eq!(records[0]["decision"], "cancelled");
    assert_eq!(
        (records.len(), &records[0]["request"]["path"]),
        (1, &json!("/"))
    );
}

#[tokio::test]
async fn validating_a_configuration_makes_no_file() {
    let fixture = fixture("decision_log: { file: { path: d.log } }");
    let summary = AuthService::validate(&fixture.directory.path().join("auth.yaml")).unwrap();
    assert_eq!((summary.sources.len(), summary.pipelines.len()), (2, 1));
    assert!(!fixture.directory.path().join("d.log").exists());
}

#[tokio::test]
async fn an_explanation_names_source_rule_data_and_effects() {
    let fixture = fixture(
        "upstream_headers: { x-user: { claim: sub }, authorization: { value: hushed } }\ndecision_cache: {}",
    );
    let request = view(&get("/x").header("x-token", "secret").body(()).unwrap());
    let explanation = fixture.service.explain(&request).await;
    let text = explanation.to_string();
    for expected in [
        "ALLOW\n",
        "  pipeline `default`: takes it\n  identity `keys`: known\n  rule `known`: allowed\n",
        "Looked at: path, query parameter `pass`, header `x-token`\n",
        "Kept: for 30.0 s",
        "  set request header authorization: (masked)\n",
        "  set request header x-user: acme\n",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(
        !text.contains("secret") && !text.contains("hushed"),
        "{text}"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(
        (&json["outcome"], &json["rule"]),
        (&json!("allow"), &json!("known"))
    );

    let denied = fixture
        .service
        .explain(&view(&get("/closed").body(()).unwrap()))
        .await;
    assert!(
        denied.to_string().starts_with("DENY with 410 (closed)\n"),
        "{denied}"
    );
    let ambiguous = fixture
        .service
        .explain(&view(&get("/a/../b").body(()).unwrap()))
        .await;
    assert!(
        ambiguous.to_string().starts_with("DENY with 400"),
        "{ambiguous}"
    );
}
