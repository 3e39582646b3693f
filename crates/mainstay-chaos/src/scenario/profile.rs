//! The built-in profiles: scenarios that imitate what people meet.

/// A scenario that comes with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// The scenario file, to read or to start one from. Its first comment says what it imitates and where its figures are from.
    pub text: &'static str,
}

macro_rules! profiles {
    ($($name:literal),* $(,)?) => {
        [$(Profile { name: $name, text: include_str!(concat!("../profiles/", $name, ".toml")) }),*]
    };
}

impl Profile {
    /// All profiles: proxies and balancers first, then networks, then what operators do.
    pub const ALL: [Self; 18] = profiles![
        "nginx-60s",
        "alb",
        "nlb",
        "heroku",
        "cloudflare",
        "azure",
        "envoy",
        "google-lb",
        "cloud-run",
        "api-gateway",
        "nat",
        "mobile",
        "tunnel",
        "elevator",
        "hotel-wifi",
        "deploy",
        "overload",
        "flaky",
    ];

    /// Returns the profile of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        static ALL: [Profile; 18] = Profile::ALL;
        ALL.iter().find(|profile| profile.name == name)
    }

    /// Returns what it imitates, in one line: the first comment of its file up to the source.
    #[must_use]
    pub fn about(&self) -> String {
        self.comment().split(" Source:").next().unwrap_or_default().to_owned()
    }

    /// Returns where its figures are from.
    #[must_use]
    pub fn source(&self) -> String {
        self.comment().split(" Source: ").nth(1).unwrap_or_default().to_owned()
    }

    fn comment(&self) -> String {
        let lines = self.text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        lines.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scenario;

    #[test]
    fn every_profile_is_valid_and_says_what_it_imitates_and_where_its_figures_are_from() {
        for profile in Profile::ALL {
            let scenario =
                Scenario::profile(profile.name).unwrap_or_else(|error| panic!("{}: {error}", profile.name));
            assert!(!scenario.rules.is_empty(), "{}", profile.name);
            let (about, source) = (profile.about(), profile.source());
            assert!(about.len() > 20 && about.ends_with('.'), "{}: {about}", profile.name);
            assert!(source.len() > 10 && source.ends_with('.'), "{}: {source}", profile.name);
        }
    }

    #[test]
    fn an_unknown_profile_is_named_with_the_one_that_was_probably_meant() {
        let wrong = |name| Scenario::profile(name).unwrap_err().to_string();
        assert_eq!(wrong("elevater"), "\"elevater\" is no profile; write elevator");
        assert_eq!(wrong("nginx_60s"), "\"nginx_60s\" is no profile; write nginx-60s");
        assert!(wrong("submarine").contains("write one of nginx-60s, alb,"));
    }
}
