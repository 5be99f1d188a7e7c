//! The contract, tested from outside by schemathesis, which knows nothing of antre.

use std::path::Path;

use tokio::process::Command;

use crate::support::harness::{App, MAX_TOTAL, Pair};

#[tokio::test]
#[ignore = "installs schemathesis, needs Python and a package index: cargo test --test it schemathesis -- --ignored"]
async fn schemathesis_finds_no_breach_of_the_contract() {
    let app = App::start(Pair::Embedded).await;
    assert_eq!(app.create_stocked("takes any order", MAX_TOTAL).await, 1);
    assert_eq!(app.create_stocked("takes a single piece", 1).await, 2);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/schemathesis.sh");
    let status = Command::new(script).arg(format!("http://{}", app.address())).status().await.unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(app.get("/health/ready").await.status, 200);
}
