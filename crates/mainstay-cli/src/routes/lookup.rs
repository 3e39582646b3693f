//! Finds the rule that takes a request: by its host, then by its path, in the order of precedence of [`match_rule`].
//!
//! The cost depends on how many different lengths the wildcards and the prefixes have, and not on how many rules there are. No
//! request can make it larger: its host and its path are cut at the lengths of the configuration, wherever they have a dot or
//! a slash.
//!
//! [`match_rule`]: crate::routes::match_rule

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::routes::match_rule::{HostPattern, MatchRule, PathPattern};

/// The rules of a table, by their numbers.
#[derive(Default)]
pub(crate) struct Lookup {
    named: HashMap<Box<str>, Paths>,
    below: ByLength<Paths>,
    any_host: Paths,
}

/// The rules of one host, by their paths.
#[derive(Default)]
struct Paths {
    exact: HashMap<Box<str>, usize>,
    /// Without a slash at their ends.
    prefixes: ByLength<usize>,
}

/// Values by texts of a few lengths.
struct ByLength<T> {
    values: HashMap<Box<str>, T>,
    /// The lengths of the texts, the longest first.
    lengths: Vec<usize>,
}

impl Lookup {
    /// Numbers the rules from 0 on. The first of two equal ones takes all requests.
    pub(crate) fn new<'a>(rules: impl IntoIterator<Item = &'a MatchRule>) -> Self {
        let mut lookup = Self::default();
        for (number, rule) in rules.into_iter().enumerate() {
            if rule.hosts.is_empty() {
                lookup.any_host.add(&rule.path, number);
            }
            for host in &rule.hosts {
                let paths = match host {
                    HostPattern::Exact(name) => lookup.named.entry(name.clone()).or_default(),
                    HostPattern::Below(name) => lookup.below.entry(name).or_default(),
                };
                paths.add(&rule.path, number);
            }
        }
        lookup
    }

    /// Returns the number of the rule that takes a request. `host` has no port, and `path` is canonical.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<usize> {
        let host = match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        let below = |length| {
            let (head, tail) = host.split_at_checked(host.len().checked_sub(length)?)?;
            head.ends_with('.').then_some(tail)
        };
        let hosts = self.named.get(&*host).into_iter().chain(self.below.matching(below));
        hosts.chain([&self.any_host]).find_map(|paths| paths.find(path))
    }
}

impl Paths {
    fn add(&mut self, path: &PathPattern, number: usize) {
        let place = match path {
            PathPattern::Exact(own) => self.exact.entry(own.clone()),
            PathPattern::Prefix(own) => self.prefixes.entry(own.trim_end_matches('/')),
        };
        place.or_insert(number);
    }

    fn find(&self, path: &str) -> Option<usize> {
        let prefix = |length| {
            let (head, tail) = path.split_at_checked(length)?;
            (tail.is_empty() || tail.starts_with('/')).then_some(head)
        };
        self.exact.get(path).or_else(|| self.prefixes.matching(prefix).next()).copied()
    }
}

impl<T> Default for ByLength<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), lengths: Vec::new() }
    }
}

impl<T> ByLength<T> {
    fn entry(&mut self, text: &str) -> Entry<'_, Box<str>, T> {
        if let Err(place) = self.lengths.binary_search_by(|length| text.len().cmp(length)) {
            self.lengths.insert(place, text.len());
        }
        self.values.entry(text.into())
    }

    /// Returns the values of the texts that `cut` gives for their lengths, that of the longest first.
    fn matching<'a>(&'a self, cut: impl Fn(usize) -> Option<&'a str>) -> impl Iterator<Item = &'a T> {
        self.lengths.iter().filter_map(move |length| self.values.get(cut(*length)?))
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    /// The definition: the rule of the highest rank, the first of several.
    fn defined(rules: &[MatchRule], host: &str, path: &str) -> Option<usize> {
        let ranked =
            rules.iter().enumerate().filter_map(|(number, rule)| Some((rule.rank(host, path)?, number)));
        ranked.min_by_key(|(rank, _)| Reverse(*rank)).map(|(_, number)| number)
    }

    const HOST_PARTS: &[&str] = &["a", "b", "aa", ""];
    const PATH_PARTS: &[&str] = &["a", "b", "é", "aa", ""];
    const ASKED_PARTS: &[&str] = &["a", "A", "b", "B", "é", "aa", ""];

    /// Texts of a few short parts, so that many of them match each other.
    fn joined(
        parts: &'static [&'static str],
        separator: &'static str,
        most: usize,
    ) -> impl Strategy<Value = String> {
        let parts = prop::collection::vec(prop::sample::select(parts), 0..=most);
        parts.prop_map(move |parts| parts.join(separator))
    }

    fn host() -> impl Strategy<Value = HostPattern> {
        let text = (prop::sample::select(vec!["", "*."]), joined(HOST_PARTS, ".", 4));
        text.prop_filter_map("no host", |(wildcard, name)| {
            HostPattern::parse(&format!("{wildcard}{name}")).ok()
        })
    }

    fn path() -> impl Strategy<Value = PathPattern> {
        (any::<bool>(), joined(PATH_PARTS, "/", 4)).prop_map(|(is_exact, path)| match is_exact {
            true => PathPattern::Exact(format!("/{path}").into()),
            false => PathPattern::Prefix(format!("/{path}").into()),
        })
    }

    fn rule() -> impl Strategy<Value = MatchRule> {
        (prop::collection::vec(host(), 0..3), path()).prop_map(|(hosts, path)| MatchRule {
            hosts,
            path,
            strips_path: false,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_rule_that_is_found_is_the_first_of_the_highest_rank(
            rules in prop::collection::vec(rule(), 0..12),
            requests in prop::collection::vec(
                (joined(ASKED_PARTS, ".", 5), joined(ASKED_PARTS, "/", 5), any::<bool>()),
                20,
            ),
        ) {
            let lookup = Lookup::new(&rules);
            for (host, path, is_absolute) in &requests {
                let path = format!("{}{path}", if *is_absolute { "/" } else { "" });
                prop_assert_eq!(lookup.find(host, &path), defined(&rules, host, &path), "{:?} {:?}", host, path);
            }
        }
    }

    #[test]
    fn a_request_is_compared_with_as_many_texts_as_there_are_lengths_and_not_with_each_rule() {
        let rule = |number: usize| MatchRule {
            hosts: vec![HostPattern::Below(format!("h{:02}.example.com", number % 100).into())],
            path: PathPattern::Prefix(format!("/r{number:04}").into()),
            strips_path: false,
        };
        let rules: Vec<MatchRule> = (0..1_000).map(rule).collect();
        let lookup = Lookup::new(&rules);
        assert_eq!((lookup.below.lengths.len(), lookup.below.values.len()), (1, 100));
        for paths in lookup.below.values.values() {
            assert_eq!((paths.prefixes.lengths.len(), paths.prefixes.values.len()), (1, 10));
        }
        assert_eq!(lookup.find("x.h42.example.com", "/r0142/below"), Some(142));
    }
}
