//! An HTTP/1.1 client with a bounded number of connections, kept alive and shared by all buyers.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request,
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::target::Target;

/// How long an address may take to accept a connection.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes: an order has 300.
const MAX_ANSWER: usize = 256 * 1024;

/// A request of JSON, or without a body.
#[derive(Clone, Debug)]
pub struct Call {
    /// GET, POST or PUT.
    pub method: Method,
    /// Below the target, for example `/api/orders`.
    pub path: String,
    /// JSON; empty for none.
    pub body: Bytes,
    /// Headers in addition to those that each request has.
    pub headers: HeaderMap,
}

impl Call {
    /// A request without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Bytes::new(), headers: HeaderMap::new() }
    }

    /// With this JSON as its body.
    #[must_use]
    pub fn json(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// All connections were busy until the deadline: the server has not seen the request.
    #[error("all connections were busy")]
    NoConnection,
    /// No connection could be made: the server has not seen the request.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke: nobody knows whether the server acted.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// No whole answer by the deadline: nobody knows whether the server acted.
    #[error("no answer in time")]
    Late,
    /// An answer that is not HTTP, or too large.
    #[error("an answer that cannot be read: {0}")]
    Unreadable(String),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name of the host has no address.
    #[error("{0}")]
    Resolve(io::Error),
    /// No address accepts connections.
    #[error("{0}")]
    Connect(io::Error),
    /// The certificates of this machine cannot be read.
    #[error("{0}")]
    Certificates(String),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    host: HeaderValue,
    addresses: Vec<SocketAddr>,
    next_address: AtomicUsize,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    free: Arc<Semaphore>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    broken_when_idle: AtomicU64,
}

impl Client {
    /// Resolves the target, and keeps the addresses that accept a connection. `connections` is how many there may be at once;
    /// each is made when it is first needed.
    pub async fn new(target: Target, connections: usize) -> Result<Self, ClientError> {
        let resolved = timeout(DIAL_PATIENCE, tokio::net::lookup_host((target.host(), target.port())))
            .await
            .map_err(|_| ClientError::Resolve(io::Error::other("the name service does not answer")))?
            .map_err(ClientError::Resolve)?;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        let mut addresses = Vec::new();
        for address in resolved {
            match dial(address).await {
                Ok(_) => addresses.push(address),
                Err(error) => failure = error,
            }
        }
        if addresses.is_empty() {
            return Err(ClientError::Connect(failure));
        }
        let tls = if target.is_https() { Some(tls(&target)?) } else { None };
        let host = HeaderValue::from_str(target.authority())
            .map_err(|error| ClientError::Resolve(io::Error::other(error)))?;
        Ok(Self {
            shared: Arc::new(Shared {
                target,
                host,
                addresses,
                next_address: AtomicUsize::new(0),
                tls,
                free: Arc::new(Semaphore::new(connections)),
                idle: Mutex::default(),
                broken_when_idle: AtomicU64::new(0),
            }),
        })
    }

    /// Where requests go.
    pub fn target(&self) -> &Target {
        &self.shared.target
    }

    /// How often a connection that was kept alive turned out to be closed, and the request was sent again on another one.
    pub fn broken_when_idle(&self) -> u64 {
        self.shared.broken_when_idle.load(Ordering::Relaxed)
    }

    /// Sends a request, and returns the whole answer. Waits its turn for a connection; all of it ends at the deadline.
    ///
    /// A request whose connection breaks after it was idle is sent once more: the server may just have closed it (RFC 9112,
    /// 9.3.1). So calls must be safe to repeat: orders with a key, payments and cancellations are.
    pub async fn send(&self, call: &Call, deadline: Instant) -> Result<Answer, CallError> {
        let turn = timeout_at(deadline, self.shared.free.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(CallError::NoConnection) };
        let idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut broken = None;
        if let Some(connection) = idle {
            match self.exchange(connection, call, deadline).await {
                Err(CallError::Broken(error)) => broken = Some(error),
                result => return self.finish(turn, result),
            }
            self.shared.broken_when_idle.fetch_add(1, Ordering::Relaxed);
        }
        let connection = match timeout_at(deadline, self.shared.connect()).await {
            Ok(Ok(connection)) => connection,
            failed => {
                let error = match failed {
                    Ok(Err(error)) => error,
                    _ => io::ErrorKind::TimedOut.into(),
                };
                // The first attempt may have reached the server.
                return Err(broken.map_or(CallError::Connect(error), CallError::Broken));
            }
        };
        let result = self.exchange(connection, call, deadline).await;
        self.finish(turn, result)
    }

    fn finish(
        &self,
        turn: OwnedSemaphorePermit,
        result: Result<(Answer, SendRequest<Full<Bytes>>), CallError>,
    ) -> Result<Answer, CallError> {
        let (answer, connection) = result?;
        if !connection.is_closed() {
            self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        drop(turn); // after the connection is back: the next one finds it
        Ok(answer)
    }

    async fn exchange(
        &self,
        mut connection: SendRequest<Full<Bytes>>,
        call: &Call,
        deadline: Instant,
    ) -> Result<(Answer, SendRequest<Full<Bytes>>), CallError> {
        let exchange = async {
            connection.ready().await.map_err(|error| classified(&error))?;
            let response =
                connection.send_request(self.request(call)?).await.map_err(|error| classified(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    CallError::Unreadable(format!("it has more than {MAX_ANSWER} bytes"))
                } else {
                    CallError::Broken(error.to_string())
                }
            })?;
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
        };
        let answer = timeout_at(deadline, exchange).await.map_err(|_| CallError::Late)??;
        Ok((answer, connection))
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(self.shared.target.path(&call.path))
            .body(Full::new(call.body.clone()))
            .map_err(|error| CallError::Broken(error.to_string()))?;
        let headers = request.headers_mut();
        headers.extend(call.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(HOST, self.shared.host.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("antre/", env!("CARGO_PKG_VERSION"))));
        if !call.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(request)
    }
}

impl Shared {
    /// Addresses take turns, as the instances behind a name do.
    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let first = self.next_address.fetch_add(1, Ordering::Relaxed);
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for turn in 0..self.addresses.len() {
            match dial(self.addresses[(first + turn) % self.addresses.len()]).await {
                Ok(stream) => {
                    return match &self.tls {
                        None => handshake(stream).await,
                        Some((connector, name)) => {
                            handshake(connector.connect(name.clone(), stream).await?).await
                        }
                    };
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(DIAL_PATIENCE, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its errors reach the sender, too.
    tokio::spawn(connection);
    Ok(sender)
}

fn tls(target: &Target) -> Result<(TlsConnector, ServerName<'static>), ClientError> {
    let wrong = |error: &dyn std::fmt::Display| ClientError::Certificates(error.to_string());
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(wrong(&why));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(target.host().to_owned()).map_err(|error| wrong(&error))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn classified(error: &hyper::Error) -> CallError {
    if error.is_parse() {
        CallError::Unreadable(error.to_string())
    } else {
        CallError::Broken(error.to_string())
    }
}
