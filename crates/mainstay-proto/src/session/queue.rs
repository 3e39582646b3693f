//! Queues that own no memory while they are empty, as most are most of the time. One that fills grows once for a
//! handful, not three times.

use std::collections::VecDeque;

const HANDFUL: usize = 16;

pub(super) fn append<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.capacity() == 0 {
        queue.reserve(HANDFUL);
    }
    queue.push_back(item);
}

pub(super) fn take_first<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front()?;
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_owns_nothing_and_one_that_fills_grows_once() {
        let mut queue = VecDeque::new();
        append(&mut queue, 1);
        let room = queue.capacity();
        (2..=HANDFUL).for_each(|item| append(&mut queue, item));
        assert_eq!(queue.capacity(), room);
        (1..=HANDFUL).for_each(|item| assert_eq!(take_first(&mut queue), Some(item)));
        assert_eq!((take_first(&mut queue), queue.capacity()), (None, 0));
    }
}
