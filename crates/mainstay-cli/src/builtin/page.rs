//! The live page, in the reader's language: one self-contained file, and headers that allow it nothing else.

use std::sync::Arc;

use axum::extract::RawQuery;
use axum::http::HeaderMap;
use axum::http::header::{
    ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};

use crate::page_policy::policy;

/// `clients/page/build.mjs` generates these files.
const ENGLISH: &str = include_str!("../page.html");
const CHINESE: &str = include_str!("../page.zh.html");

/// The page in each language, with its content security policy.
#[derive(Clone)]
pub(super) struct Page {
    english: Edition,
    chinese: Edition,
}

#[derive(Clone)]
struct Edition {
    language: &'static str,
    text: &'static str,
    policy: Arc<str>,
}

impl Page {
    pub(super) fn new() -> Self {
        let edition = |language, text| Edition { language, text, policy: policy(text).into() };
        Self { english: edition("en", ENGLISH), chinese: edition("zh-CN", CHINESE) }
    }

    /// Responds in the language that `?lang=` names, or that the browser prefers.
    pub(super) fn response(&self, headers: &HeaderMap, RawQuery(query): RawQuery) -> Response {
        let accepted = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let named = query.as_deref().unwrap_or("").split('&').find_map(|field| field.strip_prefix("lang="));
        let edition = if prefers_chinese(named.unwrap_or(accepted)) { &self.chinese } else { &self.english };
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_LANGUAGE, edition.language),
            (VARY, "accept-language"),
            // A newer release may have a newer page.
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, &*edition.policy),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        (headers, edition.text).into_response()
    }
}

/// Returns whether a list of languages, as in `Accept-Language`, prefers Chinese to English.
///
/// Source: RFC 9110 section 12.5.4.
fn prefers_chinese(accepted: &str) -> bool {
    let mut best = [0.0_f32; 2]; // of Chinese, of English
    for range in accepted.split(',') {
        let (tag, weight) = range.split_once(';').unwrap_or((range, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse().ok()).unwrap_or(0.0);
        let primary = tag.trim().split('-').next().unwrap_or("");
        for (name, best) in ["zh", "en"].iter().zip(&mut best) {
            if primary.eq_ignore_ascii_case(name) {
                *best = best.max(weight);
            }
        }
    }
    best[0] > best[1] || (best[0] > 0.0 && best[0] >= best[1] && first_is_chinese(accepted))
}

/// Returns whether Chinese comes before English; decides between equal weights.
fn first_is_chinese(accepted: &str) -> bool {
    let mut primary =
        accepted.split(',').map(|range| range.trim().get(..2).unwrap_or("").to_ascii_lowercase());
    primary.find(|tag| tag == "zh" || tag == "en").is_some_and(|tag| tag == "zh")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page_policy;

    #[test]
    fn chinese_is_served_if_it_is_preferred_to_english() {
        let chinese = [
            "zh",
            "zh-CN",
            "ZH-TW,en;q=0.5",
            "zh-CN,zh;q=0.9,en;q=0.8",
            "zh,en",
            "de,zh;q=0.2",
            "fr;q=0.1, zh",
        ];
        let english =
            ["", "en", "en-GB,zh;q=0.9", "en,zh", "de", "*", "zh;q=0", "zh;q=x", "zhx", ",;,", "z\u{e9}"];
        for accepted in chinese {
            assert!(prefers_chinese(accepted), "{accepted}");
        }
        for accepted in english {
            assert!(!prefers_chinese(accepted), "{accepted}");
        }
    }

    #[test]
    fn the_page_has_one_script_and_one_style_and_loads_nothing() {
        [ENGLISH, CHINESE].into_iter().for_each(page_policy::assert_self_contained);
    }
}
