//! The table of routes: which route takes a request.
//!
//! Not here: how a rule matches (`match_rule`), and how a route is built (`table`).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use crate::credentials::Access;
use crate::links::Links;
use crate::match_rule::{self, MatchRule};
use crate::reload_figures::ReloadFigures;
use crate::route::Route;

/// The table in force. A reload replaces it as a whole.
#[derive(Default)]
pub(crate) struct Routes {
    table: RwLock<Arc<[Arc<Route>]>>,
    /// The links of earlier routes that may still be open.
    former: Mutex<Vec<Weak<Route>>>,
    /// A file or a variable names the routes.
    are_named: AtomicBool,
    /// Requests that no route took.
    pub(crate) unrouted: AtomicU64,
    pub(crate) reloads: ReloadFigures,
    /// What the credentials of all routes share.
    pub(crate) access: Arc<Access>,
}

impl Routes {
    /// Returns the route of a request. `host` may have a port. The first of two equal rules wins.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Route>> {
        let (host, table) = (match_rule::without_port(host), self.all());
        if let [only] = &*table
            && only.rule == MatchRule::default()
        {
            return Some(Arc::clone(only));
        }
        let path = match_rule::canonical(path)?;
        let path = path.as_ref();
        let ranked = table.iter().filter_map(|route| Some((route.rule.rank(host, path)?, route)));
        ranked.min_by_key(|(rank, _)| Reverse(*rank)).map(|(_, route)| Arc::clone(route))
    }

    /// Replaces the table. `are_named`: metrics have the names of the routes.
    pub(crate) fn replace(&self, routes: Vec<Arc<Route>>, are_named: bool) {
        self.are_named.store(are_named, Relaxed);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *table, routes.into());
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.retain(|route| route.strong_count() > 0);
        let is_gone = |old: &&Arc<Route>| !table.iter().any(|route| Arc::ptr_eq(route, old));
        former.extend(before.iter().filter(is_gone).map(Arc::downgrade));
    }

    /// Returns whether metrics have the names of the routes.
    pub(crate) fn are_named(&self) -> bool {
        self.are_named.load(Relaxed)
    }

    /// Returns the links of all routes that are in the table or still have clients, those of one backend once.
    pub(crate) fn links(&self) -> Vec<Links> {
        let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let former: Vec<Arc<Route>> = former.iter().filter_map(Weak::upgrade).collect();
        let table = self.all();
        let mut known = HashSet::new();
        let links = table.iter().chain(&former).map(|route| &route.links);
        links.filter(|links| known.insert(links.figures_id())).cloned().collect()
    }

    /// Returns all routes, in the order of the configuration.
    pub(crate) fn all(&self) -> Arc<[Arc<Route>]> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}
