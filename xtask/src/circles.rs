//! Circles between files: two files that each use the other, directly or through further files.

mod rust;
mod typescript;

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;

/// The files that each file uses, by path.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The circles among the files in `paths`, each as a list of files.
pub(crate) fn find(paths: &[String]) -> Result<Vec<Vec<String>>> {
    let mut all = rust::uses(paths)?;
    all.push(typescript::uses(paths)?);
    Ok(all.iter().flat_map(circles).collect())
}

/// Groups of files that reach each other.
fn circles(uses: &Uses) -> Vec<Vec<String>> {
    let reach: BTreeMap<_, _> = uses.keys().map(|file| (file, reachable(file, uses))).collect();
    let mut circles = BTreeSet::new();
    for (file, reached) in &reach {
        let mutual = |other: &&&String| reached.contains(**other) && reach[**other].contains(*file);
        let circle: Vec<String> = reach.keys().filter(mutual).map(|other| (*other).clone()).collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reachable<'a>(from: &'a String, uses: &'a Uses) -> BTreeSet<&'a String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        open.extend(uses.get(file).into_iter().flatten().filter(|next| found.insert(*next)));
    }
    found
}
