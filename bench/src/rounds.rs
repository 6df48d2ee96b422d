//! Cases that take turns: what disturbs the machine for a while disturbs all of them.

use std::collections::HashMap;

use crate::Failure;

/// What one run of one case gave.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Calls, or transactions, per second.
    pub per_second: f64,
    /// Latency of calls in us, where it was measured.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// CPU time per call in us, of each process that took part.
    pub cpu_us: Vec<(&'static str, f64)>,
    /// Cores that were busy with other things meanwhile.
    pub foreign: f64,
}

impl Sample {
    /// CPU time per call in us, of all processes that took part.
    pub fn cpu(&self) -> f64 {
        self.cpu_us.iter().map(|(_, us)| us).sum()
    }
}

/// The samples of each case, in the order of the rounds.
pub struct Rounds(HashMap<&'static str, Vec<Sample>>);

impl Rounds {
    /// # Panics
    /// When there was no such case.
    pub fn of(&self, case: &str) -> &[Sample] {
        self.0.get(case).unwrap_or_else(|| panic!("no case \"{case}\""))
    }
}

/// Something to be measured on a bed of type `B`, under a name.
pub type Case<'a, B> = (&'static str, &'a dyn Fn(&mut B) -> Result<Sample, Failure>);

/// Runs every case `rounds` times. Each round starts with another case, so that none always follows the same.
pub fn interleave<B>(rounds: usize, bed: &mut B, cases: &[Case<'_, B>]) -> Result<Rounds, Failure> {
    let mut samples: HashMap<&'static str, Vec<Sample>> = HashMap::new();
    for round in 0..rounds {
        for turn in 0..cases.len() {
            let (name, run) = &cases[(round + turn) % cases.len()];
            let sample = run(bed).map_err(|failure| format!("{name}: {failure}"))?;
            eprintln!(
                "  round {}/{rounds}  {name:<42} {:>9.0}/s{}  cpu {:.1} us",
                round + 1,
                sample.per_second,
                sample.p50_us.map_or_else(String::new, |us| format!("  p50 {us:.0} us")),
                sample.cpu(),
            );
            samples.entry(name).or_default().push(sample);
        }
    }
    Ok(Rounds(samples))
}

/// The middle value; of an even number the mean of the two in the middle. NaN of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The least value. Infinite of none.
pub fn least(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// The greatest value. Minus infinite of none.
pub fn greatest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median([]).is_nan());
    }

    #[test]
    fn every_case_has_its_turn_in_every_round() {
        let case = |mark: f64| {
            move |order: &mut Vec<f64>| {
                order.push(mark);
                Ok(Sample {
                    per_second: mark,
                    ..Sample::default()
                })
            }
        };
        let (one, two, three) = (case(1.0), case(2.0), case(3.0));
        let mut order = Vec::new();
        let rounds = interleave(3, &mut order, &[("one", &one), ("two", &two), ("three", &three)]).expect("no failure");
        assert_eq!(order, [1.0, 2.0, 3.0, 2.0, 3.0, 1.0, 3.0, 1.0, 2.0]);
        assert!(
            rounds
                .of("two")
                .iter()
                .all(|sample| (sample.per_second - 2.0).abs() < 1e-9)
        );
        assert_eq!(rounds.of("two").len(), 3);
    }
}
