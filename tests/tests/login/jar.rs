//! A browser as far as its cookies and its way through redirects go.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::http::{Message, ask};

/// Cookies by site and name; attributes are checked when they are set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jar {
    cookies: BTreeMap<(String, String), String>,
}

impl Jar {
    /// Asks for a page as a browser does when somebody follows a link.
    pub(crate) async fn visit(&mut self, url: &str) -> Message {
        let accept = "text/html,application/xhtml+xml,*/*;q=0.8";
        let headers = [("accept", accept), ("sec-fetch-mode", "navigate")];
        self.send("GET", url, &headers, "").await
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Message {
        let (site, port, path) = parts(url);
        let mut request = Message {
            line: format!("{method} {path} HTTP/1.1"),
            headers: vec![("host".to_owned(), format!("{site}:{port}"))],
            body: body.to_owned(),
        };
        for (name, value) in headers {
            request = request.with(name, value);
        }
        let cookies = self.cookies(&site);
        if !cookies.is_empty() {
            request = request.with("cookie", &cookies);
        }
        let answer = ask(SocketAddr::from(([127, 0, 0, 1], port)), &request).await;
        for line in answer.all("set-cookie") {
            self.set(&site, line);
        }
        answer
    }

    /// Goes where redirects lead, to the last answer and its URL.
    pub(crate) async fn follow(&mut self, url: &str) -> (String, Message) {
        let mut url = url.to_owned();
        for _ in 0..10 {
            let answer = self.visit(&url).await;
            match answer.header("location") {
                Some(to) => url = to.to_owned(),
                None => return (url, answer),
            }
        }
        panic!("too many redirects, the last to {url}");
    }

    /// Visits a page, logs in as `user` where the provider asks for that, and comes back.
    pub(crate) async fn log_in(&mut self, url: &str, user: &str) -> (String, Message) {
        let callback = self.log_in_only(url, user).await;
        self.follow(&callback).await
    }

    /// The same up to the URL that the provider sends the browser back to.
    pub(crate) async fn log_in_only(&mut self, url: &str, user: &str) -> String {
        let (at, form) = self.follow(url).await;
        assert!(form.body.contains("<form"), "{at}: {form:?}");
        let to = form.body.split("name=to value='").nth(1).unwrap();
        let to = to.split('\'').next().unwrap().replace("&amp;", "&");
        let encoded =
            percent_encoding::utf8_percent_encode(&to, percent_encoding::NON_ALPHANUMERIC);
        let (site, port, _) = parts(&at);
        let login = format!("http://{site}:{port}/login");
        let answer = self
            .send("POST", &login, &[], &format!("user={user}&to={encoded}"))
            .await;
        answer.header("location").unwrap().to_owned()
    }

    pub(crate) fn cookies(&self, site: &str) -> String {
        let mine = self.cookies.iter().filter(|((of, _), _)| of == site);
        let pairs: Vec<_> = mine
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect();
        pairs.join("; ")
    }

    /// Names of the cookies that a site has set.
    pub(crate) fn names(&self, site: &str) -> Vec<&str> {
        let mine = self.cookies.keys().filter(|(of, _)| of == site);
        mine.map(|(_, name)| name.as_str()).collect()
    }

    /// Changes the value of a cookie, or takes it away.
    pub(crate) fn change(&mut self, site: &str, change: impl Fn(&str, &str) -> Option<String>) {
        self.cookies = std::mem::take(&mut self.cookies)
            .into_iter()
            .filter_map(|((of, name), value)| {
                let value = if of == site {
                    change(&name, &value)?
                } else {
                    value
                };
                Some(((of, name), value))
            })
            .collect();
    }

    fn set(&mut self, site: &str, line: &str) {
        let (pair, attributes) = line.split_once(';').unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        assert!(attributes.contains("HttpOnly"), "{line}");
        assert!(pair.len() <= 4096, "a cookie of {} bytes", pair.len());
        let key = (site.to_owned(), name.to_owned());
        if attributes.contains("Max-Age=0") {
            self.cookies.remove(&key);
        } else {
            self.cookies.insert(key, value.to_owned());
        }
    }
}

/// Host, port, and path with query of an `http` URL.
pub(crate) fn parts(url: &str) -> (String, u16, String) {
    let rest = url
        .strip_prefix("http://")
        .unwrap_or_else(|| panic!("{url}"));
    let slash = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let (host, port) = authority.rsplit_once(':').unwrap();
    let path = if path.is_empty() { "/" } else { path };
    (host.to_owned(), port.parse().unwrap(), path.to_owned())
}
