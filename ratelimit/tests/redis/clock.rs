//! Windows are cut by the clock of Redis.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attache_ratelimit::{
    limiter::UnixTime,
    store::{RedisStore, Store as _, redis::RedisSettings},
};
use attache_service::Metrics;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Says to everything what time it is, so many seconds ahead; returns its URL.
async fn clock(ahead: i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while stream
                    .read(&mut buffer)
                    .await
                    .is_ok_and(|length| length > 0)
                {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                    let seconds = (now.as_secs().saturating_add_signed(ahead)).to_string();
                    let micros = now.subsec_micros().to_string();
                    let answer = format!(
                        "*2\r\n${}\r\n{seconds}\r\n${}\r\n{micros}\r\n",
                        seconds.len(),
                        micros.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    format!("redis://{address}")
}

#[tokio::test]
async fn an_instance_whose_clock_is_off_goes_by_that_of_redis() {
    // An hour and more is no clock.
    for (ahead, followed) in [(30, 30), (-30, -30), (0, 0), (4000, 0)] {
        let settings = RedisSettings {
            timeout: Duration::from_secs(1),
            ..RedisSettings::parse(&clock(ahead).await).unwrap()
        };
        let store = RedisStore::connect(settings, &Metrics::default()).await;
        let local = UnixTime::from_seconds(1_000_000);
        let found = store.time(local).micros();
        let expected = local.seconds().saturating_add_signed(followed) * 1_000_000;
        match ahead {
            // What the way there and back may account for is no difference.
            0 => assert_eq!(found, expected),
            _ => assert!(found.abs_diff(expected) < 500_000, "{ahead}: {found}"),
        }
    }
}
