//! `antre healthcheck`: asks a running antre whether it is ready. For containers that have neither a shell nor curl.

use std::{io, time::Duration};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use url::Url;

use super::{
    outcome::{Finding, ToolError},
    output,
};
use crate::settings::{Settings, SettingsError, tools::HealthCheck};

/// How long the answer may take: more than readiness takes, and less than the limit of most health checks.
const PATIENCE: Duration = Duration::from_secs(4);
/// How much of an answer is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// What the process answered, or why it did not.
#[derive(Debug, Serialize)]
struct Answer {
    url: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    message: String,
}

pub(super) async fn run(
    settings: &Settings,
    HealthCheck { url, output }: HealthCheck,
) -> Result<Finding, ToolError> {
    let url = url.unwrap_or_else(|| url_of(settings.http.listen_addr_or_default()));
    let url = parse(&url)?;
    let (status, message) = match timeout(PATIENCE, ask(&url)).await {
        Ok(Ok((status, body))) => (Some(status), body),
        Ok(Err(error)) => {
            (None, format!("no answer: {error}. Check that it runs and listens there (LISTEN_ADDR)"))
        }
        Err(_) => (None, format!("no answer within {PATIENCE:?}")),
    };
    let answer = Answer { url: url.to_string(), ready: status == Some(200), status, message };
    if output.json {
        output::json(&answer)?;
    } else {
        let state = if answer.ready { "ready" } else { "not ready" };
        let status = status.map_or(String::new(), |status| format!(" ({status})"));
        output::line(format_args!("{state}{status}: {}: {}", answer.url, answer.message))?;
    }
    Ok(if answer.ready { Finding::None } else { Finding::Some })
}

/// Who listens on all addresses is asked on this machine's own.
fn url_of(listen_addr: &str) -> String {
    let (host, port) = listen_addr.rsplit_once(':').unwrap_or((listen_addr, "3000"));
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    format!("http://{host}:{port}/health/ready")
}

fn parse(text: &str) -> Result<Url, SettingsError> {
    let wrong =
        |why: &str| SettingsError(format!("--url must be like http://127.0.0.1:3000/health/ready: {why}"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    match url.scheme() {
        "http" if url.path() == "/" => url.join("/health/ready").map_err(|error| wrong(&error.to_string())),
        "http" => Ok(url),
        _ => Err(wrong(
            "it asks over http:// only, because antre does not encrypt; behind a gateway, ask antre itself",
        )),
    }
}

/// Status and body.
async fn ask(url: &Url) -> io::Result<(u16, String)> {
    let host = url.host_str().unwrap_or_default();
    let address = (host.trim_start_matches('[').trim_end_matches(']'), url.port().unwrap_or(80));
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nuser-agent: antre-healthcheck\r\n\r\n",
        url.path()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    status_and_body(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP"))
}

fn status_and_body(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_follows_from_where_it_listens() {
        assert_eq!(url_of("127.0.0.1:3000"), "http://127.0.0.1:3000/health/ready");
        assert_eq!(url_of("0.0.0.0:80"), "http://127.0.0.1:80/health/ready");
        assert_eq!(url_of("[::]:3000"), "http://[::1]:3000/health/ready");
        assert_eq!(url_of("shop.example:3000"), "http://shop.example:3000/health/ready");
    }

    #[test]
    fn a_url_without_a_path_means_readiness() {
        assert_eq!(parse("http://api:3000").unwrap().as_str(), "http://api:3000/health/ready");
        assert_eq!(parse("http://api:3000/health/live").unwrap().as_str(), "http://api:3000/health/live");
        for wrong in ["https://api:3000", "api:3000", "", "http://"] {
            assert!(parse(wrong).unwrap_err().0.starts_with("--url must be"), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_read_as_http() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}\n";
        assert_eq!(status_and_body(answer), Some((503, "{}".to_owned())));
        for other in ["", "SSH-2.0-OpenSSH", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(status_and_body(other), None, "{other}");
        }
    }
}
