//! A small OpenID provider that is strict with its clients, and can be told to misbehave.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as B64},
};
use serde_json::{Value, json};

use crate::http::{Message, serve};

pub(crate) const CLIENT: &str = "shop";
/// Has characters that the basic scheme wants encoded.
pub(crate) const SECRET: &str = "s3cret:/%+ä";

/// How clients prove themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Basic,
    Post,
    Public,
}

/// What the provider does to its clients; by default, nothing bad.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    pub(crate) client: Client,
    /// Claims of ID tokens that differ; `null` takes one away.
    pub(crate) claims: Value,
    /// ID tokens are signed with a key that is not in the key set.
    pub(crate) strange_key: bool,
    /// Answers of the token endpoint have no ID token.
    pub(crate) no_id_token: bool,
    /// The token endpoint answers 500.
    pub(crate) down: bool,
    /// Refresh tokens are not taken any more.
    pub(crate) revoked: bool,
    /// How long access tokens of a sign-in are good for, in seconds.
    pub(crate) expires_in: u64,
    /// The `iss` parameter of its answers.
    pub(crate) named: Option<String>,
    /// The `sub` of user info, if it is not the user's.
    pub(crate) other_user: Option<String>,
    /// An error for the browser to bring back.
    pub(crate) error: Option<String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            client: Client::Basic,
            claims: json!({}),
            strange_key: false,
            no_id_token: false,
            down: false,
            revoked: false,
            expires_in: 3600,
            named: None,
            other_user: None,
            error: None,
        }
    }
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) logins: usize,
    pub(crate) codes: usize,
    pub(crate) refreshes: usize,
    pub(crate) logouts: usize,
    /// Why a client was refused.
    pub(crate) refused: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Provider(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    key: EcdsaKeyPair,
    strange: EcdsaKeyPair,
}

#[derive(Debug, Default)]
struct State {
    issuer: String,
    behaviour: Behaviour,
    seen: Seen,
    /// What authorization requests asked for, by code.
    codes: HashMap<String, Asked>,
    /// Users by the tokens that they may be refreshed with, or known by.
    refresh_tokens: HashMap<String, String>,
    access_tokens: HashMap<String, String>,
    next: usize,
}

#[derive(Debug, Clone)]
struct Asked {
    user: String,
    redirect_uri: String,
    nonce: String,
    challenge: String,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let key = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let provider = Self(Arc::new(Inner {
            state: Mutex::default(),
            key: key(),
            strange: key(),
        }));
        let served = provider.clone();
        let address = serve(move |request| {
            let provider = served.clone();
            async move { provider.answer(&request) }
        });
        let address: SocketAddr = address.await;
        // A site of its own: browsers do not look at ports when they send cookies.
        provider.state().issuer = format!("http://localhost:{}", address.port());
        provider
    }

    pub(crate) fn issuer(&self) -> String {
        self.state().issuer.clone()
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state().behaviour);
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.state().seen)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn answer(&self, request: &Message) -> Message {
        match (request.method(), request.path()) {
            ("GET", "/.well-known/openid-configuration") => self.describe(),
            ("GET", "/keys") => Message::json(200, &json!({ "keys": [self.jwk()] })),
            ("GET", "/authorize") => self.authorize(request),
            ("POST", "/login") => self.log_in(request),
            ("POST", "/token") => match self.token(request) {
                Ok(answer) => answer,
                Err(why) => {
                    let error = if why == "client" {
                        "invalid_client"
                    } else {
                        "invalid_grant"
                    };
                    self.state().seen.refused.push(why);
                    Message::json(400, &json!({ "error": error }))
                }
            },
            ("GET", "/userinfo") => self.user_info(request),
            ("GET", "/logout") => self.log_out(request),
            _ => Message::page(404, "nothing here"),
        }
    }

    fn describe(&self) -> Message {
        let state = self.state();
        let issuer = &state.issuer;
        let url = |path: &str| format!("{issuer}{path}");
        Message::json(
            200,
            &json!({
                "issuer": issuer,
                "authorization_endpoint": url("/authorize?realm=a"),
                "token_endpoint": url("/token"),
                "userinfo_endpoint": url("/userinfo"),
                "end_session_endpoint": url("/logout"),
                "jwks_uri": url("/keys"),
                "authorization_response_iss_parameter_supported": true,
            }),
        )
    }

    fn jwk(&self) -> Value {
        let point = self.0.key.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256",
            "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..65]),
        })
    }

    /// The user is asked for a name, unless this browser has given one before.
    fn authorize(&self, request: &Message) -> Message {
        let query = |name: &str| request.query(name).unwrap_or_default();
        for (name, expected) in [
            ("realm", "a"),
            ("response_type", "code"),
            ("client_id", CLIENT),
            ("code_challenge_method", "S256"),
        ] {
            if query(name) != expected {
                return Message::page(400, format!("{name} is wrong"));
            }
        }
        let scope = query("scope");
        if !scope.split(' ').any(|scope| scope == "openid")
            || query("state").len() < 22
            || query("nonce").len() < 22
            || query("code_challenge").len() != 43
            || !query("redirect_uri").ends_with("/oauth2/callback")
        {
            return Message::page(400, "something is missing");
        }
        let (error, issuer) = {
            let state = self.state();
            (state.behaviour.error.clone(), state.issuer.clone())
        };
        if let Some(error) = error {
            let (back, state) = (query("redirect_uri"), query("state"));
            return Message::redirect(&format!("{back}?error={error}&state={state}&iss={issuer}"));
        }
        match request.cookie("idp") {
            Some(user) => self.send_back(request.target(), user),
            None => Message::page(
                200,
                format!(
                    "<title>Provider</title><form method=post action='/login'>\
                     <input id=user name=user><input type=hidden name=to value='{}'>\
                     <button id=go>Log in</button></form>",
                    request.target().replace('&', "&amp;")
                ),
            ),
        }
    }

    fn log_in(&self, request: &Message) -> Message {
        self.state().seen.logins += 1;
        let user = request.field("user").unwrap();
        let back = self.send_back(&request.field("to").unwrap(), &user);
        back.with("set-cookie", &format!("idp={user}; Path=/; HttpOnly"))
    }

    fn send_back(&self, authorize: &str, user: &str) -> Message {
        let asked = Message {
            line: format!("GET {authorize} HTTP/1.1"),
            ..Message::default()
        };
        let query = |name: &str| asked.query(name).unwrap_or_default();
        let mut state = self.state();
        let code = state.fresh("code");
        let redirect_uri = query("redirect_uri");
        state.codes.insert(
            code.clone(),
            Asked {
                user: user.to_owned(),
                redirect_uri: redirect_uri.clone(),
                nonce: query("nonce"),
                challenge: query("code_challenge"),
            },
        );
        let issuer = state.behaviour.named.as_ref().unwrap_or(&state.issuer);
        let given = query("state");
        Message::redirect(&format!(
            "{redirect_uri}?code={code}&state={given}&iss={issuer}"
        ))
    }

    fn token(&self, request: &Message) -> Result<Message, String> {
        let mut state = self.state();
        if state.behaviour.down {
            return Ok(Message::json(500, &json!({ "error": "server_error" })));
        }
        if !is_client(state.behaviour.client, request) {
            return Err("client".to_owned());
        }
        let field = |name: &str| request.field(name).unwrap_or_default();
        match field("grant_type").as_str() {
            "authorization_code" => {
                state.seen.codes += 1;
                let asked = state.codes.remove(&field("code")).ok_or("code")?;
                let proof = B64.encode(digest(&SHA256, field("code_verifier").as_bytes()));
                if proof != asked.challenge {
                    return Err("verifier".to_owned());
                }
                if field("redirect_uri") != asked.redirect_uri {
                    return Err("redirect_uri".to_owned());
                }
                let lifetime = state.behaviour.expires_in;
                Ok(self.tokens(&mut state, &asked.user, Some(&asked.nonce), lifetime))
            }
            "refresh_token" => {
                state.seen.refreshes += 1;
                // Each is good for once.
                let user = state.refresh_tokens.remove(&field("refresh_token"));
                let user = user
                    .filter(|_| !state.behaviour.revoked)
                    .ok_or("refresh_token")?;
                Ok(self.tokens(&mut state, &user, None, 3600))
            }
            _ => Err("grant_type".to_owned()),
        }
    }

    fn tokens(&self, state: &mut State, user: &str, nonce: Option<&str>, seconds: u64) -> Message {
        let access = state.fresh("access");
        let refresh = state.fresh("refresh");
        state.access_tokens.insert(access.clone(), user.to_owned());
        state
            .refresh_tokens
            .insert(refresh.clone(), user.to_owned());
        let hash = digest(&SHA256, access.as_bytes());
        let mut claims = json!({
            "iss": state.issuer, "aud": CLIENT, "sub": user, "exp": now() + 300, "iat": now(),
            "nonce": nonce, "at_hash": B64.encode(&hash.as_ref()[..16]), "groups": ["staff"],
        });
        for (name, value) in state.behaviour.claims.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        let key = if state.behaviour.strange_key {
            &self.0.strange
        } else {
            &self.0.key
        };
        let mut answer = json!({
            "token_type": "Bearer", "access_token": access, "refresh_token": refresh,
            "expires_in": seconds, "id_token": sign(key, &claims),
        });
        if state.behaviour.no_id_token {
            answer.as_object_mut().unwrap().remove("id_token");
        }
        Message::json(200, &answer)
    }

    fn user_info(&self, request: &Message) -> Message {
        let state = self.state();
        let token = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        match token.and_then(|token| state.access_tokens.get(token)) {
            Some(user) => {
                let user = state.behaviour.other_user.as_ref().unwrap_or(user);
                Message::json(
                    200,
                    &json!({ "sub": user, "email": format!("{user}@example.com") }),
                )
            }
            None => Message::json(401, &json!({ "error": "invalid_token" })),
        }
    }

    fn log_out(&self, request: &Message) -> Message {
        self.state().seen.logouts += 1;
        let client = request.query("client_id");
        let hint = request.query("id_token_hint");
        if client.as_deref() != Some(CLIENT) || hint.is_none() {
            return Message::page(400, "whose session?");
        }
        let answer = match request.query("post_logout_redirect_uri") {
            Some(back) => Message::redirect(&back),
            None => Message::page(200, "<title>Logged out</title>logged out"),
        };
        answer.with("set-cookie", "idp=; Path=/; Max-Age=0; HttpOnly")
    }
}

impl State {
    fn fresh(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}-{}", self.next)
    }
}

/// Whether a request of the token endpoint comes from the client.
fn is_client(client: Client, request: &Message) -> bool {
    let id = request.field("client_id");
    let secret = request.field("client_secret");
    let basic = request.header("authorization");
    match client {
        Client::Basic => {
            // s3cret:/%+ä, encoded as RFC 6749 wants it.
            let pair = BASE64_STANDARD.encode("shop:s3cret%3A%2F%25%2B%C3%A4");
            secret.is_none() && basic == Some(&format!("Basic {pair}"))
        }
        Client::Post => {
            (id.as_deref(), secret.as_deref(), basic) == (Some(CLIENT), Some(SECRET), None)
        }
        Client::Public => (id.as_deref(), secret, basic) == (Some(CLIENT), None, None),
    }
}

fn sign(key: &EcdsaKeyPair, claims: &Value) -> String {
    let part = |value: &Value| B64.encode(value.to_string());
    let header = json!({ "alg": "ES256", "kid": "k" });
    let signed = format!("{}.{}", part(&header), part(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", B64.encode(signature))
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}
