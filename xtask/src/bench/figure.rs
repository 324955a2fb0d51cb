//! Figures: samples of both sides, their medians, and how sure we are of the ratio.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 4_000;
/// Any number: the same samples must give the same interval.
const BOOTSTRAP_SEED: u64 = 1;

/// One figure, as it stands in the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    /// What was measured.
    pub(super) name: String,
    /// Median of our samples.
    pub(super) value: f64,
    /// Of both values.
    pub(super) unit: &'static str,
    /// What it is compared with.
    pub(super) peer: Option<&'static str>,
    /// Median of the peer's samples.
    pub(super) peer_value: Option<f64>,
    /// Ours by the peer's, turned so that more is better.
    pub(super) ratio: Option<f64>,
    /// Lower end of the ratio's 95 % interval.
    pub(super) ratio_low: Option<f64>,
    /// What the lower end has to reach.
    pub(super) goal: Option<f64>,
    /// Whether it does. Never set by a quick run.
    pub(super) met: Option<bool>,
    /// What was measured, in order.
    pub(super) samples: Samples,
}

/// Raw samples.
#[derive(Debug, Default, Serialize)]
pub(super) struct Samples {
    /// Ours.
    pub(super) ours: Vec<f64>,
    /// The peer's.
    pub(super) peer: Vec<f64>,
}

impl Figure {
    /// A value without a peer.
    pub(super) fn alone(name: &str, unit: &'static str, ours: Vec<f64>) -> Figure {
        Figure {
            name: name.to_owned(),
            value: median(&ours),
            unit,
            peer: None,
            peer_value: None,
            ratio: None,
            ratio_low: None,
            goal: None,
            met: None,
            samples: Samples { ours, peer: Vec::new() },
        }
    }

    /// A value next to that of a peer. Both are rates, or (`less_is_better`) both are costs.
    pub(super) fn beside(mut self, peer: &'static str, samples: Vec<f64>, less_is_better: bool) -> Figure {
        let turn = |ours: f64, peer: f64| if less_is_better { peer / ours } else { ours / peer };
        self.peer = Some(peer);
        self.peer_value = Some(median(&samples));
        self.ratio = Some(turn(self.value, median(&samples)));
        self.ratio_low = Some(ratio_low(&self.samples.ours, &samples, turn));
        self.samples.peer = samples;
        self
    }

    /// Sets the goal; a full run also says whether it is met.
    pub(super) fn with_goal(mut self, goal: f64, quick: bool) -> Figure {
        self.goal = Some(goal);
        self.met = self.ratio_low.filter(|_| !quick).map(|low| low >= goal);
        self
    }

    /// Its cells in the table of figures.
    pub(super) fn cells(&self) -> Vec<String> {
        let number = |v: Option<f64>| v.map_or_else(String::new, human);
        let ratio = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.3}"));
        let met = self.met.map_or("", |met| if met { "met" } else { "missed" });
        vec![
            self.name.clone(),
            human(self.value),
            self.unit.to_owned(),
            self.peer.unwrap_or_default().to_owned(),
            number(self.peer_value),
            ratio(self.ratio),
            ratio(self.ratio_low),
            ratio(self.goal),
            met.to_owned(),
        ]
    }
}

/// Headings of the table of figures.
pub(super) const HEADINGS: [&str; 9] =
    ["figure", "ours", "unit", "next to", "its", "ratio", "low", "goal", ""];

fn human(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle of the samples; 0 if there are none.
pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The 2.5 % point of the bootstrapped ratio of the medians.
fn ratio_low(ours: &[f64], peer: &[f64], turn: impl Fn(f64, f64) -> f64) -> f64 {
    if ours.is_empty() || peer.is_empty() {
        return 0.0;
    }
    let mut rng = StdRng::seed_from_u64(BOOTSTRAP_SEED);
    let mut again = |from: &[f64]| -> f64 {
        median(&(0..from.len()).map(|_| from[rng.random_range(0..from.len())]).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| turn(again(ours), again(peer))).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[RESAMPLES / 40]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_met_by_the_lower_bound_of_its_ratio_and_never_by_a_quick_run() {
        let ours = vec![90.0, 100.0, 110.0, 100.0];
        let figure = |goal, quick| {
            Figure::alone("rate", "a second", ours.clone())
                .beside("limit", vec![200.0; 4], false)
                .with_goal(goal, quick)
        };
        let good = figure(0.4, false);
        assert_eq!((good.ratio, good.met), (Some(0.5), Some(true)));
        assert!(good.ratio_low.unwrap() < 0.5 && good.ratio_low.unwrap() >= 0.45);
        assert_eq!(figure(0.5, false).met, Some(false));
        assert_eq!(figure(0.4, true).met, None);
        let cost = Figure::alone("cost", "s", vec![2.0]).beside("limit", vec![1.0], true);
        assert_eq!(cost.ratio, Some(0.5));
        assert_eq!(median(&[]), 0.0);
    }
}
