//! `antre healthcheck`, as a container runtime runs it.

use super::{json_of, printed, tool};
use crate::{
    processes::cli::{complaint, directory, run},
    support::harness::{App, Pair},
};

#[tokio::test]
async fn a_process_that_is_ready_is_found_so() {
    let app = App::start(Pair::Embedded).await;
    let address = ["--listen-addr", app.address()];
    let said = printed(&tool(&app, &[&["healthcheck"], &address as &[&str]].concat()).await, 0);
    assert!(said.starts_with("ready (200): http://127.0.0.1:"), "{said}");
    let url = format!("http://{}/health/live", app.address());
    let answer = json_of(&tool(&app, &["healthcheck", "--url", &url, "--json"]).await, 0);
    assert_eq!((&answer["ready"], &answer["status"]), (&true.into(), &200.into()), "{answer}");
}

#[tokio::test]
async fn a_process_whose_database_is_locked_is_not_ready() {
    let app = App::start(Pair::Embedded).await;
    let hold = app.hold_decisions().await;
    let url = format!("http://{}", app.address());
    let said = printed(&tool(&app, &["healthcheck", "--url", &url]).await, 1);
    assert!(said.starts_with("not ready (503): ") && said.contains("unavailable"), "{said}");
    hold.end().await;
}

#[tokio::test]
async fn a_process_that_is_not_there_is_not_ready() {
    let directory = directory();
    let output = run(directory.path(), &["healthcheck"], &[("LISTEN_ADDR", "127.0.0.1:1")]).await;
    let said = printed(&output, 1);
    assert!(
        said.starts_with("not ready: http://127.0.0.1:1/health/ready: ") && said.contains("LISTEN_ADDR"),
        "{said}"
    );
    for url in ["https://127.0.0.1:1", "nonsense"] {
        let said = complaint(&run(directory.path(), &["healthcheck", "--url", url], &[]).await, 2);
        assert!(said.contains("--url must be like http://"), "{said}");
    }
}
