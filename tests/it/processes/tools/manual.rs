//! `antre completions` and `antre man`.

use std::{fs, path::Path, process::Stdio};

use tokio::process::Command;

use super::printed;
use crate::processes::cli::{complaint, directory, run};

#[tokio::test]
async fn every_shell_gets_completions_that_name_the_commands() {
    let directory = directory();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&run(directory.path(), &["completions", shell], &[]).await, 0);
        for word in ["prune", "rehearse", "requeue", "dry-run", "database-url"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // The shell itself, where there is one, finds no mistake in it.
        let path = directory.path().join(shell);
        fs::write(&path, script).unwrap();
        if let Some(complaints) = check(shell, &["-n", &path.to_string_lossy()]).await {
            assert_eq!(complaints, "", "{shell}");
        }
    }
    complaint(&run(directory.path(), &["completions", "cmd"], &[]).await, 2);
}

#[tokio::test]
async fn there_is_a_page_for_each_command_and_roff_accepts_it() {
    let directory = directory();
    let page = printed(&run(directory.path(), &["man"], &[]).await, 0);
    assert!(page.contains(".TH antre 1") && page.contains("rehearse"), "{page}");
    let said = printed(&run(directory.path(), &["man", "--dir", "."], &[]).await, 0);
    assert_eq!(said, "");
    let files = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    for name in [
        "antre.1",
        "antre-serve.1",
        "antre-worker.1",
        "antre-prune.1",
        "antre-dead.1",
        "antre-dead-requeue.1",
    ] {
        assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
    for name in &names {
        let path = directory.path().join(name);
        let page = fs::read_to_string(&path).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        if let Some(complaints) = check("man", &["--warnings", "-l", &path.to_string_lossy()]).await {
            assert_eq!(complaints, "", "{name}");
        }
    }
    let page = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    let worker = page("antre-worker.1");
    assert!(worker.contains("reservation\\-ttl") && !worker.contains("order\\-timeout"), "{worker}");
    // Each setting with its environment variable, and never with the value that the variable has now.
    assert!(worker.contains("RESERVATION_TTL") && !worker.contains("ORDER_TIMEOUT"), "{worker}");
    let database = [("DATABASE_URL", "mysql://shop:secret@db/antre")];
    let all = printed(&run(directory.path(), &["man"], &database).await, 0);
    for name in ["LISTEN_ADDR", "DATABASE_URL", "AMQP_URL", "RETENTION", "RUST_LOG", "SLOW_BATCH"] {
        assert!(all.contains(name), "{name}: {all}");
    }
    assert!(!all.contains("secret"), "{all}");
    let said = complaint(&run(directory.path(), &["man", "--dir", "nowhere"], &[]).await, 1);
    assert!(said.contains("nowhere"), "{said}");
}

/// What a program says about a file on stderr; `None` where there is no such program.
async fn check(program: &str, arguments: &[&str]) -> Option<String> {
    let is_there = ["/usr/bin", "/bin"].iter().any(|place| Path::new(place).join(program).exists());
    if !is_there {
        return None;
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80").stdin(Stdio::null());
    let output = command.output().await.unwrap();
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}
