//! The live page: one file that needs nothing else, and headers that forbid it everything else.

use std::sync::Arc;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Made from `clients/page` by its `build.mjs`.
const PAGE: &str = include_str!("../page.html");

/// The page, and what a browser may do with it.
#[derive(Clone)]
pub(super) struct Page {
    policy: Arc<str>,
}

impl Page {
    pub(super) fn new() -> Self {
        Self { policy: policy(PAGE).into() }
    }

    pub(super) fn response(&self) -> Response {
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            // A newer program may have a newer page.
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, &*self.policy),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        (headers, PAGE).into_response()
    }
}

/// The page's own script and style by their hashes, sockets to where it came from, and nothing else.
fn policy(page: &str) -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes(page, "script"),
        hashes(page, "style"),
    )
}

/// Of what stands in each element of this name. `'none'`: there is no such element.
fn hashes(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let bodies = page.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    let hashes: Vec<_> = bodies
        .map(|body| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(body.as_bytes()))))
        .collect();
    if hashes.is_empty() { "'none'".to_owned() } else { hashes.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_what_stands_in_the_elements_and_nothing_else() {
        // echo -n hello | openssl dgst -sha256 -binary | base64
        let hello = "'sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ='";
        let policy = policy("<style>hello</style><p>hello</p>");
        assert!(policy.contains(&format!("style-src {hello};")), "{policy}");
        assert!(policy.contains("script-src 'none';"), "{policy}");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
    }

    #[test]
    fn the_page_is_one_file_whose_every_script_and_style_has_a_hash() {
        for element in ["script", "style"] {
            assert_eq!(
                PAGE.matches(&format!("<{element}>")).count(),
                1,
                "one <{element}> without attributes"
            );
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1);
            assert_eq!(PAGE.matches(&format!("</{element}>")).count(), 1);
        }
        assert!(!PAGE.contains(" style=\""), "an attribute that the policy forbids");
        assert!(!PAGE.contains("src=\"") && !PAGE.contains("url("), "a request of its own");
    }
}
