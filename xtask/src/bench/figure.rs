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
    /// Upper end of the value's 95 % interval.
    pub(super) value_high: f64,
    /// What is asked for.
    pub(super) goal: Option<f64>,
    /// What the goal is about.
    pub(super) goal_is: Option<GoalIs>,
    /// Whether it does. Never set by a quick run.
    pub(super) met: Option<bool>,
    /// What was measured, in order.
    pub(super) samples: Samples,
}

/// What a goal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum GoalIs {
    /// The lower end of the ratio has to reach it.
    #[serde(rename = "ratio at least")]
    RatioAtLeast,
    /// The upper end of the value may not exceed it.
    #[serde(rename = "value at most")]
    ValueAtMost,
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
            value_high: bound(&ours, UPPER),
            goal: None,
            goal_is: None,
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

    /// A value next to one of a peer without a ratio: a count that may be zero.
    pub(super) fn next_to(mut self, peer: &'static str, value: f64) -> Figure {
        (self.peer, self.peer_value) = (Some(peer), Some(value));
        self.samples.peer = vec![value];
        self
    }

    /// Sets the goal; a full run also says whether it is met.
    pub(super) fn with_goal(mut self, goal: f64, quick: bool) -> Figure {
        (self.goal, self.goal_is) = (Some(goal), Some(GoalIs::RatioAtLeast));
        self.met = self.ratio_low.filter(|_| !quick).map(|low| low >= goal);
        self
    }

    /// Sets the most that the value may be; a full run also says whether it is met.
    pub(super) fn at_most(mut self, most: f64, quick: bool) -> Figure {
        (self.goal, self.goal_is) = (Some(most), Some(GoalIs::ValueAtMost));
        self.met = (!quick && !self.samples.ours.is_empty()).then_some(self.value_high <= most);
        self
    }

    /// Its name, and that of its peer.
    pub(super) fn title(&self) -> String {
        match self.peer {
            Some(peer) => format!("{}, next to {peer}", self.name),
            None => self.name.clone(),
        }
    }

    /// Its cells in the table of figures.
    pub(super) fn cells(&self) -> Vec<String> {
        let number = |v: Option<f64>| v.map_or_else(String::new, human);
        let ratio = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.2}"));
        let met = self.met.map_or("", |met| if met { "met" } else { "missed" });
        let goal = match (self.goal, self.goal_is) {
            (Some(goal), Some(GoalIs::RatioAtLeast)) => format!(">= {goal:.2}x"),
            (Some(goal), Some(GoalIs::ValueAtMost)) => format!("<= {} {}", human(goal), self.unit),
            _ => String::new(),
        };
        vec![
            self.name.clone(),
            human(self.value),
            self.unit.to_owned(),
            human(self.value_high),
            self.peer.unwrap_or_default().to_owned(),
            number(self.peer_value),
            ratio(self.ratio),
            ratio(self.ratio_low),
            goal,
            met.to_owned(),
        ]
    }
}

/// Headings of the table of figures.
pub(super) const HEADINGS: [&str; 10] =
    ["figure", "ours", "unit", "high", "next to", "its", "ratio", "low", "goal", ""];

/// A number as people want it.
pub(super) fn human(value: f64) -> String {
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

/// Where in the bootstrapped values the upper end of a 95 % interval lies.
const UPPER: usize = RESAMPLES - RESAMPLES / 40;
/// Where the lower end lies.
const LOWER: usize = RESAMPLES / 40;

/// Medians of samples drawn again from the same samples.
struct Resampled {
    rng: StdRng,
}

impl Resampled {
    fn new() -> Resampled {
        Resampled { rng: StdRng::seed_from_u64(BOOTSTRAP_SEED) }
    }

    fn median(&mut self, from: &[f64]) -> f64 {
        let drawn: Vec<f64> = from.iter().map(|_| from[self.rng.random_range(0..from.len())]).collect();
        median(&drawn)
    }
}

/// An end of the bootstrapped interval of the median.
fn bound(samples: &[f64], at: usize) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    let mut again = Resampled::new();
    let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| again.median(samples)).collect();
    medians.sort_by(f64::total_cmp);
    medians[at]
}

/// The 2.5 % point of the bootstrapped ratio of the medians.
fn ratio_low(ours: &[f64], peer: &[f64], turn: impl Fn(f64, f64) -> f64) -> f64 {
    if ours.is_empty() || peer.is_empty() {
        return 0.0;
    }
    let mut again = Resampled::new();
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| turn(again.median(ours), again.median(peer))).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[LOWER]
}

/// The value below which `share` of the samples lie; 0 if there are none.
pub(super) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
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

    #[test]
    fn a_limit_is_met_by_the_upper_bound_of_the_value() {
        let figure = |most| Figure::alone("time", "s", vec![1.0, 1.1, 1.2, 1.1]).at_most(most, false);
        assert_eq!((figure(1.2).met, figure(1.1).met), (Some(true), Some(false)));
        assert_eq!(Figure::alone("time", "s", vec![]).at_most(1.0, false).met, None);
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!((quantile(&[1.0, 2.0], 0.99), quantile(&[], 0.5)), (2.0, 0.0));
    }
}
