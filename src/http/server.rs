//! Accepts connections and serves them, within limits: how many there may be, and how long a client may take.
//!
//! A client that is too slow loses only its own connection. When there are too many, those are closed first that wait for a
//! client that does nothing. So buyers connect while others hold thousands of silent connections.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::{Connection, Directive, Wait},
    site::{ConnectionService, Site},
    socket::{ClientSocket, MAX_HEAD_BYTES},
};
use crate::{
    monitor::metrics::{Closed, HttpMetrics},
    supervise::supervise,
    telemetry::LogLimiter,
};

/// How many connections may wait to be accepted: a flash sale opens with all its buyers at once.
const BACKLOG: u32 = 4096;

/// The socket buffers of one client, in bytes. Answers and requests are small; without these limits a few thousand clients that
/// do not read pin gigabytes.
const RECEIVE_BUFFER: u32 = 64 * 1024;
const SEND_BUFFER: u32 = 16 * 1024;

/// How long sent bytes may stay unacknowledged, also after the close: a client that never reads does not keep its buffers.
const USER_TIMEOUT_MS: u32 = 30_000;

/// How often connections are checked for slow clients.
const SWEEP: Duration = Duration::from_millis(500);

/// A connection that is idle for less may have a request on its way: it is not closed to make room.
const MIN_IDLE: Duration = Duration::from_secs(1);

/// Opens the address. Accepted connections inherit what is set here.
pub async fn listen(address: &str) -> io::Result<TcpListener> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in tokio::net::lookup_host(address).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?; // a restart need not wait for TIME_WAIT to end
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        // Answers are small and complete: Nagle's algorithm would only delay them.
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        #[cfg(target_os = "linux")]
        rustix::net::sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT_MS)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Serves a site.
pub struct Server {
    shared: Arc<Shared>,
    accepting: AbortOnDropHandle<()>,
    _sweeping: AbortOnDropHandle<()>,
}

struct Shared {
    site: Site,
    http: auto::Builder<TokioExecutor>,
    max_connections: usize,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    /// A connection has ended.
    ended: Notify,
    warnings: LogLimiter,
    next_id: AtomicU64,
}

/// A connection that is counted until this is dropped.
struct ConnectionGuard {
    shared: Arc<Shared>,
    id: u64,
    connection: Arc<Connection>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let left = {
            let mut connections = self.shared.connections();
            connections.remove(&self.id);
            connections.len()
        };
        self.shared.metrics().set_connections(left);
        self.shared.ended.notify_waiters();
    }
}

impl Server {
    /// Accepts connections from now on, at most `max_connections` at once: see [`Shared::admit`].
    pub fn start(listener: TcpListener, site: Site, max_connections: usize) -> Self {
        let shared = Arc::new(Shared {
            site,
            http: protocols(),
            max_connections,
            connections: Mutex::default(),
            ended: Notify::new(),
            warnings: LogLimiter::default(),
            next_id: AtomicU64::new(0),
        });
        shared.metrics().set_max_connections(max_connections);
        Self {
            accepting: AbortOnDropHandle::new(tokio::spawn({
                let shared = shared.clone();
                async move { supervise("accepting connections", || shared.accept(&listener)).await }
            })),
            _sweeping: AbortOnDropHandle::new(tokio::spawn({
                let shared = shared.clone();
                async move { supervise("time limits of connections", || shared.sweep()).await }
            })),
            shared,
        }
    }

    /// Accepts no more connections. Lets each one answer its current requests, and closes the idle ones; closes all at
    /// `deadline`.
    pub async fn finish(self, deadline: tokio::time::Instant) {
        self.accepting.abort();
        let _ = self.accepting.await; // now the address is free
        self.shared.direct_all(Directive::Finish, |_| true);
        // A client may finish a request that it has begun, within a second.
        if timeout(Duration::from_secs(1), self.shared.all_ended()).await.is_err() {
            self.shared.direct_all(Directive::Close, |wait| {
                !matches!(wait, None | Some(Wait::Body | Wait::Reading))
            });
        }
        if timeout_at(deadline, self.shared.all_ended()).await.is_err() {
            let left = self.shared.connections().len();
            tracing::warn!(connections = left, "some requests did not finish in time");
            self.shared.direct_all(Directive::Close, |_| true);
        }
    }
}

impl ConnectionGuard {
    async fn serve(self, socket: TcpStream) {
        let Shared { site, http, .. } = &*self.shared;
        let connection = &self.connection;
        let io = TokioIo::new(ClientSocket::new(socket, connection.clone()));
        let service = ConnectionService { site: site.clone(), connection: connection.clone() };
        let mut serving = pin!(http.serve_connection(io, service));
        let mut is_finishing = false;
        let ended = poll_fn(|context| {
            match connection.directive(context) {
                Directive::Close => return Poll::Ready(Ok(())),
                Directive::Finish if !is_finishing => {
                    is_finishing = true;
                    serving.as_mut().graceful_shutdown();
                }
                Directive::Serve | Directive::Refuse | Directive::Finish => {}
            }
            serving.as_mut().poll(context)
        });
        if let Err(error) = ended.await {
            tracing::debug!(peer = %connection.peer, error, "a connection ended early");
        }
    }
}

/// HTTP/1.1 and, for clients that begin with it, HTTP/2. The limits that are left at their defaults are there as well:
/// 100 headers in a head, 20 resets that were not looked at.
fn protocols() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().max_buf_size(MAX_HEAD_BYTES).header_read_timeout(None); // `sweep` does that, without a timer for each request
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .initial_stream_window_size(32 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(32 * 1024)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    http
}

impl Shared {
    fn metrics(&self) -> &HttpMetrics {
        &self.site.routes.metrics
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => self.admit(socket, peer.ip()).await,
                Err(error) => self.accept_failed(&error).await,
            }
        }
    }

    /// Serves one more connection, once there is room for it. Until then, others wait in the backlog of the system: buyers
    /// connect a little later, and are not refused.
    async fn admit(self: &Arc<Self>, socket: TcpStream, peer: IpAddr) {
        while self.connections().len() >= self.max_connections {
            let ended = self.ended.notified();
            let closed = self.make_room();
            if self.warnings.due().is_some() {
                tracing::warn!(
                    limit = self.max_connections,
                    closed,
                    "the maximum number of connections is open (MAX_CONNECTIONS): those that wait for their clients longest are \
                     closed, new ones wait"
                );
            }
            // If none ends, the next attempt may find some that are idle long enough.
            let _ = timeout(Duration::from_millis(50), ended).await;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(peer);
        let open = {
            let mut connections = self.connections();
            connections.insert(id, connection.clone());
            connections.len()
        };
        self.metrics().set_connections(open);
        tokio::spawn(ConnectionGuard { shared: self.clone(), id, connection }.serve(socket));
    }

    /// Waits until no connection is left.
    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.connections().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn direct_all(&self, directive: Directive, which: impl Fn(Option<Wait>) -> bool) {
        for connection in self.connections().values() {
            if which(connection.waiting_for().map(|(wait, _)| wait)) {
                connection.direct(directive);
            }
        }
    }

    /// Closes connections whose clients take too long.
    async fn sweep(&self) {
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut closed = 0;
            for connection in self.connections().values() {
                let Some((wait, since)) = connection.waiting_for() else { continue };
                let late = since.elapsed().checked_sub(wait.limit());
                let Some(late) = late else { continue };
                closed += usize::from(connection.direct(match wait {
                    // A connection that has not closed by now does not poll.
                    _ if late > 2 * SWEEP => Directive::Close,
                    Wait::Head => Directive::Refuse,
                    Wait::NextRequest => Directive::Finish,
                    Wait::Anything | Wait::Body | Wait::Reading | Wait::Closing => Directive::Close,
                }));
            }
            self.metrics().closed(Closed::Slow, closed);
        }
    }

    /// Closes the connections whose clients lose least, a few at once; returns how many.
    fn make_room(&self) -> usize {
        let connections = self.connections();
        let mut idle: Vec<_> = connections
            .values()
            .filter_map(|connection| {
                let (wait, since) = connection.waiting_for()?;
                (since.elapsed() >= MIN_IDLE).then_some((wait.rank(), since, connection))
            })
            .collect();
        idle.sort_unstable_by_key(|(rank, since, _)| (*rank, *since));
        let least = idle.first().map(|(rank, ..)| *rank);
        let max = self.max_connections / 32 + 1;
        let chosen = idle.iter().take_while(|(rank, ..)| Some(*rank) == least).take(max);
        let closed = chosen.filter(|(.., connection)| connection.direct(Directive::Close)).count();
        self.metrics().closed(Closed::Room, closed);
        closed
    }

    /// After a failed accept: neither stops accepting, nor tries again without a pause.
    async fn accept_failed(&self, error: &io::Error) {
        let errno = Errno::from_io_error(error);
        if matches!(errno, Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR | Errno::PROTO)) {
            return; // the client went away
        }
        self.metrics().accept_failed();
        let closed = match errno {
            Some(Errno::MFILE | Errno::NFILE) => self.make_room(),
            _ => 0,
        };
        if self.warnings.due().is_some() {
            tracing::warn!(
                %error,
                connections = self.connections().len(),
                closed,
                "cannot accept a connection; if the limit of open files is reached, raise it (ulimit -n) or lower MAX_CONNECTIONS"
            );
        }
        sleep(Duration::from_millis(100)).await;
    }
}
