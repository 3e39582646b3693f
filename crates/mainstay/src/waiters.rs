//! Tasks that wait for the same change.

use std::task::Waker;

/// Adds a task to those that wait, unless it waits already: a future may be polled again without having been woken.
pub(crate) fn register(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|listed| listed.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_task_is_woken_once_however_often_it_was_polled() {
        let counts = [0, 1].map(|_| Arc::new(Count(AtomicU32::new(0))));
        let mut wakers = Vec::new();
        for _ in 0..3 {
            counts.iter().for_each(|count| register(&mut wakers, &Waker::from(Arc::clone(count))));
        }
        wakers.drain(..).for_each(Waker::wake);
        assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [1, 1]);
    }
}
