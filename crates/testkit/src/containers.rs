//! Containers, by testcontainers. What is here chooses the image, and what that library lacks: containers are removed
//! even when this process is killed.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::{Duration, Instant},
};

use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt, TestcontainersError,
    bollard::models::ContainerInspectResponse,
    core::{CmdWaitFor, ExecCommand, IntoContainerPort, client::docker_client_instance},
    runners::AsyncRunner,
};
use tokio::{net::TcpStream, process::Command, sync::Mutex, time::sleep};

use crate::{error::Result, reaper};

/// Builds the local images where no registry can be reached.
const BUILD_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/build-test-images.sh");

/// The time in which a container must take connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(90);

/// A container to start.
pub struct Request<'a> {
    pub name: String,
    /// `name:tag`. Taken when it is built.
    pub local_image: &'a str,
    /// `name:tag`. Otherwise taken from a registry. Where there is none, the local image is built.
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
            match self.with_image(self.official_image).start().await {
                Ok(container) => return Ok(Container(container)),
                Err(error) => eprintln!("no {} ({error}); running {BUILD_SCRIPT}", self.official_image),
            }
            build(self.local_image).await?;
        }
        Ok(Container(self.with_image(self.local_image).start().await?))
    }

    /// `image`: one of the two.
    fn with_image(&self, image: &str) -> ContainerRequest<GenericImage> {
        let (image, tag) = image.split_once(':').unwrap_or((image, "latest"));
        let mut request = GenericImage::new(image, tag)
            .with_container_name(&self.name)
            .with_cmd(self.arguments.iter().copied());
        for &(host, container) in self.ports {
            request = request.with_mapped_port(host, container.tcp());
        }
        for &(name, value) in self.environment {
            request = request.with_env_var(name, value);
        }
        request
    }
}

/// A container that this process has started. It is removed when this is dropped, which must happen in a runtime, or when
/// the process ends.
#[derive(Debug)]
pub struct Container(ContainerAsync<GenericImage>);

impl Container {
    /// Stops every process in it where it is: connections stay open, and nothing answers.
    pub async fn pause(&self) -> Result<()> {
        Ok(self.0.pause().await?)
    }

    pub async fn unpause(&self) -> Result<()> {
        Ok(self.0.unpause().await?)
    }

    /// SIGKILL; returns when it has ended.
    pub async fn kill(&self) -> Result<()> {
        Ok(self.0.stop_with_timeout(Some(0)).await?)
    }

    /// Starts it again with its data and its published ports. A running container stays as it is.
    pub async fn start(&self) -> Result<()> {
        Ok(self.0.start().await?)
    }

    /// Runs a command in it. An error is any exit status but 0, and holds the standard error.
    pub async fn exec(&self, command: &[&str]) -> Result<()> {
        let waiting = ExecCommand::new(command.iter().copied()).with_cmd_ready_condition(CmdWaitFor::exit());
        let mut ended = self.0.exec(waiting).await?;
        let status = ended.exit_code().await?.ok_or("no exit status")?;
        if status == 0 {
            return Ok(());
        }
        let error = ended.stderr_to_vec().await?;
        let (command, error) = (command.join(" "), String::from_utf8_lossy(&error));
        Err(format!("{command} ended with {status}: {}", error.trim()).into())
    }

    /// The process id of its first process, on this machine.
    pub async fn pid(&self) -> Option<u32> {
        self.inspect().await.ok()?.state?.pid?.try_into().ok()
    }

    /// The machine that publishes its ports: a name, or an address as a URL holds it.
    pub async fn host(&self) -> Result<String> {
        Ok(self.0.get_host().await?.to_string())
    }

    /// Its own address, where this machine reaches it. A published port leads through Docker's proxy, a process that
    /// takes part of the cores. `None`: only the published port can be reached.
    pub async fn own_address(&self, port: u16) -> Result<Option<SocketAddr>> {
        let networks = self.inspect().await?.network_settings.and_then(|settings| settings.networks);
        let mut addresses = networks.into_iter().flatten().filter_map(|(_, network)| network.ip_address);
        let Some(ip) = addresses.find(|address| !address.is_empty()) else { return Ok(None) };
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

    async fn inspect(&self) -> Result<ContainerInspectResponse> {
        let docker = docker_client_instance().await.map_err(TestcontainersError::from)?;
        Ok(docker.inspect_container(self.0.id(), None).await?)
    }
}

/// A port of this machine that is free now. Docker would choose one too, but another one after every restart.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

async fn is_built(image: &str) -> bool {
    match docker_client_instance().await {
        Ok(docker) => docker.inspect_image(image).await.is_ok(),
        Err(_) => false,
    }
}

/// One run of the script builds all images, and each later one waits for it.
async fn build(image: &str) -> Result<()> {
    static RUNNING: Mutex<()> = Mutex::const_new(());
    let _running = RUNNING.lock().await;
    if is_built(image).await {
        return Ok(());
    }
    let output = Command::new(BUILD_SCRIPT).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| format!("{BUILD_SCRIPT}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{BUILD_SCRIPT}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(())
}
