//! `Dockerfile` and `docker-compose.yml`: the image alone, then all services with four workers, one of which is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::harness::{Client, eventually};

const PROJECT: &str = "antre-try";

/// More than there are workers, so that each worker gets some by chance.
const PRODUCTS: usize = 20;

/// Not the defaults of `docker-compose.yml`, so that a place that does not read them shows.
const PASSWORDS: [(&str, &str); 3] = [
    ("MYSQL_ROOT_PASSWORD", "try-root"),
    ("MYSQL_PASSWORD", "try-mysql"),
    ("RABBITMQ_PASSWORD", "try-rabbitmq"),
];

#[tokio::test]
#[ignore = "builds the image from source, 10 minutes or more, needs docker-compose and Rust from rustup: \
            cargo test --test it compose -- --ignored"]
async fn compose_runs_four_workers_and_survives_the_death_of_one() {
    // `ANTRE_IMAGE` names an image that is built already.
    let built = std::env::var("ANTRE_IMAGE").ok();
    run(Command::new(project().join("scripts/build-rust-image.sh")));
    let compose = Compose::new(built.as_deref().unwrap_or(PROJECT));
    if built.is_none() {
        compose.run(&["build", "--build-arg", "http_proxy", "--build-arg", "https_proxy", "api"]);
    }
    image_alone_takes_orders(&compose.image).await;

    compose.run(&["up", "-d", "--no-build"]);
    compose.healthy(4).await;
    let client = Client::new(compose.address("api", 3000));
    let mut products = Vec::new();
    for product in 1..=PRODUCTS {
        products.push(client.create_stocked(&format!("Topi {product}"), 20).await);
    }
    all_can_be_ordered(&client, &products).await;

    compose.run(&["up", "-d", "--no-build", "--scale", "worker=4"]);
    compose.healthy(7).await;
    let lanes = compose.lanes_served_by(4).await;
    let workers: BTreeSet<_> = lanes.values().collect();
    assert!(workers.len() > 1, "one worker serves all lanes, although there are four: {lanes:?}");
    all_can_be_ordered(&client, &products).await;

    let killed = lanes.values().next().unwrap();
    docker(&["kill", &compose.container_at(killed)]); // Docker does not restart what a person stops
    let orphans: Vec<_> = lanes.iter().filter(|(_, worker)| *worker == killed).map(|(id, _)| *id).collect();
    all_can_be_ordered(&client, &orphans).await;
    let lanes = compose.lanes_served_by(3).await;
    assert!(!lanes.values().any(|worker| worker == killed), "the killed worker still has lanes: {lanes:?}");
    all_can_be_ordered(&client, &orphans).await;
}

/// With no settings it runs in the embedded mode, and is reachable from outside of its container.
async fn image_alone_takes_orders(image: &str) {
    struct Container(String);
    impl Drop for Container {
        fn drop(&mut self) {
            docker(&["rm", "--force", "--volumes", &self.0]);
        }
    }
    let container = Container(docker(&["run", "--detach", "--publish", "127.0.0.1::3000", image]));
    let client = Client::new(format!("http://{}", docker(&["port", &container.0, "3000"])));
    client.ready().await;
    let product = client.create_stocked("Kaos Polos", 1).await;
    assert_eq!(client.order(product, 1).await.status, 201);
}

async fn all_can_be_ordered(client: &Client, products: &[u64]) {
    for product in products {
        let answer = client.order(*product, 1).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

/// The services under a project name of this test. Dropping it removes them and their volumes.
struct Compose {
    image: String,
    program: Vec<&'static str>,
    /// Without a `.env` of a developer.
    directory: TempDir,
}

impl Compose {
    fn new(image: &str) -> Self {
        let plugin = Command::new("docker").args(["compose", "version"]).output().unwrap().status.success();
        let program = if plugin { vec!["docker", "compose"] } else { vec!["docker-compose"] };
        let compose = Self { image: image.to_owned(), program, directory: tempfile::tempdir().unwrap() };
        std::fs::write(compose.directory.path().join("env"), "").unwrap();
        compose.run(&["down", "--volumes", "--remove-orphans"]); // of a test that was killed
        compose
    }

    fn run(&self, arguments: &[&str]) -> String {
        run(self.command(arguments))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program[0]);
        command
            .args(&self.program[1..])
            .args(["--project-name", PROJECT, "--file"])
            .arg(project().join("docker-compose.yml"))
            .arg("--env-file")
            .arg(self.directory.path().join("env"))
            .args(arguments)
            .envs(PASSWORDS)
            .envs([
                ("ANTRE_IMAGE", &*self.image),
                ("RUST_IMAGE", "antre-test/rust:debian"),
                ("RUNTIME_IMAGE", "antre-test/base:debian"),
                ("MYSQL_IMAGE", "antre-test/mysql:debian"),
                ("RABBITMQ_IMAGE", "antre-test/rabbitmq:debian"),
                // The daemon's bridge does not always lead to the package mirrors.
                ("BUILD_NETWORK", "host"),
                // The builder inside of the daemon: any other could not see local base images.
                ("BUILDX_BUILDER", "default"),
                // Docker picks a free port.
                ("API_PORT", "127.0.0.1:0"),
                ("RABBITMQ_UI_PORT", "127.0.0.1:0"),
            ]);
        for name in [
            "LANES",
            "QUEUE_PREFIX",
            "ORDER_TIMEOUT",
            "RESERVATION_TTL",
            "MAX_HOLD",
            "LATE_PAYMENT",
            "EVENTS",
            "RUST_LOG",
            "LOG_FORMAT",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn address(&self, service: &str, port: u16) -> String {
        format!("http://{}", self.run(&["port", service, &port.to_string()]))
    }

    fn containers(&self, options: &[&str]) -> Vec<String> {
        let label = format!("label=com.docker.compose.project={PROJECT}");
        let found = docker(&[&["ps", "--quiet", "--filter", &label], options].concat());
        found.lines().map(str::to_owned).collect()
    }

    async fn healthy(&self, count: usize) {
        eventually("not all services become healthy", async || {
            (self.containers(&["--filter", "health=healthy"]).len() == count).then_some(())
        })
        .await;
    }

    fn container_at(&self, address: &str) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let at = |container: &String| docker(&["inspect", "--format", format, container]) == address;
        self.containers(&[]).into_iter().find(at).unwrap()
    }

    /// By product, the address of the worker that serves its lane, once so many workers consume each lane and one of them
    /// is active.
    async fn lanes_served_by(&self, workers: usize) -> BTreeMap<u64, String> {
        let url = format!("{}/api/consumers", self.address("rabbitmq", 15672));
        let http = reqwest::Client::new();
        eventually("not each lane is consumed by all workers and served by one", async || {
            let request = http.get(&url).basic_auth("antre", Some("try-rabbitmq"));
            let consumers: Vec<Value> = request.send().await.ok()?.json().await.ok()?;
            let mut lanes: BTreeMap<u64, (usize, Vec<String>)> = BTreeMap::new();
            for consumer in &consumers {
                let queue = consumer["queue"]["name"].as_str().unwrap();
                let Some(product) = queue.strip_prefix("orders.product.") else { continue };
                let (count, active) = lanes.entry(product.parse().unwrap()).or_default();
                *count += 1;
                if consumer["active"] == true {
                    active.push(consumer["channel_details"]["peer_host"].as_str()?.to_owned());
                }
            }
            let served = lanes.values().all(|(count, active)| *count == workers && active.len() == 1);
            (lanes.len() == PRODUCTS && served).then(|| {
                lanes.into_iter().map(|(product, (_, mut active))| (product, active.remove(0))).collect()
            })
        })
        .await
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.command(&["logs", "--no-color", "--tail", "100"]).output().unwrap();
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        self.run(&["down", "--volumes", "--remove-orphans"]);
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn docker(arguments: &[&str]) -> String {
    let mut command = Command::new("docker");
    command.args(arguments);
    run(command)
}

/// Returns the standard output of a command that must succeed.
fn run(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}{error}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
