//! The command line: settings from flags, the environment and `.env`, and a clear sentence for each that is wrong.

use std::{fs, net::TcpListener, path::Path, process::Output};

use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::harness::{App, Pair, TIMEOUT, antre};

/// Runs the program until it ends.
pub(crate) async fn run(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = antre(directory);
    command.args(arguments).envs(environment.iter().copied());
    timeout(TIMEOUT, command.output()).await.expect("it runs, though it should not").unwrap()
}

pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// What it said on stderr before it exited with this code: one sentence, as ours are or as clap's are.
#[track_caller]
pub(crate) fn complaint(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    if let Some(sentence) = stderr.strip_prefix("antre: ") {
        assert_eq!(sentence.trim_end().lines().count(), 1, "{stderr}");
        return sentence.trim_end().to_owned();
    }
    // clap puts the pointer to its help behind a blank line.
    let sentence = stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("not a complaint: {stderr}"));
    let (sentence, rest) = sentence.split_once("\n\n").unwrap();
    assert!(rest.contains("--help") && !rest.contains("error"), "{stderr}");
    sentence.to_owned()
}

/// It does not start, says why in a sentence with each of these words, and leaves no file behind.
async fn refuses(arguments: &[&str], environment: &[(&str, &str)], code: i32, words: &[&str]) {
    let directory = directory();
    let output = run(directory.path(), arguments, environment).await;
    let said = complaint(&output, code);
    for word in words {
        assert!(said.contains(word), "{arguments:?} {environment:?}: {said:?} does not name {word}");
    }
    assert!(!said.contains("secret"), "{said}");
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_bad_setting_is_named() {
    for (name, value, flag) in [
        ("ORDER_TIMEOUT", "abc", "--order-timeout"),
        ("ORDER_TIMEOUT", "10", "--order-timeout"),
        ("ORDER_TIMEOUT", "-1s", "--order-timeout"),
        ("ORDER_TIMEOUT", "0s", "--order-timeout"),
        ("ORDER_TIMEOUT", "1h", "--order-timeout"),
        ("ORDER_TIMEOUT", "99999999999999999999s", "--order-timeout"),
        ("RESERVATION_TTL", "soon", "--reservation-ttl"),
        ("EVENTS", "perhaps", "--events"),
        ("RESERVATION_TTL", "0ms", "--reservation-ttl"),
        ("RESERVATION_TTL", "1000years", "--reservation-ttl"),
        ("LISTEN_ADDR", "nonsense", "--listen-addr"),
        ("LISTEN_ADDR", "127.0.0.1", "--listen-addr"),
        ("LISTEN_ADDR", "127.0.0.1:65536", "--listen-addr"),
        ("LISTEN_ADDR", ":3000", "--listen-addr"),
        ("LOG_FORMAT", "xml", "--log-format"),
    ] {
        refuses(&[], &[(name, value)], 2, &[flag, value]).await;
        refuses(&[&format!("{flag}={value}")], &[], 2, &[flag, value]).await;
    }
    refuses(&[], &[("RUST_LOG", "antre=loud")], 2, &["RUST_LOG", "--log"]).await;
    refuses(&["--log", "a=b=c"], &[], 2, &["RUST_LOG", "--log"]).await;
}

#[tokio::test]
async fn an_unknown_word_on_the_command_line_is_named() {
    refuses(&["--frobnicate"], &[], 2, &["--frobnicate"]).await;
    refuses(&["sell"], &[], 2, &["sell"]).await;
    refuses(&["migrate", "twice"], &[], 2, &["twice"]).await;
    refuses(&["--listen-addr"], &[], 2, &["--listen-addr"]).await;
}

#[tokio::test]
async fn the_two_urls_go_together() {
    let (mysql, amqp) = ("mysql://shop:secret@127.0.0.1:1/antre", "amqp://shop:secret@127.0.0.1:1/%2f");
    for command in [&[] as &[&str], &["serve"], &["migrate"]] {
        refuses(command, &[("AMQP_URL", amqp)], 2, &["DATABASE_URL"]).await;
    }
    refuses(&[], &[("DATABASE_URL", mysql)], 2, &["AMQP_URL"]).await;
    refuses(&["--amqp-url", amqp], &[], 2, &["DATABASE_URL"]).await;
    refuses(&["--database-url", mysql], &[], 2, &["AMQP_URL"]).await;
    refuses(&[], &[("DATABASE_URL", mysql), ("AMQP_URL", "")], 2, &["AMQP_URL"]).await;
    refuses(&[], &[("DATABASE_URL", "sqlite://antre.db"), ("AMQP_URL", amqp)], 2, &["DATABASE_URL"]).await;
    for url in ["postgres://shop:secret@127.0.0.1/antre", "antre.db", "sqlite", "://"] {
        refuses(&[], &[("DATABASE_URL", url)], 2, &["DATABASE_URL"]).await;
    }
}

/// API and worker on their own meet on servers; a file and a queue in memory are for one process.
#[tokio::test]
async fn api_and_worker_need_both_urls() {
    let (mysql, amqp) = ("mysql://shop:secret@127.0.0.1:1/antre", "amqp://shop:secret@127.0.0.1:1/%2f");
    for role in ["api", "worker"] {
        refuses(&[role], &[], 2, &["DATABASE_URL", "AMQP_URL", "antre serve"]).await;
        refuses(&[role], &[("DATABASE_URL", "sqlite://antre.db")], 2, &["DATABASE_URL", "AMQP_URL"]).await;
        refuses(&[role], &[("DATABASE_URL", mysql)], 2, &["AMQP_URL"]).await;
        refuses(&[role], &[("AMQP_URL", amqp)], 2, &["DATABASE_URL"]).await;
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    refuses(&["--listen-addr", &address], &[], 1, &[&address, "LISTEN_ADDR"]).await;
    // TEST-NET-1 (RFC 5737): an address that is not ours.
    refuses(&["--listen-addr", "192.0.2.1:3000"], &[], 1, &["192.0.2.1:3000", "LISTEN_ADDR"]).await;
}

/// The user may be root, who may write everywhere: so these are places where nobody can.
#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named() {
    let directory = directory();
    fs::write(directory.path().join("file"), "not a directory").unwrap();
    fs::create_dir(directory.path().join("directory")).unwrap();
    for command in ["serve", "migrate"] {
        for url in ["sqlite://file/antre.db", "sqlite://directory", "sqlite://nowhere/antre.db"] {
            let output =
                run(directory.path(), &[command, "--listen-addr=127.0.0.1:0"], &[("DATABASE_URL", url)])
                    .await;
            let said = complaint(&output, 1);
            assert!(said.contains(url) && said.contains("DATABASE_URL"), "{said}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_not_changed() {
    let directory = directory();
    let garbage: Vec<u8> = (0..8192_u32).map(|n| (n * 31 % 251) as u8).collect();
    fs::write(directory.path().join("antre.db"), &garbage).unwrap();
    for command in ["serve", "migrate"] {
        let output = run(directory.path(), &[command, "--listen-addr=127.0.0.1:0"], &[]).await;
        let said = complaint(&output, 1);
        assert!(said.contains("sqlite://antre.db"), "{said}");
    }
    assert!(fs::read(directory.path().join("antre.db")).unwrap() == garbage);
}

#[tokio::test]
async fn the_tables_are_created_once() {
    let directory = directory();
    for _ in 0..2 {
        let output = run(directory.path(), &["migrate"], &[]).await;
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, "The tables of sqlite://antre.db are up to date.\n");
    }
    assert!(directory.path().join("antre.db").is_file());
}

/// Which file is made tells which setting counted.
#[tokio::test]
async fn flags_override_the_environment_which_overrides_dotenv() {
    let made = async |dotenv: Option<&str>, environment: &[(&str, &str)], arguments: &[&str]| {
        let directory = directory();
        if let Some(dotenv) = dotenv {
            fs::write(directory.path().join(".env"), dotenv).unwrap();
        }
        let output = run(directory.path(), &[&["migrate"], arguments].concat(), environment).await;
        assert!(output.status.success(), "{output:?}");
        let files = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<_> =
            files.map(|name| name.into_string().unwrap()).filter(|name| name != ".env").collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    };
    let dotenv = Some("# the shop's\nDATABASE_URL=sqlite://dotenv.db\n");
    let environment = [("DATABASE_URL", "sqlite://environment.db")];
    let flag = ["--database-url", "sqlite://flag.db"];
    assert_eq!(made(None, &[], &[]).await, "antre.db");
    assert_eq!(made(dotenv, &[], &[]).await, "dotenv.db");
    assert_eq!(made(dotenv, &environment, &[]).await, "environment.db");
    assert_eq!(made(dotenv, &environment, &flag).await, "flag.db");
    assert_eq!(made(None, &environment, &flag).await, "flag.db");
    // What is empty is not set.
    assert_eq!(made(None, &[("DATABASE_URL", "")], &[]).await, "antre.db");
    assert_eq!(made(None, &[("DATABASE_URL", " "), ("AMQP_URL", "")], &[]).await, "antre.db");
    assert_eq!(made(Some("DATABASE_URL=\nAMQP_URL=\n"), &[], &[]).await, "antre.db");
}

#[tokio::test]
async fn a_broken_dotenv_is_named() {
    let broken: [&[u8]; 5] = [
        b"LISTEN_ADDR",
        b"DATABASE_URL='mysql://shop:secret@db",
        b"DATABASE_URL=secret secret",
        b"= x",
        b"A=\xff",
    ];
    for broken in broken {
        let directory = directory();
        fs::write(directory.path().join(".env"), broken).unwrap();
        let said = complaint(&run(directory.path(), &["migrate"], &[]).await, 2);
        assert!(said.contains("/.env: line 1 ") && !said.contains("secret"), "{said}");
    }
}

/// Another program's settings must not decide which database is used.
#[tokio::test]
async fn the_dotenv_of_a_parent_directory_is_not_read() {
    let directory = directory();
    fs::write(directory.path().join(".env"), "DATABASE_URL=sqlite://above.db").unwrap();
    let below = directory.path().join("below");
    fs::create_dir(&below).unwrap();
    let output = run(&below, &["migrate"], &[]).await;
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(below.join("antre.db").is_file() && !directory.path().join("above.db").exists());
}

#[tokio::test]
async fn the_log_names_the_dotenv_and_unknown_settings_in_it() {
    let directory = directory();
    let path = directory.path().join(".env");
    fs::write(&path, "DATABSE_URL=sqlite://secret.db\nMYSQL_PASSWORD=secret\nEVENTS=off\n").unwrap();
    let output = run(directory.path(), &["migrate"], &[]).await;
    assert!(output.status.success(), "{output:?}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(path.to_str().unwrap()) && log.contains("names=\"DATABSE_URL\""), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn help_names_every_setting() {
    let directory = directory();
    for arguments in [&["--help"] as &[&str], &["serve", "--help"], &["help", "serve"]] {
        let output =
            run(directory.path(), arguments, &[("DATABASE_URL", "mysql://shop:secret@db/antre")]).await;
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        for name in [
            "LISTEN_ADDR",
            "DATABASE_URL",
            "AMQP_URL",
            "ORDER_TIMEOUT",
            "RESERVATION_TTL",
            "EVENTS",
            "RUST_LOG",
            "LOG_FORMAT",
        ] {
            assert!(help.contains(name), "{arguments:?} does not tell of {name}");
        }
        assert!(!help.contains("secret"), "{help}");
    }
    let output = run(directory.path(), &["--version"], &[]).await;
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("antre {}\n", env!("CARGO_PKG_VERSION")));
}

/// Started twice on one file by mistake: both work on, and the stock is counted once.
#[tokio::test]
async fn two_programs_on_one_file_do_not_oversell() {
    let first = App::start(Pair::Embedded).await;
    let product = first.create_stocked("Kaos Polos", 20).await;
    let url = format!("sqlite://{}", first.file("antre.db").display());
    let second = App::start_with(Pair::Embedded, &[("DATABASE_URL", &url)]).await;
    let mut accepted = 0;
    for _ in 0..12 {
        let (one, other) = tokio::join!(first.order(product, 1), second.order(product, 1));
        for answer in [one, other] {
            assert!([201, 400].contains(&answer.status), "{answer:?}");
            accepted += u64::from(answer.status == 201);
        }
    }
    assert_eq!((accepted, first.inventory(product).await), (20, [20, 0, 20]));
    assert_eq!(second.reservations(product).await.orders.len(), 20);
}

/// For machines, everything is a line of JSON on stderr, and stdout is silent.
#[tokio::test]
async fn logs_can_be_json() {
    let directory = directory();
    let output = run(directory.path(), &["migrate", "--log-format=json"], &[]).await;
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("up to date"), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}
