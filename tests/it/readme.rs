//! The session in README.md, run as it is printed there against this build: each answer that the README shows is the
//! answer that a reader gets.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::harness::{App, Pair};

/// Where the README finds the API.
const ADDRESS: &str = "localhost:3000";

/// What the README shows instead of ids and times.
const LEFT_OUT: char = '…';

#[tokio::test]
async fn the_session_in_the_readme_answers_what_the_readme_shows() {
    let session = session(&read("README.md"));
    let shown = shown(&session);
    assert!(shown.len() > 5, "the README shows only {} answers", shown.len());

    let app = App::start(Pair::Embedded).await;
    let answers = run(&session.replace(ADDRESS, app.address()));

    assert_eq!(answers.len(), shown.len(), "answers: {answers:#?}\nthe README shows: {shown:#?}");
    for (answer, shown) in answers.iter().zip(shown) {
        assert!(matches(shown, answer), "the README shows\n{shown}\nbut the answer is\n{answer}");
    }
}

#[test]
fn the_readme_is_short() {
    let words = read("README.md").split_whitespace().count();
    assert!(words <= 900, "README.md has {words} words, more than 900: move details to docs/");
    let words = read("ARCHITECTURE.md").split_whitespace().count();
    assert!(
        words <= 1_800,
        "ARCHITECTURE.md has {words} words, more than 1,800: move details to docs/internals/"
    );
}

#[test]
fn a_difference_from_the_readme_is_found() {
    let shown = r#"{"id":"…","total":1,"at":"…"}"#;
    assert!(matches(shown, r#"{"id":"0193","total":1,"at":"2026"}"#));
    for other in [
        r#"{"id":"0193","total":2,"at":"2026"}"#,
        r#"{"id":"0193","total":1,"at":"2026"},"#,
        r#"{"id":"01","x":"93","total":1,"at":"2026"}"#,
        r#"{"id":"","total":1,"at":"2026"}"#,
        "",
    ] {
        assert!(!matches(shown, other), "{other}");
    }
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The shell blocks that call the API, one after the other.
fn session(readme: &str) -> String {
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains(ADDRESS)).collect()
}

/// The answers that a session shows: comments that are JSON.
fn shown(session: &str) -> Vec<&str> {
    session.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| line.starts_with('{')).collect()
}

/// Runs a session, and returns its answers, one a line.
fn run(session: &str) -> Vec<String> {
    // Answers end without a newline.
    let script = format!("set -eu\ncurl() {{ command curl \"$@\"; echo; }}\n{session}");
    let has_curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(has_curl, "this test needs curl: apt-get install curl");
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Whether an answer is what is shown, with a text without quotes for each [`LEFT_OUT`].
fn matches(shown: &str, answer: &str) -> bool {
    let mut parts = shown.split(LEFT_OUT);
    let Some(mut rest) = parts.next().and_then(|first| answer.strip_prefix(first)) else { return false };
    for part in parts {
        let end = rest.find('"').unwrap_or(rest.len());
        match rest[end..].strip_prefix(part) {
            Some(after) if end > 0 => rest = after,
            _ => return false,
        }
    }
    rest.is_empty()
}
