//! A real browser, Chromium, driven over the protocol of the [WebDriver] specification.
//!
//! [WebDriver]: https://www.w3.org/TR/webdriver2/

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the driver may take for one command; the first starts the browser.
const COMMAND: Duration = Duration::from_secs(60);
/// How long a page may take to become what is waited for.
const PAGE: Duration = Duration::from_secs(20);
/// Under this name an element is told (WebDriver, section 12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The programs that it takes.
#[derive(Debug, Clone)]
pub struct Programs {
    chromium: PathBuf,
    driver: PathBuf,
}

impl Programs {
    /// What `ATTACHE_CHROMIUM` and `ATTACHE_CHROMEDRIVER` name, else what the workspace has, else
    /// the system's.
    pub fn find() -> Option<Self> {
        Some(Self {
            chromium: find("ATTACHE_CHROMIUM", "chromium")?,
            driver: find("ATTACHE_CHROMEDRIVER", "chromedriver")?,
        })
    }
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = std::env::split_paths(&path).map(|folder| folder.join(name));
    std::env::var_os(variable)
        .map(PathBuf::from)
        .into_iter()
        .chain([tools.join(name)])
        .chain(system)
        .find(|program| program.is_file())
}

/// A browser without a window, with a profile of its own; it ends with this value. All of its
/// methods block.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    /// Open as long as the driver may write to it.
    said: BufReader<ChildStdout>,
    address: SocketAddr,
    session: String,
    /// Its profile and home.
    folder: TempDir,
}

impl Browser {
    /// Starts one. It reaches nothing but the loopback address, and takes any certificate there.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start(programs: &Programs) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let log = fs::File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let mut driver = Command::new(&programs.driver)
            .arg("--port=0")
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", programs.driver.display()))?;
        let said = driver.stdout.take().ok_or("no output")?;
        let mut browser = Self {
            driver,
            said: BufReader::new(said),
            address: ([127, 0, 0, 1], 0).into(),
            session: String::new(),
            folder,
        };
        let port = browser.port()?;
        browser.address.set_port(port);
        let profile = browser.folder.path().join("profile");
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {
                "binary": programs.chromium,
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--no-first-run",
                    "--disable-background-networking",
                    "--disable-component-update",
                    "--disable-default-apps",
                    "--disable-sync",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
                    format!("--user-data-dir={}", profile.display()),
                ],
            },
        } } });
        let begun = browser.send("POST", "/session", Some(&capabilities))?;
        let session = begun["sessionId"].as_str().ok_or("no session")?;
        browser.session = session.to_owned();
        Ok(browser)
    }

    /// The port that the driver says it listens on.
    fn port(&mut self) -> Result<u16, String> {
        loop {
            let mut line = String::new();
            match self.said.read_line(&mut line) {
                Ok(0) | Err(_) => return Err("the driver does not say where it listens".to_owned()),
                Ok(_) => {}
            }
            // "ChromeDriver was started successfully on port 12345."
            if let Some((_, port)) = line.split_once("successfully on port ") {
                let port = port.trim().trim_end_matches('.').parse();
                return port.map_err(|_| format!("the driver says {line:?}"));
            }
        }
    }

    /// Goes to a page, and where that leads.
    pub fn visit(&self, url: &str) {
        self.command("POST", "/url", Some(&json!({ "url": url })));
    }

    /// Loads the page again.
    pub fn reload(&self) {
        self.command("POST", "/refresh", Some(&json!({})));
    }

    /// The URL of the page.
    pub fn url(&self) -> String {
        text(&self.command("GET", "/url", None))
    }

    /// The text of the page.
    pub fn text(&self) -> String {
        text(&self.script("return document.body.innerText"))
    }

    /// Waits for a page with this title.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_for(&self, title: &str) {
        let start = Instant::now();
        loop {
            let seen = text(&self.command("GET", "/title", None));
            if seen == title {
                return;
            }
            let (url, waited) = (self.url(), start.elapsed());
            assert!(
                waited < PAGE,
                "`{title}` does not come: `{seen}` at {url}\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Writes into the field that a CSS selector finds.
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        let path = format!("/element/{element}/value");
        self.command("POST", &path, Some(&json!({ "text": text })));
    }

    /// Clicks on what a CSS selector finds.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        let path = format!("/element/{element}/click");
        self.command("POST", &path, Some(&json!({})));
    }

    fn element(&self, selector: &str) -> String {
        let by = json!({ "using": "css selector", "value": selector });
        text(&self.command("POST", "/element", Some(&by))[ELEMENT])
    }

    /// What a function with this body returns; promises are waited for.
    pub fn script(&self, body: &str) -> Value {
        let script = json!({ "script": body, "args": [] });
        self.command("POST", "/execute/sync", Some(&script))
    }

    /// Waits until an expression holds.
    ///
    /// # Panics
    /// When it does not come to hold.
    pub fn until(&self, expression: &str) {
        let start = Instant::now();
        let body = format!("return Boolean({expression})");
        while self.script(&body) != Value::Bool(true) {
            assert!(
                start.elapsed() < PAGE,
                "`{expression}` does not come to hold at {}\n{}",
                self.url(),
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes the window this large.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height });
        self.command("POST", "/window/rect", Some(&size));
    }

    /// A picture of what the window shows: PNG in base64.
    pub fn screenshot(&self) -> String {
        text(&self.command("GET", "/screenshot", None))
    }

    /// Has the browser do something that only its own protocol can say.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let asked = json!({ "cmd": command, "params": parameters });
        self.command("POST", "/goog/cdp/execute", Some(&asked))
    }

    /// The page's cookies: `name`, `value`, `secure`, `httpOnly`, `sameSite`, `path`, ...
    pub fn cookies(&self) -> Vec<Value> {
        let cookies = self.command("GET", "/cookie", None);
        cookies.as_array().cloned().unwrap_or_default()
    }

    /// The tab that is shown, by a name for [`Browser::switch`].
    pub fn tab(&self) -> String {
        text(&self.command("GET", "/window", None))
    }

    /// Opens another tab and shows it.
    pub fn open_tab(&self) -> String {
        let opened = self.command("POST", "/window/new", Some(&json!({ "type": "tab" })));
        let tab = text(&opened["handle"]);
        self.switch(&tab);
        tab
    }

    /// Shows a tab.
    pub fn switch(&self, tab: &str) {
        self.command("POST", "/window", Some(&json!({ "handle": tab })));
    }

    fn command(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let path = format!("/session/{}{path}", self.session);
        self.send(method, &path, body).unwrap()
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let answer = exchange(self.address, method, path, body);
        let answer = answer.map_err(|e| format!("{method} {path}: {e}"))?;
        let mut answer: Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        let value = answer["value"].take();
        match value.get("error") {
            Some(error) => Err(format!("{method} {path}: {error}: {}", value["message"])),
            None => Ok(value),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser; without it the browser would stay.
        if !self.session.is_empty() {
            let _ = self.send("DELETE", &format!("/session/{}", self.session), None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// One HTTP exchange with the driver; gives the body of the answer.
fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> std::io::Result<Vec<u8>> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect_timeout(&address, COMMAND)?;
    stream.set_read_timeout(Some(COMMAND))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
    }
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer)?;
    Ok(answer)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
