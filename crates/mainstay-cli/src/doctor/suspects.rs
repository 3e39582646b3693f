//! Ranks what may have ended a connection: the figures of [`cutters`](super::cutters) against what was seen, and against the fields
//! of the response.
//!
//! Nothing is certain from one end of a path. A product is *most probable* if a field of the response names it and its own default is
//! what was measured; *probable* if one of the two holds and nothing else comes into question; *possible* otherwise.

use std::cmp::Reverse;
use std::time::Duration;

use super::advice;
use super::cutters::{self, Basis, CUTTERS, Cut, Cutter, Figure, Place, ResetBy, Signs};
use super::judgement::{Certainty, Suspect};
use super::report::Product;
use super::words::{age, span};

/// How many are worth reading.
const SHOWN: usize = 5;

/// A cut that was seen, and what is known beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sighting<'a> {
    pub(crate) kind: Kind,
    pub(crate) after: Duration,
    /// [`Cut::Unknown`] fits everything.
    pub(crate) cut: Cut,
    /// Whether bytes from the client alone keep the connection, if that was tried.
    pub(crate) client_keeps: Option<bool>,
    /// The same of bytes from the server.
    pub(crate) server_keeps: Option<bool>,
    pub(crate) products: &'a [Product],
    /// Whether the target is this machine or a private network.
    pub(crate) is_near: bool,
}

/// What ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Silence,
    Age,
}

/// Returns those that come into question, the most probable first; never none.
pub(crate) fn rank(seen: &Sighting) -> Vec<Suspect> {
    let mut guesses: Vec<Guess> = CUTTERS.iter().filter_map(|cutter| Guess::of(cutter, seen)).collect();
    guesses.sort_by_key(|guess| Reverse(guess.points));
    // What could be anything is not worth a line beside what the response names.
    let is_named = guesses.iter().any(|guess| guess.sign.is_some());
    guesses.retain(|guess| !is_named || guess.sign.is_some() || guess.fits);
    let mut families = Vec::new();
    guesses.retain(|guess| {
        let family = guess.cutter.families.first();
        let is_new = !families.contains(&family);
        families.push(family);
        is_new
    });
    let alone = guesses.iter().filter(|guess| guess.fits).count() == 1;
    let mut suspects: Vec<Suspect> = guesses.iter().map(|guess| guess.suspect(alone)).collect();
    if let Some(server) = the_server(seen, suspects.is_empty()) {
        let at = suspects.iter().take_while(|suspect| suspect.certainty > server.certainty).count();
        suspects.insert(at, server);
    }
    suspects.truncate(SHOWN);
    suspects
}

/// A cutter held against what was seen.
struct Guess<'a> {
    cutter: &'static Cutter,
    sign: Option<&'a Product>,
    /// Its own figure is what was measured.
    fits: bool,
    points: i32,
    reasons: Vec<String>,
}

impl<'a> Guess<'a> {
    fn of(cutter: &'static Cutter, seen: &Sighting<'a>) -> Option<Self> {
        let limit = match seen.kind {
            Kind::Silence => cutter.idle?.limit,
            Kind::Age => cutter.lifetime?,
        };
        let sign = cutters::sign_of(cutter, seen.products);
        let fits = limit.fits(seen.after);
        // A product without a trace in the response may have been given any limit; one with a trace is expected to leave it.
        let may_be_set = limit.can_be_set() && (sign.is_some() || is_unsigned_and_set(cutter, limit));
        let is_elsewhere = seen.is_near && cutter.place == Place::Cloud && sign.is_none();
        if !(fits || may_be_set) || is_elsewhere || contradicts(cutter.cut, seen.cut) {
            return None;
        }
        let mut guess = Self { cutter, sign, fits, points: 0, reasons: Vec::new() };
        guess.weigh_sign();
        guess.weigh_figure(limit, seen.kind);
        guess.weigh_cut(seen.cut);
        if seen.kind == Kind::Silence {
            guess.weigh_direction(seen.client_keeps, ResetBy::Client, "it counts bytes from the server")?;
            guess.weigh_direction(seen.server_keeps, ResetBy::Server, "it counts bytes from the client")?;
        }
        Some(guess)
    }

    fn weigh_sign(&mut self) {
        match (self.sign, self.cutter.signs) {
            (Some(sign), _) => {
                self.points += 5;
                self.reasons.push(format!("the response has {}", sign.evidence));
            }
            (None, Signs::Field) => {
                self.points -= 1;
                self.reasons.push("but no field of the response names it".into());
            }
            (None, Signs::None) => self.reasons.push("it leaves no field in the response".into()),
        }
    }

    fn weigh_figure(&mut self, limit: Figure, kind: Kind) {
        let what = match kind {
            Kind::Silence => "idle limit",
            Kind::Age => "limit of age",
        };
        let reported = if self.cutter.basis == Basis::Users { ", as users report" } else { "" };
        let reason = match limit {
            Figure::Default(value) if self.fits => {
                format!("its {what} is {} by default{reported}", age(value))
            }
            Figure::Fixed(value) if self.fits => format!("its {what} is {}{reported}", age(value)),
            Figure::Between(low, high) => {
                format!("its {what} is between {} and {}, as studies measured", age(low), age(high))
            }
            Figure::Default(value) => {
                format!("its {what} is {} by default, and can be set to this one", age(value))
            }
            Figure::Set | Figure::Fixed(_) => format!("its {what} is what its operator sets"),
        };
        self.points += match limit {
            Figure::Default(_) | Figure::Fixed(_) if self.fits => 4,
            // Without a value of its own any is usual.
            Figure::Between(..) | Figure::Set => 1,
            _ => 0,
        };
        self.reasons.insert(0, reason);
    }

    fn weigh_cut(&mut self, seen: Cut) {
        if self.cutter.cut == seen && seen != Cut::Unknown {
            self.points += 1;
            self.reasons.push(
                match seen {
                    Cut::Tcp => "it ends TCP without a Close, as here",
                    Cut::Close => "it sends a Close, as here",
                    _ => "it forgets connections in silence, as here",
                }
                .into(),
            );
        }
    }

    /// Holds against what it counts whether the bytes of one end alone keep a connection. `None`: it counts others.
    fn weigh_direction(&mut self, keeps: Option<bool>, end: ResetBy, if_not: &str) -> Option<()> {
        let reset_by = self.cutter.idle?.reset_by;
        let Some(keeps) = keeps else { return Some(()) };
        let would_keep = reset_by == ResetBy::Any || reset_by == end;
        if keeps != would_keep {
            return self.sign.is_some().then_some(());
        }
        if !keeps {
            self.points += 1;
            self.reasons.push(if_not.to_owned());
        }
        Some(())
    }

    fn suspect(&self, alone: bool) -> Suspect {
        let certainty = match (self.sign.is_some(), self.fits) {
            (true, true) => Certainty::MostProbable,
            (true, false) => Certainty::Probable,
            (false, true) if alone && self.is_exact() => Certainty::Probable,
            _ => Certainty::Possible,
        };
        Suspect {
            id: self.cutter.id,
            name: self.cutter.name,
            certainty,
            reasons: self.reasons.clone(),
            remedy: self.cutter.remedy,
            lines: advice::lines(self.cutter.id).to_vec(),
            source: Some(self.cutter.source),
        }
    }

    /// Whether the figure is one value, and not a range that many things are in.
    fn is_exact(&self) -> bool {
        let limits = [self.cutter.idle.map(|idle| idle.limit), self.cutter.lifetime];
        !limits.into_iter().flatten().any(|limit| matches!(limit, Figure::Between(..)))
    }
}

/// Whether it is a program that leaves no trace and whose operator set the limit, as far as anyone can see.
fn is_unsigned_and_set(cutter: &Cutter, limit: Figure) -> bool {
    cutter.signs == Signs::None && (limit == Figure::Set || cutter.place == Place::Proxy)
}

/// Whether a connection that ended like this was not ended by such a cutter.
fn contradicts(known: Cut, seen: Cut) -> bool {
    known != seen && known != Cut::Unknown && seen != Cut::Unknown
}

/// The end of the path, which may always end a connection itself.
fn the_server(seen: &Sighting, is_alone: bool) -> Option<Suspect> {
    let after = span(seen.after);
    let (certainty, reason) = match seen.cut {
        Cut::Close => {
            (Certainty::Probable, "a Close came, and proxies that only forward bytes send none".into())
        }
        Cut::Silent => return is_alone.then(|| the_network(seen.kind)),
        _ if is_alone => (
            Certainty::Possible,
            format!(
                "no product that is known has a limit of {after}, so someone set it, there or in a proxy"
            ),
        ),
        _ => return None,
    };
    Some(Suspect {
        id: "server",
        name: "the server itself",
        certainty,
        reasons: vec![reason],
        remedy: match seen.kind {
            Kind::Silence => "an idle timeout, in its code or in the settings of its framework",
            Kind::Age => "a limit of age or of a login, in its code or in the settings of its framework",
        },
        lines: Vec::new(),
        source: None,
    })
}

/// What ends connections for want of messages: only an end that reads frames knows a message from a Ping.
pub(crate) fn that_reads_messages() -> Suspect {
    Suspect {
        id: "server",
        name: "the server itself",
        certainty: Certainty::Probable,
        reasons: vec![
            "it counts messages and not Pings, and what only forwards bytes cannot tell them apart".into(),
        ],
        remedy: "a read deadline or idle timeout that only messages renew: let Pings and Pongs renew it, too",
        lines: Vec::new(),
        source: None,
    }
}

fn the_network(kind: Kind) -> Suspect {
    Suspect {
        id: "network",
        name: "a firewall or NAT on the way",
        certainty: Certainty::Possible,
        reasons: vec![
            "the connection went dead without an end: what forwards packets forgets them so".into(),
        ],
        remedy: match kind {
            Kind::Silence => "nothing but a heartbeat that is more frequent",
            Kind::Age => {
                "nothing: a heartbeat only finds that the connection is dead, and the client reconnects"
            }
        },
        lines: Vec::new(),
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cutters::Idle;
    use super::*;

    fn seen(kind: Kind, seconds: u64, cut: Cut) -> Sighting<'static> {
        let after = Duration::from_secs(seconds);
        Sighting { kind, after, cut, client_keeps: None, server_keeps: None, products: &[], is_near: false }
    }

    fn product(name: &'static str) -> Product {
        Product { name, evidence: format!("server: {name}") }
    }

    fn names(suspects: &[Suspect]) -> Vec<(&'static str, Certainty)> {
        suspects.iter().map(|suspect| (suspect.id, suspect.certainty)).collect()
    }

    /// A time that the figure itself gives.
    fn typical(figure: Figure) -> Option<Duration> {
        match figure {
            Figure::Default(value) | Figure::Fixed(value) => Some(value),
            Figure::Between(low, _) => Some(low),
            Figure::Set => None,
        }
    }

    fn own_cut(cutter: &Cutter) -> Cut {
        match cutter.cut {
            Cut::Unknown => Cut::Tcp,
            known => known,
        }
    }

    #[test]
    fn caddy_is_suspected_where_only_bytes_of_the_server_count() {
        let products = [product("caddy")];
        let by_server =
            Sighting { client_keeps: Some(false), products: &products, ..seen(Kind::Silence, 5, Cut::Tcp) };
        assert_eq!(names(&rank(&by_server))[0], ("caddy", Certainty::Probable));
    }

    #[test]
    fn a_heartbeat_is_not_advised_against_a_limit_of_age() {
        let suspects = rank(&Sighting { is_near: true, ..seen(Kind::Age, 9, Cut::Silent) });
        assert!(suspects[0].remedy.contains("the client reconnects"), "{}", suspects[0].remedy);
    }

    #[test]
    fn each_cutters_own_figures_and_field_make_it_the_first_suspect() {
        for cutter in CUTTERS {
            let Some(family) = cutter.families.first() else { panic!("{} has no family", cutter.id) };
            let products = [product(family)];
            let idle = cutter.idle.map(|Idle { limit, reset_by }| (Kind::Silence, limit, Some(reset_by)));
            let age = cutter.lifetime.map(|limit| (Kind::Age, limit, None));
            for (kind, figure, reset_by) in [idle, age].into_iter().flatten() {
                let Some(after) = typical(figure) else { continue };
                let client_keeps = reset_by.map(|by| matches!(by, ResetBy::Any | ResetBy::Client));
                let sighting =
                    Sighting { after, client_keeps, products: &products, ..seen(kind, 0, own_cut(cutter)) };
                let suspects = rank(&sighting);
                let first =
                    CUTTERS.iter().find(|known| known.id == suspects[0].id).map(|known| known.families);
                assert_eq!(first, Some(cutter.families), "{}: {:?}", cutter.id, names(&suspects));
                assert_eq!(suspects[0].certainty, Certainty::MostProbable, "{}", cutter.id);
            }
        }
    }

    #[test]
    fn without_a_field_a_cutters_own_figures_still_bring_it_into_question_and_no_product_is_most_probable() {
        for cutter in CUTTERS {
            let Some(idle) = cutter.idle else { continue };
            let Some(after) = typical(idle.limit) else { continue };
            let suspects = rank(&Sighting { after, ..seen(Kind::Silence, 0, own_cut(cutter)) });
            let is_there = names(&suspects).iter().any(|(id, _)| {
                CUTTERS.iter().any(|known| known.id == *id && known.families == cutter.families)
            });
            // What many share may be beyond the few that are shown.
            let rivals = CUTTERS.iter().filter(|other| {
                other.idle.is_some_and(|other| other.limit.fits(after))
                    && !contradicts(other.cut, own_cut(cutter))
            });
            assert!(is_there || rivals.count() > SHOWN, "{}: {:?}", cutter.id, names(&suspects));
            assert!(
                suspects.iter().all(|suspect| suspect.certainty < Certainty::MostProbable),
                "{}",
                cutter.id
            );
        }
    }

    #[test]
    fn a_limit_that_several_products_share_names_none_of_them_as_probable() {
        let suspects = rank(&seen(Kind::Silence, 60, Cut::Tcp));
        assert!(suspects.len() > 2, "{suspects:?}");
        assert!(suspects.iter().all(|suspect| suspect.certainty == Certainty::Possible), "{suspects:?}");
    }

    #[test]
    fn a_limit_that_one_product_alone_has_makes_it_probable() {
        let suspects = rank(&seen(Kind::Silence, 55, Cut::Tcp));
        assert_eq!(names(&suspects)[0], ("heroku", Certainty::Probable), "{suspects:?}");
    }

    #[test]
    fn a_product_that_the_response_names_is_probable_with_another_limit_than_its_default() {
        let products = [product("nginx")];
        let suspects =
            rank(&Sighting { products: &products, is_near: true, ..seen(Kind::Silence, 3, Cut::Tcp) });
        assert_eq!(names(&suspects)[0], ("nginx", Certainty::Probable));
        assert!(suspects[0].reasons.iter().any(|reason| reason.contains("can be set")), "{suspects:?}");
        assert!(suspects[0].lines.contains(&"proxy_read_timeout 1h;"));
        assert_eq!(suspects.len(), 1, "what is only possible is left out: {suspects:?}");
    }

    #[test]
    fn a_product_whose_limit_cannot_be_changed_is_not_suspected_of_another_one() {
        let products = [product("heroku")];
        let suspects = rank(&Sighting { products: &products, ..seen(Kind::Silence, 20, Cut::Tcp) });
        assert!(!names(&suspects).iter().any(|(id, _)| *id == "heroku"), "{suspects:?}");
    }

    #[test]
    fn programs_that_leave_no_field_are_possible_for_any_limit_and_haproxy_without_a_default_first() {
        let suspects = rank(&Sighting { is_near: true, ..seen(Kind::Silence, 3, Cut::Tcp) });
        let possible = ["haproxy", "ingress-nginx", "apache"].map(|id| (id, Certainty::Possible));
        assert_eq!(names(&suspects), possible);
    }

    #[test]
    fn a_close_frame_points_to_the_server_and_not_to_what_forwards_bytes() {
        let suspects = rank(&seen(Kind::Silence, 60, Cut::Close));
        assert_eq!(suspects[0].id, "server");
        assert_eq!(suspects[0].certainty, Certainty::Probable);
        assert!(!names(&suspects).iter().any(|(id, _)| ["nginx", "aws-alb"].contains(id)), "{suspects:?}");
        assert!(names(&suspects).iter().any(|(id, _)| *id == "cowboy"), "{suspects:?}");
    }

    #[test]
    fn silence_without_an_end_points_to_what_forwards_packets() {
        let suspects = rank(&seen(Kind::Silence, 240, Cut::Silent));
        assert!(names(&suspects).iter().any(|(id, _)| *id == "azure-load-balancer"), "{suspects:?}");
        assert!(!names(&suspects).iter().any(|(id, _)| *id == "nginx"), "{suspects:?}");
        assert_eq!(rank(&seen(Kind::Silence, 3, Cut::Silent))[0].id, "network");
    }

    #[test]
    fn a_cloud_does_not_stand_between_a_machine_and_itself() {
        let suspects = rank(&Sighting { is_near: true, ..seen(Kind::Silence, 60, Cut::Tcp) });
        assert!(!names(&suspects).iter().any(|(id, _)| *id == "aws-alb"), "{suspects:?}");
        assert!(names(&suspects).iter().any(|(id, _)| *id == "nginx"), "{suspects:?}");
    }

    #[test]
    fn what_counts_the_clients_bytes_is_not_suspected_where_they_do_not_count() {
        let suspects = rank(&Sighting { client_keeps: Some(false), ..seen(Kind::Silence, 60, Cut::Tcp) });
        assert_eq!(names(&suspects)[0].0, "oracle-load-balancer", "{suspects:?}");
        assert!(!names(&suspects).iter().any(|(id, _)| *id == "aws-alb"), "{suspects:?}");
    }

    #[test]
    fn there_is_always_a_suspect() {
        for seconds in [1, 7, 42, 77, 1_000, 100_000] {
            for cut in [Cut::Tcp, Cut::Close, Cut::Silent, Cut::Unknown] {
                for kind in [Kind::Silence, Kind::Age] {
                    assert!(!rank(&seen(kind, seconds, cut)).is_empty(), "{kind:?} {seconds} {cut:?}");
                }
            }
        }
    }
}
