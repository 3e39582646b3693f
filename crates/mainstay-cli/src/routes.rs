//! The table of routes: which route takes a request.
//!
//! A reload replaces the table while requests look routes up: everything is built before, and what is left of the old table is
//! dropped after, so that a request waits at most for the exchange itself.
//!
//! Not here: how a rule matches (`match_rule`), how one is found among many (`lookup`), and how a route is built (`table`).

pub(crate) mod heartbeats;
pub(crate) mod lookup;
pub(crate) mod match_rule;
pub(crate) mod reload;
pub(crate) mod reload_figures;
pub(crate) mod route;
pub(crate) mod table;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use crate::credentials::Access;
use crate::routes::lookup::Lookup;
use crate::routes::match_rule::MatchRule;
use crate::routes::reload_figures::ReloadFigures;
use crate::routes::route::Route;
use crate::upstream::links::Links;

/// The table in force. A reload replaces it as a whole.
#[derive(Default)]
pub(crate) struct Routes {
    /// Held for a look-up or an exchange, and never while a route is built or dropped.
    table: RwLock<Table>,
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

#[derive(Default)]
struct Table {
    /// In the order of the configuration.
    routes: Arc<[Arc<Route>]>,
    lookup: Lookup,
    /// One route takes every request, whatever its path.
    takes_all: bool,
}

impl Routes {
    /// Returns the route of a request. `host` may have a port. The first of two equal rules wins.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Route>> {
        self.read().find(match_rule::without_port(host), path)
    }

    /// Replaces the table. `are_named`: metrics have the names of the routes. Drops the routes that no request has any more, so
    /// a thread that serves must not call it with many routes in the table.
    pub(crate) fn replace(&self, routes: Vec<Arc<Route>>, are_named: bool) {
        let stays: HashSet<*const Route> = routes.iter().map(Arc::as_ptr).collect();
        let next = Table::new(routes);
        // Locked first: `links` must find each route in the table or here.
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        self.are_named.store(are_named, Relaxed);
        let before =
            std::mem::replace(&mut *self.table.write().unwrap_or_else(PoisonError::into_inner), next);
        former.retain(|route| route.strong_count() > 0);
        let gone = before.routes.iter().filter(|old| !stays.contains(&Arc::as_ptr(old)));
        former.extend(gone.map(Arc::downgrade));
        drop(former);
        // `before` ends here, without a lock.
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
        Arc::clone(&self.read().routes)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn new(routes: Vec<Arc<Route>>) -> Self {
        let takes_all = matches!(routes.as_slice(), [only] if only.rule == MatchRule::default());
        let lookup = Lookup::new(routes.iter().map(|route| &route.rule));
        Self { routes: routes.into(), lookup, takes_all }
    }

    fn find(&self, host: &str, path: &str) -> Option<Arc<Route>> {
        let number = match self.takes_all {
            true => 0,
            false => self.lookup.find(host, &match_rule::canonical(path)?)?,
        };
        self.routes.get(number).cloned()
    }
}
