//! Charts as inline SVG. The drawing is stretched to the width of the page; words and numbers are HTML around it, so that they
//! keep their size on a phone.

use std::fmt::Write as _;

use super::{super::text::milliseconds, html::escaped, timeline::Timeline};
use crate::digits::thousands;

/// The drawing's own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 240.0;
/// Of a bar's place, what the bar takes.
const BAR: f64 = 0.82;

/// One colour of a stacked bar chart: a value for each bucket.
pub(super) struct Stack {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) values: Vec<u64>,
}

/// One line: a value for each bucket, or a gap.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    /// Milliseconds.
    pub(super) values: Vec<Option<f64>>,
}

/// Bars over time. Stacks without a value are left out of the legend.
pub(super) fn bars(title: &str, about: &str, timeline: &Timeline, stacks: &[Stack]) -> String {
    let count = timeline.buckets.len();
    let sum = |index| stacks.iter().map(|stack: &Stack| stack.values[index]).sum::<u64>();
    let scale = Scale::up_to((0..count).map(sum).max().unwrap_or_default() as f64);
    let place = WIDTH / count as f64;
    let mut drawing = String::new();
    for index in 0..count {
        let mut y = HEIGHT;
        let left = place * index as f64 + place * (1.0 - BAR) / 2.0;
        for stack in stacks {
            let value = stack.values[index];
            if value == 0 {
                continue;
            }
            // A single order among thousands is still seen.
            let height = (value as f64 / scale.top * HEIGHT).max(1.5);
            y -= height;
            let _ = write!(
                drawing,
                "<rect class=\"{}\" x=\"{left:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{height:.2}\"><title>{}: {} {}</title></rect>",
                stack.class,
                y.max(0.0),
                place * BAR,
                escaped(&span(timeline, index)),
                thousands(value),
                stack.name
            );
        }
    }
    let legend = stacks
        .iter()
        .filter(|stack| stack.values.iter().any(|value| *value > 0))
        .map(|stack| (stack.name, stack.class));
    figure(title, about, timeline, &scale, |value| thousands(value.round() as u64), legend, &drawing)
}

/// Lines over time, in milliseconds.
pub(super) fn lines(title: &str, about: &str, timeline: &Timeline, lines: &[Line]) -> String {
    let most = lines.iter().flat_map(|line| line.values.iter().flatten()).copied().fold(0.0, f64::max);
    let scale = Scale::up_to(most);
    let place = WIDTH / timeline.buckets.len() as f64;
    let at = |index: usize, value: f64| (place * (index as f64 + 0.5), HEIGHT - value / scale.top * HEIGHT);
    let mut drawing = String::new();
    for line in lines {
        let mut path = String::new();
        let mut is_drawing = false;
        for (index, value) in line.values.iter().enumerate() {
            let Some(value) = value else {
                is_drawing = false;
                continue;
            };
            let (x, y) = at(index, *value);
            let _ = write!(path, "{}{x:.2} {y:.2}", if is_drawing { "L" } else { "M" });
            // A point with gaps on both sides is seen, too.
            if !is_drawing && line.values.get(index + 1).is_none_or(Option::is_none) {
                let _ = write!(path, "L{:.2} {y:.2}", x + 0.1);
            }
            is_drawing = true;
        }
        let _ = write!(drawing, "<path class=\"line {}\" d=\"{path}\"/>", line.class);
    }
    // What stands under the pointer: a column over the whole height.
    for index in 0..timeline.buckets.len() {
        let values: Vec<_> = lines
            .iter()
            .filter_map(|line| {
                line.values[index].map(|value| format!("{} {}", line.name, milliseconds(value)))
            })
            .collect();
        if !values.is_empty() {
            let _ = write!(
                drawing,
                "<rect class=\"hover\" x=\"{:.2}\" y=\"0\" width=\"{place:.2}\" height=\"{HEIGHT}\"><title>{}: {}</title></rect>",
                place * index as f64,
                escaped(&span(timeline, index)),
                escaped(&values.join(", "))
            );
        }
    }
    let legend = lines.iter().map(|line| (line.name, line.class));
    let label = |ms: f64| if scale.top < 10.0 { format!("{} ms", plain(ms)) } else { axis(ms) };
    figure(title, about, timeline, &scale, label, legend, &drawing)
}

fn figure(
    title: &str,
    about: &str,
    timeline: &Timeline,
    scale: &Scale,
    label: impl Fn(f64) -> String,
    legend: impl Iterator<Item = (&'static str, &'static str)>,
    drawing: &str,
) -> String {
    let mut grid = String::new();
    let mut left = String::new();
    for value in scale.ticks() {
        let y = HEIGHT - value / scale.top * HEIGHT;
        let _ = write!(grid, "<path class=\"grid\" d=\"M0 {y:.2}H{WIDTH}\"/>");
        let share = value / scale.top * 100.0;
        let _ = write!(left, "<span style=\"bottom:{share:.2}%\">{}</span>", escaped(&label(value)));
    }
    let seconds = timeline.seconds();
    let mut below = String::new();
    for value in Scale::up_to(seconds).ticks().filter(|value| *value <= seconds) {
        let share = value / seconds * 100.0;
        // The last one would leave the page.
        let class = if share > 92.0 { " class=\"end\"" } else { "" };
        let _ = write!(below, "<span{class} style=\"left:{share:.2}%\">{} s</span>", plain(value));
    }
    let legend: String =
        legend.map(|(name, class)| format!("<li><i class=\"{class}\"></i>{}</li>", escaped(name))).collect();
    format!(
        "<figure>\n<figcaption><h2>{}</h2><p>{}</p></figcaption>\n<ul class=\"legend\">{legend}</ul>\n\
         <div class=\"chart\"><div class=\"left\" aria-hidden=\"true\">{left}</div>\n\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">{grid}{drawing}</svg>\n\
         <div class=\"below\" aria-hidden=\"true\">{below}</div></div>\n</figure>\n",
        escaped(title),
        escaped(about),
        escaped(title),
    )
}

/// Whole milliseconds, or seconds where they are many.
fn axis(ms: f64) -> String {
    if ms < 10_000.0 {
        format!("{} ms", thousands(ms.round() as u64))
    } else {
        format!("{} s", plain(ms / 1000.0))
    }
}

/// The time of a bucket, for people.
fn span(timeline: &Timeline, index: usize) -> String {
    let width = timeline.width_ms() / 1000.0;
    let (from, to) = (width * index as f64, width * (index + 1) as f64);
    format!("{} to {} s", plain(from), plain(to))
}

/// Without digits that say nothing: 1.5, 2, 0.25.
fn plain(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An axis from 0 to a round number.
struct Scale {
    top: f64,
    step: f64,
}

impl Scale {
    /// Between two and five steps of 1, 2 or 5 times a power of ten.
    fn up_to(most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let rough = most / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * power)
            .find(|step| *step >= rough * 0.999_999)
            .unwrap_or(power * 10.0);
        Self { top: (most / step * 0.999_999).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.top / self.step).round() as u32;
        (0..=count).map(|tick| f64::from(tick) * self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_above_the_values() {
        for (most, top, ticks) in [
            (100.0, 100.0, 3),
            (101.0, 150.0, 4),
            (3.0, 3.0, 4),
            (0.04, 0.04, 5),
            (7.3, 8.0, 5),
            (0.0, 1.0, 3),
            (f64::NAN, 1.0, 3),
        ] {
            let scale = Scale::up_to(most);
            assert!((scale.top - top).abs() < top / 1e6, "{most}: {}", scale.top);
            assert_eq!(scale.ticks().count(), ticks, "{most}");
        }
    }

    #[test]
    fn digits_that_say_nothing_are_left_out() {
        assert_eq!([0.0, 2.0, 1.5, 0.25].map(plain), ["0", "2", "1.5", "0.25"]);
    }
}
