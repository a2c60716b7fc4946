//! The kernel's description of a file descriptor (`/proc/PID/fdinfo/FD`).

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
};

/// Returns the number that the kernel gives for this field of a descriptor; `None`: it gives
/// none.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn fdinfo(fd: impl AsFd, field: &str) -> io::Result<Option<u64>> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    Ok(number(&fs::read_to_string(path)?, field))
}

fn number(info: &str, field: &str) -> Option<u64> {
    let mut lines = info.lines();
    let number = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t713\n";
        assert_eq!(number(info, "recursion_misses"), Some(713));
        assert_eq!(number(info, "recursion"), None);
        assert_eq!(number(info, "memlock"), None);
    }

    #[test]
    fn a_process_that_has_ended_has_no_number() {
        assert_eq!(number("Pid:\t-1\n", "Pid"), None);
    }
}
