//! The chart for the README: orders a second, bars grouped by scenario, one colour for each variant.

use std::{fs, path::Path};

use antre_testkit::error::Result;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    report::{Comparison, Report, Summary},
    scenario::Scenario,
    variant::Variant,
};

const WIDTH: i32 = 860;
const MARGIN: i32 = 20;
/// Where the bars begin; names stand before, numbers behind.
const BARS_FROM: i32 = 210;
const BARS_TO: i32 = 740;
const BAR: i32 = 17;
const GAP: i32 = 5;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const FAINT: RGBColor = RGBColor(0x65, 0x6d, 0x76);

/// Draws the scenarios that load a variant fully, each at the largest number of connections that was measured.
pub(crate) fn draw(report: &Report, path: &Path) -> Result<()> {
    let groups: Vec<_> = [Scenario::Hot, Scenario::Products100, Scenario::Products1000, Scenario::SoldOut]
        .into_iter()
        .filter_map(|scenario| {
            report
                .comparisons
                .iter()
                .filter(|comparison| comparison.scenario == scenario)
                .max_by_key(|comparison| comparison.connections)
        })
        .collect();
    if groups.is_empty() {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let heights = groups.iter().map(|group| group_height(group)).sum::<i32>();
    let height = MARGIN + 62 + heights;
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let write = |text: &str, at: (i32, i32), size: f64, color: &RGBColor, horizontal: HPos| {
        let style = (FONT, size).into_font().color(color).pos(Pos::new(horizontal, VPos::Center));
        area.draw(&Text::new(text.to_owned(), at, style))
    };

    write("Orders a second, longer is better", (MARGIN, MARGIN + 8), 20.0, &INK, HPos::Left)?;
    let machine = &report.machine;
    let where_and_when = format!(
        "Database, broker, service and load on {} cores ({}); every commit on disk; {}",
        machine.cores,
        machine.cpu,
        machine.date.split('T').next().unwrap_or_default()
    );
    write(&where_and_when, (MARGIN, MARGIN + 34), 13.0, &FAINT, HPos::Left)?;

    let most = groups
        .iter()
        .flat_map(|group| &group.results)
        .map(|result| result.orders_per_second)
        .fold(1.0, f64::max);
    let mut y = MARGIN + 62;
    for group in groups {
        write(&heading(group), (MARGIN, y + 10), 15.0, &INK, HPos::Left)?;
        let mut top = y + 26;
        for Summary { variant, orders_per_second, .. } in &group.results {
            let middle = top + BAR / 2;
            let length = (f64::from(BARS_TO - BARS_FROM) * orders_per_second / most).round() as i32;
            let bar = Rectangle::new(
                [(BARS_FROM, top), (BARS_FROM + length.max(1), top + BAR)],
                color(*variant).filled(),
            );
            write(name(*variant), (BARS_FROM - 8, middle), 13.0, &INK, HPos::Right)?;
            area.draw(&bar)?;
            let number = thousands(*orders_per_second);
            write(&number, (BARS_FROM + length.max(1) + 6, middle), 13.0, &INK, HPos::Left)?;
            top += BAR + GAP;
        }
        y += group_height(group);
    }
    Ok(area.present()?)
}

fn group_height(group: &Comparison) -> i32 {
    26 + group.results.len() as i32 * (BAR + GAP) + MARGIN
}

fn heading(group: &Comparison) -> String {
    let what = match group.scenario {
        Scenario::Products100 => "100 products evenly: accepted",
        Scenario::Products1000 => "1,000 products evenly: accepted",
        Scenario::SoldOut => "Sold out: refused",
        _ => "One hot product: accepted",
    };
    format!("{what}, {} connections", thousands(group.connections as f64))
}

fn name(variant: Variant) -> &'static str {
    match variant {
        Variant::Noop => "HTTP that does nothing",
        Variant::DirectUpdate => "conditional UPDATE",
        Variant::DirectForUpdate => "SELECT … FOR UPDATE",
        Variant::DirectSkipLocked => "a row per piece, SKIP LOCKED",
        Variant::AntreBaseline => "antre, baseline",
        Variant::Antre => "antre (MySQL, RabbitMQ)",
        Variant::AntreHash16 => "antre with LANES=hash:16",
        Variant::AntrePlain => "antre, ssl-mode=disabled",
        Variant::AntreNoEvents => "antre with EVENTS=off",
        Variant::AntreKeys => "antre, Idempotency-Key",
        Variant::AntreEmbeddedBaseline => "antre embedded, baseline",
        Variant::AntreEmbedded => "antre embedded (SQLite)",
    }
}

fn color(variant: Variant) -> RGBColor {
    match variant {
        Variant::Noop => RGBColor(0xc9, 0xce, 0xd4),
        _ if variant.is_direct() => RGBColor(0xe0, 0x8a, 0x4a),
        _ if variant.is_embedded() => RGBColor(0x6d, 0xb3, 0xa8),
        _ => RGBColor(0x1f, 0x7a, 0x6d),
    }
}

/// 23456.7 as 23,457.
fn thousands(number: f64) -> String {
    antre::digits::thousands(number.round() as u64)
}
