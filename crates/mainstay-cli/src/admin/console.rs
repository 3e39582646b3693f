//! The console: one self-contained page at `/`, and headers that allow it nothing else.
//!
//! It asks `/status`, `/sessions` and `/events` of this listener, with the token that its reader enters, and holds no data.

use std::sync::Arc;

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};

use crate::page_policy;

/// `clients/page/build.mjs` makes this file from `clients/console`.
const PAGE: &str = include_str!("../console.html");

/// The page, with its content security policy.
#[derive(Clone)]
pub(super) struct Page(Arc<str>);

impl Page {
    pub(super) fn new() -> Self {
        Self(page_policy::policy(PAGE).into())
    }

    pub(super) fn response(&self) -> Response {
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            // A newer release may have a newer page.
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, &*self.0),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        (headers, PAGE).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_one_file_that_loads_nothing() {
        page_policy::assert_self_contained(PAGE);
    }
}
