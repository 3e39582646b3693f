//! The content security policy of a page that is one file: its own script and style, and nothing else.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

/// Returns a policy that allows the page's own script and style by their hashes and connections to its origin.
pub(crate) fn policy(page: &str) -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes(page, "script"),
        hashes(page, "style"),
    )
}

/// Returns the hashes of the contents of all elements of this name, or `'none'`.
fn hashes(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let bodies = page.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    let hashes: Vec<_> = bodies
        .map(|body| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(body.as_bytes()))))
        .collect();
    if hashes.is_empty() { "'none'".to_owned() } else { hashes.join(" ") }
}

/// Fails if a page loads anything, or has what its policy forbids.
#[cfg(test)]
pub(crate) fn assert_self_contained(page: &str) {
    for element in ["script", "style"] {
        let open = format!("<{element}>");
        assert_eq!(page.matches(&open).count(), 1, "one <{element}> without attributes");
        assert_eq!(page.matches(&format!("<{element}")).count(), 1);
        assert_eq!(page.matches(&format!("</{element}>")).count(), 1);
    }
    let (markup, _) = page.split_once("<script>").unwrap();
    assert!(!markup.contains(" style=\""), "an attribute that the policy forbids");
    assert!(!markup.contains("src=\"") && !markup.contains("url("), "a request of its own");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_the_hash_of_each_element_and_nothing_else() {
        // echo -n hello | openssl dgst -sha256 -binary | base64
        let hello = "'sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ='";
        let policy = policy("<style>hello</style><p>hello</p>");
        assert!(policy.contains(&format!("style-src {hello};")), "{policy}");
        assert!(policy.contains("script-src 'none';"), "{policy}");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
    }
}
