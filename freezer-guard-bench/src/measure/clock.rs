//! Many short batches, and the median of them: what happens beside is in few of them.

use std::{
    hint::black_box,
    io,
    time::{Duration, Instant},
};

/// How long the kernel may take to detach what nobody refers to any more: it does that
/// in the background, one program after the other. With many guards it takes longer.
pub(super) const SETTLED: Duration = Duration::from_secs(1);
pub(super) const ALL_SETTLED: Duration = Duration::from_secs(5);

/// How an operation is repeated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Operations in a batch.
    pub(super) batch: u32,
    pub(super) batches: usize,
}

/// ns for each operation, without the loop around it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Sample {
    /// Of the batches' averages.
    pub(crate) median: f64,
    /// One batch in ten was faster.
    pub(crate) p10: f64,
    /// One in ten was slower.
    pub(crate) p90: f64,
}

/// Measures `operation`.
pub(super) fn measure(
    effort: Effort,
    mut operation: impl FnMut() -> io::Result<()>,
) -> io::Result<Sample> {
    let around = batches(effort, || black_box(Ok(())))?;
    let with = batches(effort, || black_box(operation()))?;
    let at = |part: usize| {
        let index = (effort.batches - 1) * part / 10;
        (with[index] - around[effort.batches / 2]).max(0.0)
    };
    Ok(Sample {
        median: at(5),
        p10: at(1),
        p90: at(9),
    })
}

/// The averages of all batches, the lowest first.
fn batches(effort: Effort, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<Vec<f64>> {
    let mut averages = Vec::with_capacity(effort.batches);
    for _ in 0..effort.batches {
        let start = Instant::now();
        for _ in 0..effort.batch {
            operation()?;
        }
        averages.push(start.elapsed().as_nanos() as f64 / f64::from(effort.batch));
    }
    averages.sort_by(f64::total_cmp);
    Ok(averages)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io};

    use super::{Effort, measure};

    const EFFORT: Effort = Effort {
        batch: 3,
        batches: 7,
    };

    #[test]
    fn repeats_as_it_is_told() {
        let count = Cell::new(0);
        let sample = measure(EFFORT, || {
            count.set(count.get() + 1);
            Ok(())
        });
        assert_eq!(count.get(), 21);
        let sample = sample.expect("nothing fails");
        assert!(sample.p10 <= sample.median && sample.median <= sample.p90);
    }

    #[test]
    fn stops_at_an_error() {
        let result = measure(EFFORT, || Err(io::Error::from(io::ErrorKind::Other)));
        assert!(result.is_err());
    }
}
