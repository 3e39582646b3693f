//! The parameters of a request to the admin listener: each is known, given once, and within its bounds.

use std::str::FromStr;

use axum::extract::Request;
use axum::http::StatusCode;

/// Why a request is wrong: its status and one line.
pub(crate) type Wrong = (StatusCode, String);

pub(crate) fn bad(line: impl std::fmt::Display) -> Wrong {
    (StatusCode::BAD_REQUEST, format!("{line}\n"))
}

/// The parameters of one request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the parameters.
    ///
    /// # Errors
    /// One of them is unknown or given twice.
    pub(crate) fn of(request: &Request, known: &[&str]) -> Result<Self, Wrong> {
        let text = request.uri().query().unwrap_or_default();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let name = name.escape_debug();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(bad(format!("{name}: unknown parameter; this path has {known}")));
            }
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(bad(format!("{name}: given twice; write it once")));
            }
        }
        Ok(Self(pairs))
    }

    /// Returns a parameter; `None` if it is not there, or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Returns a parameter as a number.
    ///
    /// # Errors
    /// It is no number within these bounds.
    pub(crate) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
        &self,
        name: &str,
        from: T,
        to: T,
    ) -> Result<Option<T>, Wrong> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number >= from && number <= to => Ok(Some(number)),
            _ => Err(bad(format!("{name}: must be a number from {from} to {to}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn query(text: &str) -> Result<Query, Wrong> {
        let request = Request::builder().uri(format!("/sessions?{text}")).body(Body::empty()).unwrap();
        Query::of(&request, &["limit", "subject"])
    }

    #[test]
    fn a_wrong_parameter_is_named_with_what_is_right() {
        let wrong = |text: &str| query(text).err().map(|(status, line)| (status.as_u16(), line)).unwrap();
        let unknown = "limits: unknown parameter; this path has limit, subject\n";
        assert_eq!(wrong("limits=1"), (400, unknown.to_owned()));
        assert_eq!(wrong("limit=1&limit=1"), (400, "limit: given twice; write it once\n".to_owned()));
        let number = |text: &str| query(text).ok().unwrap().number("limit", 1, 1000);
        for text in ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=99999999999999999999"] {
            assert_eq!(number(text).unwrap_err().1, "limit: must be a number from 1 to 1000\n", "{text}");
        }
        assert_eq!(
            (number("limit=7").ok(), number("").ok(), number("limit=").ok()),
            (Some(Some(7)), Some(None), Some(None))
        );
        assert_eq!(query("subject=a%26b").ok().unwrap().get("subject"), Some("a&b"));
    }
}
