//! `/drain`: whether the process is ending, and the way to have it end.

use serde_json::{Map, Value, json};

use super::pages::{Page, PageAnswer, PageMethod};
use crate::Shutdown;

const PATH: &str = "/drain";

/// GET shows whether the process drains; POST has it drain and end, as SIGTERM does. `more` adds
/// what else there is to say.
pub fn pages(
    shutdown: Shutdown,
    more: impl Fn() -> Map<String, Value> + Send + Sync + Clone + 'static,
) -> [Page; 2] {
    let (asked, also) = (shutdown.clone(), more.clone());
    [
        Page::new(PageMethod::Get, PATH, move |_| {
            std::future::ready(state(&asked, also()))
        })
        .about("whether the process drains"),
        Page::new(PageMethod::Post, PATH, move |_| {
            if !shutdown.is_triggered() {
                tracing::info!("the admin page was asked to drain: draining");
            }
            shutdown.trigger();
            std::future::ready(state(&shutdown, more()))
        })
        .about("drain and end, as on SIGTERM"),
    ]
}

fn state(shutdown: &Shutdown, more: Map<String, Value>) -> PageAnswer {
    let state = match shutdown.is_triggered() {
        false => "serving",
        true => "draining",
    };
    let mut all = Map::new();
    all.insert("state".to_owned(), json!(state));
    all.extend(more);
    PageAnswer::json(format!("{}\n", Value::Object(all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(page: &Page) -> String {
        page.answer(None).await.text
    }

    #[tokio::test]
    async fn only_post_begins_the_drain() {
        let shutdown = Shutdown::new();
        let more = || Map::from_iter([("connections".to_owned(), json!(3))]);
        let [get, post] = pages(shutdown.clone(), more);

        let told = |state: &str| format!("{{\"connections\":3,\"state\":\"{state}\"}}\n");
        assert_eq!(ask(&get).await, told("serving"));
        assert!(!shutdown.is_triggered());

        assert_eq!(ask(&post).await, told("draining"));
        assert!(shutdown.is_triggered());
        assert_eq!(ask(&get).await, told("draining"));
    }
}
