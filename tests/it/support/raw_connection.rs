//! A connection on which the test writes each byte itself.

use std::io;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{
    client::{Answer, Client},
    wait::TIMEOUT,
};

/// The bytes of a request that places an order.
pub(crate) fn order_request(product: u64, total: u64) -> String {
    let body = json!({"product_id": product, "total": total}).to_string();
    let length = body.len();
    format!(
        "POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

pub(crate) struct RawConnection(BufReader<TcpStream>);

impl RawConnection {
    pub(crate) async fn open(client: &Client) -> Self {
        Self(BufReader::new(TcpStream::connect(client.address()).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Fails when the connection is closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Closes the sending half; the answer can still be read.
    pub(crate) async fn finish_sending(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// The answer to a request, checked against the contract.
    pub(crate) async fn answer(&mut self, method: &str, path: &str) -> Answer {
        let (status, headers, body) = self.read().await.expect("the connection closed without an answer");
        Answer::checked(method, path, status, headers, body)
    }

    /// The head and body of any answer, also of one that the HTTP library gives and the contract does not name. `None`: the
    /// connection closed without one.
    pub(crate) async fn read(&mut self) -> Option<(u16, HeaderMap, Bytes)> {
        timeout(TIMEOUT, self.read_answer()).await.expect("no answer")
    }

    async fn read_answer(&mut self) -> Option<(u16, HeaderMap, Bytes)> {
        let (status, headers) = self.read_head().await?;
        let length = match headers.get("content-length") {
            Some(length) if status != 304 => length.to_str().unwrap().parse().unwrap(),
            _ => 0,
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.expect("the connection closed in the middle of an answer");
        Some((status, headers, body.into()))
    }

    /// The head of an answer that has no body. `None`: the connection closed without one.
    pub(crate) async fn read_head(&mut self) -> Option<(u16, HeaderMap)> {
        let status_line = self.line().await?;
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {status_line}"));
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await.expect("the connection closed in the middle of an answer");
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Some((status, headers))
    }

    /// `None`: the connection closed.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}
