//! The table: what was measured, its baseline, the ratio, and the goal.

use std::fmt;

/// What a ratio or a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The figure itself, at least.
    AtLeast(f64),
    /// The figure itself, at most.
    AtMost(f64),
    /// Figure over baseline, at least.
    RatioAtLeast(f64),
    /// Figure over baseline, at most.
    RatioAtMost(f64),
    /// For information.
    None,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    figure: f64,
    baseline: Option<(String, f64)>,
    goal: Goal,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.baseline.as_ref().filter(|(_, value)| *value > 0.0).map(|(_, value)| self.figure / value)
    }

    fn verdict(&self) -> String {
        let judge = |held: bool, text: String| format!("{text}: {}", if held { "reached" } else { "MISSED" });
        let ratio = self.ratio();
        match self.goal {
            Goal::AtLeast(bound) => judge(self.figure >= bound, format!(">= {bound}")),
            Goal::AtMost(bound) => judge(self.figure <= bound, format!("<= {bound}")),
            Goal::RatioAtLeast(bound) => {
                judge(ratio.is_some_and(|ratio| ratio >= bound), format!("x >= {bound}"))
            }
            Goal::RatioAtMost(bound) => {
                judge(ratio.is_some_and(|ratio| ratio <= bound), format!("x <= {bound}"))
            }
            Goal::None => String::new(),
        }
    }
}

/// Rows in the order they were measured.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    judged: bool,
}

impl Table {
    /// An empty table. Goals are judged only where the run is large enough to judge them.
    #[must_use]
    pub fn new(judged: bool) -> Self {
        Self { rows: Vec::new(), judged }
    }

    /// Adds a row with its baseline, what the baseline is, and the goal.
    pub fn add(
        &mut self,
        name: &str,
        unit: &'static str,
        figure: f64,
        baseline: Option<(&str, f64)>,
        goal: Goal,
    ) {
        let baseline = baseline.map(|(what, value)| (what.to_owned(), value));
        self.rows.push(Row { name: name.to_owned(), unit, figure, baseline, goal });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | baseline of the same run | ratio | goal |\n|---|---|---|---|---|")?;
        for row in &self.rows {
            let baseline =
                row.baseline.as_ref().map(|(what, value)| format!("{value:.2} ({what})")).unwrap_or_default();
            let ratio = row.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
            writeln!(
                f,
                "| {} | {:.2} {} | {baseline} | {ratio} | {} |",
                row.name,
                row.figure,
                row.unit,
                if self.judged { row.verdict() } else { "not judged at this size".to_owned() }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_its_ratio_and_whether_the_goal_was_reached() {
        let mut table = Table::new(true);
        table.add("writes", "1/s", 85.0, Some(("no tap", 100.0)), Goal::RatioAtLeast(0.8));
        table.add("latency", "us", 130.0, Some(("no tap", 100.0)), Goal::RatioAtMost(1.1));
        table.add("lag", "ms", 500.0, None, Goal::AtMost(1000.0));
        let text = table.to_string();
        assert!(
            text.contains("| writes | 85.00 1/s | 100.00 (no tap) | 0.85 | x >= 0.8: reached |"),
            "{text}"
        );
        assert!(text.contains("1.30 | x <= 1.1: MISSED"), "{text}");
        assert!(text.contains("| lag | 500.00 ms |  |  | <= 1000: reached |"), "{text}");
    }
}
