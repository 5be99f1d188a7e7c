//! Which file may import which, read from the source: layers import downwards, no import leads back to its file, and each
//! large library is used in one layer only.

mod imports;

use std::{fs, path::Path};

use self::imports::{Crate, circles, imports};

/// Small modules that every layer but the domain may use.
const LEAVES: [&str; 6] = ["backoff", "clock", "digits", "server_url", "supervise", "telemetry"];

/// What each module at the top of `src` may import, in addition to the [`LEAVES`].
const LAYERS: [(&str, &[&str]); 21] = [
    ("domain", &[]),
    ("backoff", &[]),
    ("clock", &["domain"]),
    ("digits", &[]),
    ("server_url", &[]),
    ("supervise", &[]),
    ("telemetry", &["domain"]),
    ("dotenv", &["settings"]),
    ("store", &["domain"]),
    ("queue", &["domain"]),
    ("lane_watch", &["domain", "store", "queue"]),
    ("monitor", &["domain", "store", "queue"]),
    ("worker", &["domain", "store", "queue", "monitor"]),
    ("service", &["domain", "store", "queue", "monitor"]),
    ("http", &["domain", "service", "monitor"]),
    ("rehearse", &[]),
    ("settings", &["domain", "store", "http", "rehearse"]),
    (
        "app",
        &[
            "domain",
            "store",
            "queue",
            "lane_watch",
            "monitor",
            "worker",
            "service",
            "http",
            "settings",
            "dotenv",
        ],
    ),
    ("tools", &["domain", "store", "queue", "service", "monitor", "settings"]),
    ("lib", &[]),
    ("main", &["app", "settings", "dotenv", "http", "rehearse", "tools"]),
];

/// Imports that skip a layer, each with its reason. An entry that is not needed any more fails the test.
const EXCEPTIONS: [(&str, &str, &str); 5] = [
    ("src/http/envelope.rs", "src/queue.rs", "every error becomes an HTTP status in one place"),
    ("src/http/envelope.rs", "src/store.rs", "every error becomes an HTTP status in one place"),
    ("src/http/health.rs", "src/queue.rs", "readiness asks each part of the process"),
    ("src/http/health.rs", "src/store.rs", "readiness asks each part of the process"),
    ("src/http/health.rs", "src/worker/health.rs", "readiness asks each part of the process"),
];

/// A library, and the files that may name it.
const LIBRARIES: [(&str, &[&str]); 11] = [
    ("sqlx", &["src/store.rs", "src/store/"]),
    ("prometheus", &["src/monitor/metrics.rs", "src/monitor/metrics/"]),
    ("lapin", &["src/queue/rabbitmq.rs", "src/queue/rabbitmq/"]),
    ("deadpool_lapin", &["src/queue/rabbitmq.rs", "src/queue/rabbitmq/"]),
    ("axum", &["src/http.rs", "src/http/"]),
    ("hyper", &["src/http/", "src/rehearse/load/", "src/rehearse/shop.rs"]),
    ("hyper_util", &["src/http/", "src/rehearse/load/"]),
    ("tower", &["src/http/"]),
    ("opentelemetry", &["src/telemetry/traces/"]),
    ("opentelemetry_otlp", &["src/telemetry/traces/"]),
    ("opentelemetry_sdk", &["src/telemetry/traces/"]),
];

/// The domain names none of these, so that its decisions can be tested and replayed without a runtime, a driver and a clock.
const IMPURE: [&str; 9] = ["tokio", "sqlx", "lapin", "axum", "hyper", "clock", "now_v7", "service", "store"];

#[test]
fn no_import_leads_back_to_its_file() {
    let all = imports(&workspace());
    assert!(all.len() > 50, "{}", all.len());
    let found = circles(&all);
    assert!(found.is_empty(), "files that import each other:\n{}", shown(&found));
}

#[test]
fn layers_import_downwards() {
    let all = imports(&[Crate::read("antre", "src")]);
    let all = all.iter().flat_map(|(file, targets)| targets.iter().map(move |target| (file, target)));
    let upwards: Vec<_> = all.filter(|(file, target)| !may_import(file, target)).collect();
    let excused: Vec<_> = EXCEPTIONS.iter().map(|(file, target, _)| (*file, *target)).collect();
    let upwards: Vec<_> = upwards.iter().map(|(file, target)| (&***file, &***target)).collect();
    let found: Vec<_> = upwards.iter().filter(|import| !excused.contains(import)).collect();
    assert!(found.is_empty(), "imports against the layers: {found:#?}");
    let unused: Vec<_> = excused.iter().filter(|import| !upwards.contains(import)).collect();
    assert!(unused.is_empty(), "not needed: remove them from EXCEPTIONS: {unused:#?}");
}

#[test]
fn each_library_stays_in_its_layer() {
    let antre = Crate::read("antre", "src");
    for (library, places) in LIBRARIES {
        let users: Vec<_> =
            antre.words(true).filter(|(_, words)| words.contains(library)).map(|(file, _)| file).collect();
        assert!(!users.is_empty(), "{library} is not used any more");
        for file in users {
            assert!(
                places.iter().any(|place| file.starts_with(place)),
                "{file}: {library} belongs to {places:?}"
            );
        }
    }
}

#[test]
fn the_domain_is_pure() {
    let domain = Crate::read("domain", "src/domain");
    assert!(domain.words(false).count() > 5);
    for (file, words) in domain.words(false) {
        let impure: Vec<_> = IMPURE.into_iter().filter(|word| words.contains(*word)).collect();
        assert!(impure.is_empty(), "{file} names {impure:?}");
    }
}

/// Clock and ids are handed in, so that a simulation repeats a run exactly. The adapters of real servers are no part of one.
#[test]
fn nothing_that_decides_reads_the_systems_clock_or_its_random_source() {
    const SOURCES: [&str; 4] = ["SystemClock", "SystemTime", "now_v7", "new_v4"];
    const DECIDES: [&str; 6] = [
        "src/service/",
        "src/worker.rs",
        "src/worker/",
        "src/queue/memory.rs",
        "src/store/memory.rs",
        "src/store/transaction.rs",
    ];
    let antre = Crate::read("antre", "src");
    let words: Vec<_> = antre.words(false).collect();
    assert!(words.iter().any(|(file, words)| *file == "src/clock.rs" && words.contains("now_v7")));
    for place in DECIDES {
        let files: Vec<_> = words.iter().filter(|(file, _)| file.starts_with(place)).collect();
        assert!(!files.is_empty(), "no file is {place}");
        for (file, words) in files {
            let named: Vec<_> = SOURCES.into_iter().filter(|word| words.contains(*word)).collect();
            assert!(named.is_empty(), "{file} names {named:?}");
        }
    }
}

#[test]
fn imports_are_found_in_code_only() {
    let files = [
        ("lib.rs", "pub mod a; pub mod b; mod c;"),
        ("a.rs", "mod child; pub use child::Child; use crate::{b::{self, B as Other}, c::*};"),
        ("a/child.rs", "use super::super::c::C; fn f() -> crate::b::B { super::g(std::iter::empty()) }"),
        (
            "b.rs",
            "//! See [`crate::a`].\n/* use crate::a; */\nconst TEXT: &str = \"crate::a::A\"; pub(in crate::a) struct B;",
        ),
        (
            "b/macros.rs",
            "fn f() { assert!(crate::a::A == 1, \"{}\", self::inner::x()); mod inner { use super::super::X; } }",
        ),
        (
            "c.rs",
            "#[cfg(test)]\n#[allow(unused)]\nmod tests { use crate::a::A; }\n#[cfg(test)] use crate::a::A;\nuse crate::b;",
        ),
        ("c/tests.rs", "use crate::a::A;"),
        ("main.rs", "use antre::{a::A, b}; fn main() { antre::c::run() }"),
    ];
    let found = imports(&[
        Crate::new("antre", "src", files),
        Crate::new(
            "bench",
            "bench",
            [("main.rs", "mod x; use antre::a::child::Child;"), ("x.rs", "use crate::Y;")],
        ),
    ]);
    let found: Vec<_> = found
        .iter()
        .map(|(file, targets)| format!("{file}: {}", Vec::from_iter(targets.clone()).join(" ")))
        .collect();
    let expected = [
        "bench/main.rs: src/a/child.rs",
        "bench/x.rs: bench/main.rs",
        "src/a.rs: src/a/child.rs src/b.rs src/c.rs",
        "src/a/child.rs: src/a.rs src/b.rs src/c.rs",
        "src/b.rs: ",
        "src/b/macros.rs: src/a.rs src/b.rs",
        "src/c.rs: src/b.rs",
        "src/c/tests.rs: ",
        "src/lib.rs: ",
        "src/main.rs: src/a.rs src/b.rs src/c.rs",
    ];
    assert_eq!(found, expected);
}

#[test]
fn circles_are_found_once_and_short() {
    let files = [
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use crate::c::C; use crate::d::D;"),
        ("c.rs", "use crate::a::A;"),
        ("d.rs", "use crate::e;"),
        ("e.rs", "use super::d::D;"),
        ("f.rs", "use crate::a::A;"),
    ];
    let all = imports(&[Crate::new("antre", "src", files)]);
    let expected = "src/a.rs → src/b.rs → src/c.rs → src/a.rs\nsrc/d.rs → src/e.rs → src/d.rs";
    assert_eq!(shown(&circles(&all)), expected);
}

#[test]
fn what_imports_upwards_is_found() {
    for (file, target) in [
        ("src/domain/order.rs", "src/clock.rs"),
        ("src/store/mysql.rs", "src/queue.rs"),
        ("src/service.rs", "src/http/body.rs"),
        ("src/clock.rs", "src/store.rs"),
    ] {
        assert!(!may_import(file, target), "{file} {target}");
    }
    for (file, target) in [
        ("src/domain/order.rs", "src/domain/ids.rs"),
        ("src/store/mysql.rs", "src/telemetry/lines.rs"),
        ("src/app.rs", "src/http.rs"),
    ] {
        assert!(may_import(file, target), "{file} {target}");
    }
}

/// The service, and the programs that import it.
fn workspace() -> Vec<Crate> {
    let mut crates = vec![Crate::read("antre", "src")];
    let members = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    for member in fs::read_dir(members).into_iter().flatten() {
        let name = member.unwrap().file_name().into_string().unwrap();
        crates.push(Crate::read(&name.replace('-', "_"), &format!("crates/{name}/src")));
    }
    crates
}

fn shown(circles: &[Vec<String>]) -> String {
    let circles: Vec<_> = circles.iter().map(|circle| circle.join(" → ")).collect();
    circles.join("\n")
}

fn may_import(file: &str, target: &str) -> bool {
    let (layer, below) = (layer(file), layer(target));
    let allowed = LAYERS.iter().find(|(name, _)| *name == layer);
    let (_, allowed) = allowed.unwrap_or_else(|| panic!("{file} is in no layer: add {layer} to LAYERS"));
    layer == below || allowed.contains(&below) || (layer != "domain" && LEAVES.contains(&below))
}

/// `src/queue.rs` and all below `src/queue/` are `queue`.
fn layer(file: &str) -> &str {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    path.split('/').next().unwrap_or(path)
}
