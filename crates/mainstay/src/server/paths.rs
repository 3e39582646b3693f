//! The paths of all sessions, each stored once, for as long as a session has it. A session holds the number of its path, in
//! two bytes that were padding.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

/// The number of a path. 0: the path is not stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PathId(u16);

/// Longer paths are cut.
const LONGEST: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct Paths(Mutex<Table>);

#[derive(Default)]
struct Table {
    numbers: HashMap<Arc<str>, u16>,
    /// Each path, and how many sessions have it.
    paths: Slab<(Arc<str>, usize)>,
}

impl Paths {
    /// Stores a path for one more session. When 65,535 others are stored, this one is not.
    pub(super) fn take(&self, path: &str) -> PathId {
        let path = &path[..path.floor_char_boundary(LONGEST)];
        let mut table = self.table();
        if let Some(&number) = table.numbers.get(path) {
            if let Some((_, count)) = table.paths.get_mut(usize::from(number) - 1) {
                *count += 1;
            }
            return PathId(number);
        }
        let Ok(number) = u16::try_from(table.paths.vacant_key() + 1) else { return PathId(0) };
        let path: Arc<str> = path.into();
        table.paths.insert((Arc::clone(&path), 1));
        table.numbers.insert(path, number);
        PathId(number)
    }

    /// One session less has this path.
    pub(super) fn release(&self, id: PathId) {
        let Some(key) = usize::from(id.0).checked_sub(1) else { return };
        let mut table = self.table();
        let Some((path, count)) = table.paths.get_mut(key) else { return };
        *count -= 1;
        if *count == 0 {
            let path = Arc::clone(path);
            table.paths.remove(key);
            table.numbers.remove(&path);
        }
    }

    /// Returns the path; `None` if it is not stored.
    pub(super) fn get(&self, id: PathId) -> Option<Arc<str>> {
        let key = usize::from(id.0).checked_sub(1)?;
        self.table().paths.get(key).map(|(path, _)| Arc::clone(path))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_stored_once_and_only_while_a_session_has_it() {
        let paths = Paths::default();
        let (first, second, other) = (paths.take("/chat"), paths.take("/chat"), paths.take("/feed"));
        assert_eq!(first, second);
        assert_ne!(first, other);
        paths.release(first);
        assert_eq!(paths.get(second).as_deref(), Some("/chat"));
        paths.release(second);
        assert_eq!(paths.get(second), None);
        assert_eq!(paths.get(other).as_deref(), Some("/feed"));
        assert_eq!(paths.take("/again"), first, "its place is used again");
        assert_eq!(paths.get(PathId::default()), None);
        paths.release(PathId::default());
    }

    #[test]
    fn a_long_path_is_cut_and_one_too_many_is_not_stored() {
        let paths = Paths::default();
        let long = paths.take(&"é".repeat(200));
        assert_eq!(paths.get(long).map(|path| path.len()), Some(256));
        for number in 1..usize::from(u16::MAX) {
            assert_ne!(paths.take(&number.to_string()), PathId(0), "{number}");
        }
        assert_eq!(paths.take("/one-too-many"), PathId(0));
        assert_eq!(paths.take("7"), paths.take("7"));
    }
}
