//! Builds the table of routes from the configuration, at the start and at each reload.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mainstay::Server;

use crate::config::{Loaded, Problem};
use crate::credentials::{Access, Credentials};
use crate::routes::route::{Hashes, Inputs, Route};

/// Builds the routes, without a lock that requests wait for. One whose section and files are as in the table `before` stays the same route.
///
/// # Errors
/// A file that a section names has become unusable.
pub(crate) fn build(
    loaded: &Loaded,
    server: &Server,
    access: &Arc<Access>,
    before: &[Arc<Route>],
) -> Result<Vec<Arc<Route>>, Problem> {
    let before: HashMap<&str, &Arc<Route>> = before.iter().map(|route| (&*route.name, route)).collect();
    let mut hashes = Hashes::default();
    let build = |(name, section)| {
        let inputs = Inputs::of(section, &loaded.config, &mut hashes);
        let name: &String = name;
        match before.get(name.as_str()) {
            Some(same) if same.inputs == inputs => Ok(Arc::clone(same)),
            other => {
                Route::new(name, inputs, server, access, other.map(|other| &***other)).map_err(|error| {
                    let (field, what) = error.split_once(": ").unwrap_or(("", &error));
                    loaded.problem_at(&format!("routes.{name}.{field}"), what)
                })
            }
        }
    };
    loaded.config.routes.iter().map(build).collect()
}

/// Puts the limits of the routes in force: those of a route that stays have not changed.
pub(crate) fn set_limits(routes: &[Arc<Route>]) {
    routes.iter().for_each(|route| route.set_limits());
}

/// Starts what the routes of the first table need.
pub(crate) fn start(routes: &[Arc<Route>]) {
    start_credentials(routes);
    start_probing(routes);
}

/// Starts what keeps the keys of credentials.
pub(crate) fn start_credentials(routes: &[Arc<Route>]) {
    routes.iter().filter_map(|route| route.credentials.as_ref()).for_each(Credentials::start);
}

/// Probes the backends of routes.
pub(crate) fn start_probing(routes: &[Arc<Route>]) {
    routes.iter().for_each(|route| route.start_probing());
}

/// Ends the probes of backends that no route of the new table has.
pub(crate) fn stop_probing(before: &[Arc<Route>], routes: &[Arc<Route>]) {
    let kept: HashSet<usize> = routes.iter().map(|route| route.links.backend_id()).collect();
    for old in before.iter().filter(|route| !kept.contains(&route.links.backend_id())) {
        old.links.stop_probing();
    }
}
