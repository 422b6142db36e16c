//! Series of durations and what is said of them.

use std::time::Duration;

/// Durations of one kind of operation.
#[derive(Debug, Clone, Default)]
pub struct Series {
    sorted: Vec<Duration>,
}

impl Series {
    /// A series of these.
    pub fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self { sorted: durations }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The value that `percent` of 100 do not exceed (nearest rank); the largest for a percentage that so few cannot resolve.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.sorted.len() * percent).div_ceil(100);
        self.sorted.get(rank.max(1) - 1).copied()
    }

    /// The middle one.
    pub fn median(&self) -> Option<Duration> {
        self.percentile(50)
    }
}

/// Milliseconds with three digits that count.
pub fn milliseconds(duration: Option<Duration>) -> String {
    let Some(duration) = duration else {
        return "–".into();
    };
    let value = duration.as_secs_f64() * 1000.0;
    match value {
        _ if value >= 99.5 => format!("{value:.0}"),
        _ if value >= 9.95 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// How many times `ours` goes into `rival`: above 1 we are faster.
pub fn times(ours: Option<Duration>, rival: Option<Duration>) -> Option<f64> {
    let (ours, rival) = (ours?.as_secs_f64(), rival?.as_secs_f64());
    (ours > 0.0).then(|| rival / ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[u64]) -> Series {
        Series::new(values.iter().map(|v| Duration::from_millis(*v)).collect())
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred = series(&(1..=100).rev().collect::<Vec<_>>());
        assert_eq!(hundred.median(), Some(Duration::from_millis(50)));
        assert_eq!(hundred.percentile(99), Some(Duration::from_millis(99)));
        assert_eq!(series(&[7]).percentile(99), Some(Duration::from_millis(7)));
        assert_eq!(series(&[3, 1, 2]).percentile(99), Some(Duration::from_millis(3)));
        assert_eq!(series(&[]).median(), None);
    }

    #[test]
    fn figures() {
        assert_eq!(milliseconds(Some(Duration::from_micros(1344))), "1.34");
        assert_eq!(milliseconds(Some(Duration::from_micros(24_160))), "24.2");
        assert_eq!(milliseconds(Some(Duration::from_micros(321_500))), "322");
        assert_eq!(milliseconds(None), "–");
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(times(ms(2), ms(9)), Some(4.5));
        assert_eq!(times(None, ms(9)), None);
    }
}
