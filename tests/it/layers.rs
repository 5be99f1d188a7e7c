//! Who may know whom, read from the source: each of the large libraries stays behind the seam that it serves.

use std::{fs, path::Path};

/// A library, and where its name may stand.
const LAYERS: [(&str, &[&str]); 7] = [
    ("sqlx", &["store.rs", "store/"]),
    ("lapin", &["queue/rabbitmq.rs", "queue/rabbitmq/"]),
    ("deadpool_lapin", &["queue/rabbitmq.rs", "queue/rabbitmq/"]),
    ("axum", &["http.rs", "http/"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("tower", &["http/"]),
];

#[test]
fn each_library_stays_in_its_layer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut used = [false; LAYERS.len()];
    for (file, text) in files(&source, "") {
        for ((library, places), used) in LAYERS.iter().zip(&mut used) {
            let mut lines = text.lines().enumerate().filter(|(_, line)| names(line, library));
            if places.iter().any(|place| file.starts_with(place)) {
                *used |= lines.next().is_some();
            } else if let Some((n, line)) = lines.next() {
                panic!("src/{file}:{}: {library} belongs to {places:?}: {line}", n + 1);
            }
        }
    }
    assert_eq!(used, [true; LAYERS.len()], "a library of the list is not used any more");
}

/// What is pure names no runtime, no driver and no clock: the decision can be tested, and replayed, by itself.
#[test]
fn the_domain_is_pure() {
    const FOREIGN: [&str; 9] =
        ["tokio", "sqlx", "lapin", "axum", "hyper", "clock", "now_v7", "service", "store"];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
    let files = files(&source, "");
    assert!(files.len() > 5, "{}", files.len());
    for (file, text) in files {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for foreign in FOREIGN {
            let line = code.lines().find(|line| names(line, foreign));
            assert_eq!(line, None, "src/domain/{file} names {foreign}");
        }
    }
}

/// Whether code in the line names the library; comments may.
fn names(line: &str, library: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let mut words = code.split(|character: char| !character.is_alphanumeric() && character != '_');
    words.any(|word| word == library)
}

/// Paths below `src`, and what is in them.
fn files(directory: &Path, prefix: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.append(&mut files(&entry.path(), &format!("{name}/")));
        } else {
            found.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
    found
}
