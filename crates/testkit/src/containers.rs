//! Containers, by Docker's command line. Each is removed when this process ends.

use std::{
    env,
    ffi::OsStr,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, process::Command, sync::Mutex, time::sleep};
use url::Url;

use crate::{error::Result, reaper};

/// Builds the local images where no registry can be reached.
const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/build-test-images.sh");

/// The time in which a container must take connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(90);

/// A container to start.
pub struct Request<'a> {
    pub name: String,
    /// Taken when it is built.
    pub local_image: &'a str,
    /// Otherwise taken from a registry. Where there is none, the local image is built.
    pub official_image: &'a str,
    /// Of the host, and of the container.
    pub ports: &'a [(u16, u16)],
    pub environment: &'a [(&'a str, &'a str)],
    /// Arguments of the image's entry point.
    pub arguments: &'a [&'a str],
}

impl Request<'_> {
    pub async fn start(self) -> Result<Container> {
        // The task is never cancelled: it is no error that the container is gone already.
        let remove = r#"docker rm -f -v "$0"; ! docker container inspect "$0""#;
        reaper::at_end(&["sh", "-c", remove, &self.name])?;
        if !is_built(self.local_image).await {
            match self.run(self.official_image).await {
                Ok(()) => return Ok(Container { name: self.name }),
                Err(error) => eprintln!("no {} ({error}); running {BUILD_SCRIPT}", self.official_image),
            }
            build(self.local_image).await?;
        }
        self.run(self.local_image).await?;
        Ok(Container { name: self.name })
    }

    async fn run(&self, image: &str) -> Result<()> {
        let ports = self.ports.iter().map(|(host, container)| format!("--publish={host}:{container}"));
        let environment = self.environment.iter().map(|(name, value)| format!("--env={name}={value}"));
        let options: Vec<_> = ports.chain(environment).collect();
        let mut arguments = vec!["run", "--detach", "--name", &self.name];
        arguments.extend(options.iter().map(String::as_str));
        arguments.push(image);
        arguments.extend(self.arguments);
        docker(&arguments).await.map(drop)
    }
}

/// A container that this process has started. It is removed when the process ends, not when this is dropped.
#[derive(Clone, Debug)]
pub struct Container {
    name: String,
}

impl Container {
    /// Stops every process in it where it is: connections stay open, and nothing answers.
    pub async fn pause(&self) -> Result<()> {
        docker(&["pause", &self.name]).await.map(drop)
    }

    pub async fn unpause(&self) -> Result<()> {
        docker(&["unpause", &self.name]).await.map(drop)
    }

    /// SIGKILL; returns when it has ended.
    pub async fn kill(&self) -> Result<()> {
        docker(&["stop", "--time", "0", &self.name]).await.map(drop)
    }

    /// Starts it again with its data and its published ports. A running container stays as it is.
    pub async fn start(&self) -> Result<()> {
        docker(&["start", &self.name]).await.map(drop)
    }

    /// Runs a command in it; returns its standard output.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        docker(&[&["exec", &self.name], command].concat()).await
    }

    /// The process id of its first process, on this machine.
    pub async fn pid(&self) -> Option<u32> {
        docker(&["inspect", "--format", "{{.State.Pid}}", &self.name]).await.ok()?.parse().ok()
    }

    /// Its own address, where this machine reaches it. A published port leads through Docker's proxy, a process that
    /// takes part of the cores. `None`: only the published port can be reached.
    pub async fn own_address(&self, port: u16) -> Result<Option<SocketAddr>> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let addresses = docker(&["inspect", "--format", format, &self.name]).await?;
        let Some(ip) = addresses.split_whitespace().next() else { return Ok(None) };
        let address = SocketAddr::new(ip.parse()?, port);
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Ok(Some(address)),
                // The container answers, its server does not listen yet.
                Ok(Err(error))
                    if error.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline =>
                {
                    sleep(Duration::from_millis(100)).await;
                }
                _ => return Ok(None),
            }
        }
    }
}

/// The machine whose ports the daemon publishes.
pub(crate) fn host() -> String {
    let daemon = env::var("DOCKER_HOST").ok().and_then(|daemon| Url::parse(&daemon).ok());
    let host = daemon.as_ref().and_then(Url::host_str).filter(|host| !host.is_empty());
    host.unwrap_or("127.0.0.1").to_owned()
}

/// A port of this machine that is free now. Docker would choose one too, but another one after every restart.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

async fn is_built(image: &str) -> bool {
    docker(&["image", "inspect", image]).await.is_ok()
}

/// One run of the script builds all images, and each later one waits for it.
async fn build(image: &str) -> Result<()> {
    static RUNNING: Mutex<()> = Mutex::const_new(());
    let _running = RUNNING.lock().await;
    if !is_built(image).await {
        run(BUILD_SCRIPT, &[] as &[&str]).await?;
    }
    Ok(())
}

async fn docker(arguments: &[&str]) -> Result<String> {
    run("docker", arguments).await
}

/// Returns the standard output of a command. An error holds its standard error.
async fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let described = || {
        let first = arguments.first().map(|argument| argument.as_ref().to_string_lossy().into_owned());
        format!("{name} {}", first.unwrap_or_default())
    };
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await;
    let Output { status, stdout, stderr } = output.map_err(|error| format!("{}: {error}", described()))?;
    if !status.success() {
        return Err(format!("{}: {}", described(), String::from_utf8_lossy(&stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
}
