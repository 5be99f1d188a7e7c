//! Rules, dashboards and documents name metrics that exist.

use std::{collections::BTreeSet, fs, process::Command};

use antre::monitor::metrics::table::{ALL, Definition, Kind};
use serde_json::Value;

use super::panels;

const RULES: &str = "deploy/prometheus/rules.yml";
const RULES_TEST: &str = "deploy/prometheus/rules_test.yml";
const DASHBOARD: &str = "deploy/grafana/dashboards/antre.json";
const SCALER: &str = "deploy/kubernetes/worker-scaler.yaml";
const PAGE: &str = "docs/metrics.md";
const RUNBOOK: &str = "docs/operating.md";

/// Labels that Prometheus adds.
const ADDED_LABELS: [&str; 3] = ["job", "instance", "le"];

fn read(file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The metrics that a text names, with the labels that it selects.
fn named(text: &str) -> Vec<(&str, Vec<&str>)> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut named = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let word = &rest[start..];
        let word = &word[..word.find(|letter| !is_part(letter)).unwrap_or(word.len())];
        rest = &rest[start + word.len()..];
        if word.starts_with("antre_") || word.starts_with("process_") {
            let selector = rest.strip_prefix('{').and_then(|selector| selector.split_once('}'));
            let labels = selector.map_or("", |(labels, _)| labels).split(',');
            let labels = labels.filter_map(|pair| Some(pair.split_once('=')?.0.trim().trim_end_matches('!')));
            named.push((word, labels.collect()));
        }
    }
    named
}

/// The metric behind a name, which for a histogram has a suffix.
fn definition(name: &str) -> Option<&'static Definition> {
    ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => name
            .strip_prefix(metric.name)
            .is_some_and(|suffix| ["_bucket", "_sum", "_count"].contains(&suffix)),
        Kind::Counter | Kind::Gauge => metric.name == name,
    })
}

fn assert_known(file: &str, text: &str) -> usize {
    let named = named(text);
    for (name, labels) in &named {
        let definition = definition(name).unwrap_or_else(|| panic!("{file}: there is no metric {name}"));
        for label in labels {
            let is_known = definition.labels.contains(label) || ADDED_LABELS.contains(label);
            assert!(is_known, "{file}: {name} has no label {label}");
        }
    }
    named.len()
}

/// The lines of the rules that Prometheus evaluates, and the sentences for people.
fn expressions_and_prose(rules: &str) -> (String, String) {
    let (mut expressions, mut prose, mut is_prose) = (String::new(), String::new(), false);
    for line in rules.lines() {
        is_prose = (is_prose || line.contains("description:")) && !line.contains("runbook:");
        let part = if is_prose || line.trim().starts_with('#') { &mut prose } else { &mut expressions };
        *part += line;
        *part += "\n";
    }
    (expressions, prose)
}

fn alerts(rules: &str) -> Vec<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn rules_and_panels_name_metrics_that_exist() {
    let (expressions, prose) = expressions_and_prose(&read(RULES));
    assert!(assert_known(RULES, &expressions) >= alerts(&expressions).len());
    for (name, _) in named(&prose) {
        assert!(ALL.iter().any(|metric| metric.name == name), "{RULES}: there is no metric {name}");
    }
    assert!(assert_known(RULES_TEST, &read(RULES_TEST)) > 20);
    assert_eq!(assert_known(SCALER, &read(SCALER)), 1);
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let recorded: Vec<_> = read(RULES).lines().filter_map(record).collect();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["description"].is_string(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let is_recorded = recorded.iter().any(|name| expression.contains(name));
            assert!(assert_known(title, expression) > 0 || is_recorded, "{title}: {expression}");
        }
    }
}

fn record(line: &str) -> Option<String> {
    Some(line.trim().strip_prefix("- record: ")?.to_owned())
}

/// Whoever looks at the dashboard sees each metric that the table has.
#[test]
fn each_metric_is_on_the_dashboard() {
    let (dashboard, rules) = (read(DASHBOARD), read(RULES));
    let shown: BTreeSet<_> = named(&dashboard)
        .into_iter()
        .chain(named(&rules))
        .filter_map(|(name, _)| definition(name))
        .map(|metric| metric.name)
        .collect();
    let hidden: Vec<_> = ALL.iter().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
    assert_eq!(hidden, ["antre_database_connections_max"]);
}

#[test]
fn each_alert_is_tested_and_has_a_section_in_the_runbook() {
    let (rules, tests, runbook) = (read(RULES), read(RULES_TEST), read(RUNBOOK));
    let alerts = alerts(&rules);
    assert!(alerts.len() >= 11, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("name: {alert}, which fires")), "{alert}");
        assert!(tests.contains(&format!("name: {alert}, silent")), "{alert}");
        assert!(rules.contains(&format!("runbook: {RUNBOOK}#{}", alert.to_lowercase())), "{alert}");
        assert!(runbook.contains(&format!("### {alert}\n")), "{RUNBOOK} has no section {alert}");
    }
}

/// With `UPDATE_DOCS=1` it writes the page.
#[test]
fn the_page_of_metrics_is_the_table() {
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(format!("{}/{PAGE}", env!("CARGO_MANIFEST_DIR")), &page).unwrap();
    }
    assert!(read(PAGE) == page, "{PAGE} is not up to date: UPDATE_DOCS=1 cargo test --test it metrics");
}

fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` of an API, and of a worker with `LISTEN_ADDR`, in the text format of Prometheus. This page is the table in\n\
         `src/monitor/metrics/table.rs`; a test compares them. No label has values from outside, so the number of series does not\n\
         grow with orders and products. Times are in seconds.\n\n\
         [`deploy/prometheus`](../deploy/prometheus) has a configuration and alert rules, [`deploy/grafana`](../deploy/grafana) a\n\
         dashboard; [operating.md](operating.md#what-to-watch) says what to do about each alert.\n\n\
         | metric | type | labels | process | meaning |\n|---|---|---|---|---|\n",
    );
    for Definition { name, kind, labels, of, help } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        page += &format!("| `{name}` | {} | {labels} | {} | {help} |\n", kind.as_str(), of.as_str());
    }
    page
}

#[test]
#[ignore = "needs promtool, which is in Debian's package prometheus: run ./test.sh"]
fn promtool_accepts_the_rules_and_each_alert_fires_when_it_must() {
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(format!("{}/deploy/prometheus", env!("CARGO_MANIFEST_DIR")))
            .output()
            .expect("promtool: apt-get install prometheus");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("SUCCESS"), "{arguments:?}: {said}");
    }
}
