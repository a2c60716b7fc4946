//! The order of the guests, and how long they take.

/// Sorts so that the last guests end at about the same time.
pub(crate) fn longest_first<T>(guests: &mut [(u64, T)]) {
    guests.sort_by_key(|(seconds, _)| std::cmp::Reverse(*seconds));
}

/// Returns how long all take together, if so many run at a time.
pub(crate) fn left_seconds(guests: impl Iterator<Item = u64>, threads: usize) -> u64 {
    let mut ends = vec![0; threads.max(1)];
    for seconds in guests {
        if let Some(first) = ends.iter_mut().min() {
            *first += seconds;
        }
    }
    ends.into_iter().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{left_seconds, longest_first};

    #[test]
    fn the_longest_comes_first() {
        let mut guests = [
            (10, "core"),
            (300, "full"),
            (10, "levels"),
            (200, "service"),
        ];
        longest_first(&mut guests);
        assert_eq!(
            guests.map(|(_, name)| name),
            ["full", "service", "core", "levels"]
        );
    }

    #[test]
    fn two_at_a_time_take_half_as_long() {
        assert_eq!(left_seconds([300, 200, 100, 50].into_iter(), 2), 350);
        assert_eq!(left_seconds([300, 10].into_iter(), 2), 300);
        assert_eq!(left_seconds([300, 10].into_iter(), 1), 310);
        assert_eq!(left_seconds([].into_iter(), 2), 0);
    }
}
