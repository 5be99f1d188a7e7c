//! Charts of the last minutes, as SVG that the server renders.

use std::fmt::Write;

use maud::{Markup, html};

/// How wide and high the drawing is. The page stretches it.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;

/// One line of a chart.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    /// Its value now, as text.
    pub(super) now: String,
    /// The value of each step of the chart; `None`: there was none.
    pub(super) values: Vec<Option<f64>>,
}

/// A chart of at most two lines over the same steps.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// What the beginning of the chart is called.
    pub(super) from: &'a str,
    pub(super) lines: Vec<Line<'a>>,
    /// How a value of the axis is written.
    pub(super) axis: fn(f64) -> String,
}

impl Chart<'_> {
    pub(super) fn render(&self) -> Markup {
        let values = || self.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
        let most = values().fold(0.0, f64::max);
        let top = nice(most);
        let names: Vec<_> =
            self.lines.iter().map(|line| format!("{}: now {}", line.name, line.now)).collect();
        let label = format!(
            "{}. {}. At most {} since {}.",
            self.title,
            names.join(", "),
            (self.axis)(most),
            self.from
        );
        html! {
            figure.chart {
                figcaption {
                    b { (self.title) }
                    @for (at, line) in self.lines.iter().enumerate() {
                        span.key.second[at > 0] { i aria-hidden="true" {} (line.name) " " b { (line.now) } }
                    }
                }
                div.plot {
                    svg role="img" aria-label=(label) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                        @for part in [0.0, 0.5, 1.0] {
                            path.grid d={ "M0 " (HEIGHT * part) "H" (WIDTH) } {}
                        }
                        @for (at, line) in self.lines.iter().enumerate() {
                            @if at == 0 { path.area d=(path(&line.values, top, true)) {} }
                            path.line.second[at > 0] d=(path(&line.values, top, false)) {}
                        }
                    }
                    span.most aria-hidden="true" { ((self.axis)(top)) }
                    span.from aria-hidden="true" { (self.from) }
                    span.to aria-hidden="true" { "now" }
                }
            }
        }
    }
}

/// The path through the values, one part for each run of steps that have one.
fn path(values: &[Option<f64>], top: f64, is_area: bool) -> String {
    let step = WIDTH / (values.len().max(2) - 1) as f64;
    let mut path = String::new();
    let mut from = None;
    for (at, value) in values.iter().enumerate() {
        let x = at as f64 * step;
        let Some(value) = value else {
            close(&mut path, from.take(), x - step, is_area);
            continue;
        };
        let y = HEIGHT - (value / top).clamp(0.0, 1.0) * HEIGHT;
        let begins = from.is_none();
        let command = match (begins, is_area) {
            (false, _) => format!("L{x:.0} {y:.1}"),
            (true, false) => format!("M{x:.0} {y:.1}"),
            (true, true) => format!("M{x:.0} {HEIGHT}L{x:.0} {y:.1}"),
        };
        path.push_str(&command);
        from.get_or_insert(x);
    }
    close(&mut path, from, WIDTH, is_area);
    path
}

/// Ends a run. One of a single step becomes a short line, so that it is seen.
fn close(path: &mut String, from: Option<f64>, to: f64, is_area: bool) {
    let Some(from) = from else { return };
    let _ = match (is_area, to > from) {
        (true, _) => write!(path, "L{to:.0} {HEIGHT}Z"),
        (false, true) => Ok(()),
        (false, false) => write!(path, "h2"),
    };
}

/// The smallest of 1, 2, 5, 10, 20, … that is not below.
fn nice(most: f64) -> f64 {
    if !(most.is_finite() && most > 0.0) {
        return 1.0;
    }
    let ten = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|factor| factor * ten)
        .into_iter()
        .find(|top| *top >= most * 0.999)
        .unwrap_or(10.0 * ten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (most, top) in
            [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 1.0), (1.2, 2.0), (37.0, 50.0), (51.0, 100.0), (0.03, 0.05)]
        {
            assert!((nice(most) - top).abs() < 1e-9, "{most} {}", nice(most));
        }
    }

    #[test]
    fn a_line_has_gaps_where_there_is_no_value() {
        let values = [Some(0.0), Some(5.0), None, Some(10.0), None];
        assert_eq!(path(&values, 10.0, false), "M0 100.0L150 50.0M450 0.0h2");
        assert_eq!(path(&values, 10.0, true), "M0 100L0 100.0L150 50.0L150 100ZM450 100L450 0.0L450 100Z");
        assert_eq!(path(&[], 1.0, true), "");
    }

    #[test]
    fn a_chart_says_what_it_shows() {
        let line = Line { name: "<Accepted>", now: "3".to_owned(), values: vec![Some(1.0), Some(3.0)] };
        let chart =
            Chart { title: "Orders", from: "10 min ago", lines: vec![line], axis: |value| value.to_string() };
        let text = chart.render().into_string();
        assert!(
            text.contains("aria-label=\"Orders. &lt;Accepted&gt;: now 3. At most 3 since 10 min ago.\""),
            "{text}"
        );
        assert!(!text.contains("<Accepted>"));
    }
}
