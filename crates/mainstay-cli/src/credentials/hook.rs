//! The connect hook: an HTTP request to the operator's backend for each opening, whose response decides.
//!
//! The hook gets a POST with a JSON body: `event` (`connect`, or `refresh` on a live session), `route`, `method`, `host`,
//! `path`, `query`, `headers`, `address`, the `subject` of a token that was checked before, and the `credentials` of a client
//! that speaks `mainstay.v1` (`credentials_base64`, where they are no text). A 2xx admits; its
//! body may be JSON with `subject`, `headers` and `expires_in` (seconds). A 401 or 403 refuses, with an optional `reason`.
//! Anything else, and no answer in time, decides nothing: the settings say what happens then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::refusal::{Reason, Refusal};
use crate::clients::identity::Subject;
use crate::http_client::HttpClient;

/// The longest answer.
const MAX_ANSWER: usize = 64 * 1024;
/// The longest subject, reason and value of a header, in bytes.
const MAX_SUBJECT: usize = 256;
const MAX_REASON: usize = 100;
const MAX_FIELD: usize = 4096;

/// What the settings say, checked before.
pub(crate) struct Settings {
    pub(crate) url: Uri,
    pub(crate) timeout: Duration,
    pub(crate) concurrency: usize,
    /// Headers of the request to the hook.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// The headers for the backend that the hook may set.
    pub(crate) sets: Vec<HeaderName>,
    /// What happens without a decision: the client is admitted, without a subject.
    pub(crate) allows_on_failure: bool,
}

/// See the module.
pub(crate) struct Hook {
    settings: Settings,
    client: HttpClient,
    /// One for each request that may be under way.
    slots: Semaphore,
}

/// What the hook is told. `None` and empty parts are left out.
#[derive(Serialize)]
pub(crate) struct Question<'a> {
    pub(crate) event: &'static str,
    pub(crate) route: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) query: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    pub(crate) headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) credentials: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) credentials_base64: Option<String>,
}

impl<'a> Question<'a> {
    pub(crate) fn with_credentials(mut self, credentials: Option<&'a [u8]>) -> Self {
        match credentials.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => {}
            Some((_, Ok(text))) => self.credentials = Some(text),
            Some((bytes, Err(_))) => self.credentials_base64 = Some(STANDARD.encode(bytes)),
        }
        self
    }
}

/// Returns the fields of a request as the hook gets them: several of one name are joined, as RFC 9110 section 5.3 allows.
pub(crate) fn fields(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut fields: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let joined = fields.entry(name.as_str()).or_default();
        if !joined.is_empty() {
            joined.push_str(if name == http::header::COOKIE { "; " } else { ", " });
        }
        joined.push_str(&value);
    }
    fields
}

/// What the hook decided for a client that it admits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(crate) subject: Option<Subject>,
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
    pub(crate) expires_in: Option<Duration>,
}

/// The body of an answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    subject: Option<String>,
    headers: BTreeMap<String, String>,
    /// In seconds.
    expires_in: Option<f64>,
    reason: Option<String>,
}

impl Hook {
    pub(crate) fn new(settings: Settings, client: HttpClient) -> Self {
        let slots = Semaphore::new(settings.concurrency);
        Self { settings, client, slots }
    }

    /// Returns the names of the headers that the hook may set.
    pub(crate) fn field_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.settings.sets.iter()
    }

    /// Asks the hook about a client.
    ///
    /// # Errors
    /// It refuses, or did not decide and the settings refuse.
    pub(crate) async fn ask(&self, question: &Question<'_>) -> Result<Admission, Refusal> {
        let undecided = match self.answer(question).await {
            Ok((status, body)) => match self.decide(status, &body) {
                Ok(decision) => return decision,
                Err(undecided) => undecided,
            },
            Err(undecided) => undecided,
        };
        let refusal = Refusal::new(Reason::HookUnavailable, undecided);
        if self.settings.allows_on_failure { Ok(Admission::default()) } else { Err(refusal) }
    }

    async fn answer(&self, question: &Question<'_>) -> Result<(StatusCode, Bytes), String> {
        let deadline = Instant::now() + self.settings.timeout;
        // The wait for a slot is part of the time: a client waits for both.
        let _slot = timeout_at(deadline, self.slots.acquire())
            .await
            .map_err(|_| format!("{} requests to the hook are under way", self.settings.concurrency))?;
        let body = serde_json::to_vec(question).map_err(|error| error.to_string())?;
        let mut request = Request::new(Body::from(body));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, self.settings.url.clone());
        request.headers_mut().extend(self.settings.headers.iter().cloned());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let left = deadline.saturating_duration_since(Instant::now());
        let (head, body) = self.client.send(request, MAX_ANSWER, left).await?.into_parts();
        Ok((head.status, body))
    }

    /// Reads an answer. The outer error says why it decides nothing.
    fn decide(&self, status: StatusCode, body: &[u8]) -> Result<Result<Admission, Refusal>, String> {
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let reason = serde_json::from_slice(body).ok().and_then(|answer: Answer| answer.reason);
            let words =
                reason.filter(|reason| reason.len() <= MAX_REASON && !reason.contains(char::is_control));
            let detail = format!("status {}", status.as_u16());
            return Ok(Err(Refusal { words, status, ..Refusal::new(Reason::Hook, detail) }));
        }
        if !status.is_success() {
            return Err(format!("status {}", status.as_u16()));
        }
        if body.trim_ascii().is_empty() {
            return Ok(Ok(Admission::default()));
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
        self.admission(answer).map(Ok)
    }

    fn admission(&self, answer: Answer) -> Result<Admission, String> {
        let subject = match answer.subject {
            Some(subject) if (1..=MAX_SUBJECT).contains(&subject.len()) => Some(Subject(Arc::from(subject))),
            Some(_) => return Err(format!("the subject must have 1 to {MAX_SUBJECT} bytes")),
            None => None,
        };
        let expires_in = match answer.expires_in {
            None => None,
            Some(seconds) => Some(
                Duration::try_from_secs_f64(seconds)
                    .map_err(|_| "expires_in must be a number of seconds".to_owned())?,
            ),
        };
        let field = |(name, value): (String, String)| {
            let allowed =
                self.settings.sets.iter().find(|allowed| allowed.as_str().eq_ignore_ascii_case(&name));
            let allowed = allowed.ok_or_else(|| format!("the header {name:?} is not in sets-headers"))?;
            let value =
                HeaderValue::from_bytes(value.as_bytes()).ok().filter(|value| value.len() <= MAX_FIELD);
            Ok((allowed.clone(), value.ok_or_else(|| format!("the value of {allowed} is no header value"))?))
        };
        let fields = answer.headers.into_iter().map(field).collect::<Result<_, String>>()?;
        Ok(Admission { subject, fields, expires_in })
    }
}

#[cfg(test)]
mod tests {
    use mainstay::client::Connector;

    use super::*;

    fn hook() -> Hook {
        let settings = Settings {
            url: Uri::from_static("http://127.0.0.1:1/"),
            timeout: Duration::from_secs(1),
            concurrency: 1,
            headers: Vec::new(),
            sets: vec![HeaderName::from_static("x-user")],
            allows_on_failure: false,
        };
        Hook::new(settings, HttpClient::new(Connector::default()))
    }

    fn decided(status: u16, body: &str) -> Result<Result<Admission, Refusal>, String> {
        hook().decide(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn a_2xx_admits_with_what_its_body_says() {
        assert_eq!(decided(204, ""), Ok(Ok(Admission::default())));
        assert_eq!(decided(200, "{}\n"), Ok(Ok(Admission::default())));
        let body = r#"{"subject": "alice", "headers": {"X-User": "Alice"}, "expires_in": 1.5, "later": 1}"#;
        let expected = Admission {
            subject: Some(Subject("alice".into())),
            fields: vec![(HeaderName::from_static("x-user"), HeaderValue::from_static("Alice"))],
            expires_in: Some(Duration::from_millis(1500)),
        };
        assert_eq!(decided(200, body), Ok(Ok(expected)));
    }

    #[test]
    fn a_401_or_403_refuses_with_the_reason_if_it_is_short_and_plain() {
        for (status, body, words) in [
            (401, "", None),
            (403, r#"{"reason": "blocked"}"#, Some("blocked")),
            (403, "<html>", None),
            (401, "{\"reason\": \"a\\nb\"}", None),
        ] {
            let refusal = decided(status, body).unwrap().unwrap_err();
            assert_eq!((refusal.reason, refusal.words.as_deref()), (Reason::Hook, words), "{status} {body}");
        }
        let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(101));
        assert_eq!(decided(401, &long).unwrap().unwrap_err().words, None);
    }

    #[test]
    fn anything_else_decides_nothing() {
        let long = format!(r#"{{"subject": "{}"}}"#, "x".repeat(257));
        for (status, body) in [
            (302, ""),
            (404, ""),
            (500, ""),
            (200, "ok"),
            (200, r#"{"subject": ""}"#),
            (200, &*long),
            (200, r#"{"subject": 1}"#),
            (200, r#"{"expires_in": -1}"#),
            (200, r#"{"expires_in": 1e300}"#),
            (200, r#"{"headers": {"Cookie": "a=b"}}"#),
            (200, r#"{"headers": {"X-User": "a\nb"}}"#),
        ] {
            assert!(decided(status, body).is_err(), "{status} {body}");
        }
    }

    #[test]
    fn credentials_that_are_no_text_are_sent_as_base64() {
        let headers = HeaderMap::new();
        let question = || Question {
            event: "connect",
            route: "r",
            method: "GET",
            host: "h",
            path: "/",
            query: None,
            address: None,
            headers: fields(&headers),
            subject: None,
            credentials: None,
            credentials_base64: None,
        };
        let sent = |credentials: Option<&[u8]>| {
            serde_json::to_string(&question().with_credentials(credentials)).unwrap()
        };
        let rest = r#""event":"connect","route":"r","method":"GET","host":"h","path":"/","headers":{}"#;
        assert_eq!(sent(None), format!("{{{rest}}}"));
        assert_eq!(sent(Some(b"t")), format!(r#"{{{rest},"credentials":"t"}}"#));
        assert_eq!(sent(Some(&[0xff])), format!(r#"{{{rest},"credentials_base64":"/w=="}}"#));
    }

    #[test]
    fn several_fields_of_one_name_are_joined() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("cookie", "a=b"), ("x-a", "2"), ("cookie", "c=d")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let fields: Vec<_> = fields(&headers).into_iter().collect();
        assert_eq!(fields, [("cookie", "a=b; c=d".to_owned()), ("x-a", "1, 2".to_owned())]);
    }
}
