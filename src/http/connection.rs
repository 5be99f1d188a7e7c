//! The state of a connection, and so whether it waits for its client. The [`server`](super::server) needs it to close connections
//! that take too long, and to make room when there are too many.
//!
//! Nothing here has a timer. A request only updates the state; one sweep twice a second reads all of them.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};

/// What a connection waits for its client to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// To send anything at all.
    Anything,
    /// To send the rest of a request's head.
    Head,
    /// To send the next request, after an answer.
    NextRequest,
    /// To send the rest of a body.
    Body,
    /// To take its answer.
    Reading,
    /// To read why it was refused, and close.
    Closing,
}

impl Wait {
    /// How long a client may take. `body` has a shorter limit for a body, with an answer; this one counts where no handler
    /// reads the body.
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Anything | Self::Head => 10,
            Self::NextRequest => 75,
            Self::Body => 20,
            Self::Reading => 30,
            Self::Closing => 2,
        })
    }

    /// Connections of the lowest rank are closed first to make room: their clients lose least.
    pub(super) fn rank(self) -> u8 {
        match self {
            Self::Closing | Self::Anything | Self::Head => 0,
            Self::NextRequest => 1,
            Self::Body | Self::Reading => 2,
        }
    }
}

/// What the server tells a connection to do. Later ones are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Directive {
    /// Go on.
    Serve,
    /// Answer the current requests, then close.
    Finish,
    /// The head of a request is late: answer so, and close.
    Refuse,
    /// Close now.
    Close,
}

/// One connection.
pub(super) struct Connection {
    pub(super) peer: IpAddr,
    progress: Mutex<Progress>,
    directive: AtomicU8,
    task: AtomicWaker,
}

struct Progress {
    /// Requests that a handler works on.
    handled: u32,
    /// Of these, requests whose body is not complete.
    receiving: u32,
    /// Requests whose answer is not written entirely.
    answered: u32,
    /// Of these, answers that have nothing to write now: a stream of events between two events.
    quiet: u32,
    /// What it waits for while there is no request.
    idle_wait: Wait,
    /// The last change of any of these.
    since: Instant,
    /// Since when the socket takes no more bytes.
    blocked: Option<Instant>,
}

impl Progress {
    fn waiting_for(&self) -> Option<(Wait, Instant)> {
        match *self {
            Self { blocked: Some(since), .. } => Some((Wait::Reading, since)),
            Self { handled: 0, answered: 0, idle_wait, since, .. } => Some((idle_wait, since)),
            Self { handled: 0, answered, quiet, .. } if quiet == answered => None,
            // HTTP/2: the client leaves no window for the answer.
            Self { handled: 0, since, .. } => Some((Wait::Reading, since)),
            Self { handled, receiving, since, .. } if handled == receiving => Some((Wait::Body, since)),
            _ => None,
        }
    }
}

impl Connection {
    pub(super) fn new(peer: IpAddr) -> Arc<Self> {
        let progress = Progress {
            handled: 0,
            receiving: 0,
            answered: 0,
            quiet: 0,
            idle_wait: Wait::Anything,
            since: Instant::now(),
            blocked: None,
        };
        Arc::new(Self {
            peer,
            progress: Mutex::new(progress),
            directive: AtomicU8::new(Directive::Serve as u8),
            task: AtomicWaker::new(),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress();
        change(&mut progress);
        progress.since = Instant::now();
    }

    /// What it waits for, and since when. `None`: it does not wait for its client.
    pub(super) fn waiting_for(&self) -> Option<(Wait, Instant)> {
        self.progress().waiting_for()
    }

    /// What it waits for between requests, from now on.
    pub(super) fn set_idle_wait(&self, wait: Wait) {
        self.update(|progress| progress.idle_wait = wait);
    }

    /// Bytes arrived. Returns whether they begin the head of a request.
    pub(super) fn note_received(&self) -> bool {
        let mut progress = self.progress();
        let begins = matches!(progress.waiting_for(), Some((Wait::Anything | Wait::NextRequest, _)));
        if begins {
            (progress.idle_wait, progress.since) = (Wait::Head, Instant::now());
        }
        begins
    }

    /// The socket takes no more bytes, or takes them again.
    pub(super) fn set_blocked(&self, is: bool) {
        self.progress().blocked = is.then(Instant::now);
    }

    /// The head of a request has arrived; a handler works on it.
    pub(super) fn exchange(self: &Arc<Self>) -> Exchange {
        self.update(|progress| progress.handled += 1);
        Exchange { connection: self.clone(), is_answered: false, is_quiet: false }
    }

    /// What the server tells it to do. The calling task is woken when that changes.
    pub(super) fn directive(&self, task: &Context<'_>) -> Directive {
        self.task.register(task.waker());
        match self.directive.load(Ordering::Acquire) {
            0 => Directive::Serve,
            1 => Directive::Finish,
            2 => Directive::Refuse,
            _ => Directive::Close,
        }
    }

    /// Whether the current head is late.
    pub(super) fn is_head_late(&self) -> bool {
        self.directive.load(Ordering::Acquire) == Directive::Refuse as u8
    }

    /// Gives a directive. A weaker one than it has already changes nothing. Returns whether it is the first one.
    pub(super) fn direct(&self, directive: Directive) -> bool {
        let before = self.directive.fetch_max(directive as u8, Ordering::AcqRel);
        if before < directive as u8 {
            self.task.wake();
        }
        before == Directive::Serve as u8
    }
}

/// A request, from its head to the end of its answer.
pub(super) struct Exchange {
    connection: Arc<Connection>,
    is_answered: bool,
    is_quiet: bool,
}

impl Exchange {
    /// The body of the request. The connection waits for it until it is complete.
    pub(super) fn track_request<B: Body>(&self, body: B) -> TrackedBody<B, RequestBodyGuard> {
        let receiving = (!body.is_end_stream()).then(|| {
            self.connection.update(|progress| progress.receiving += 1);
            RequestBodyGuard(self.connection.clone())
        });
        TrackedBody { body, guard: receiving }
    }

    /// The body of the answer. The exchange lasts until it is written.
    pub(super) fn track_response<B: Body>(mut self, body: B) -> TrackedBody<B, Self> {
        self.is_answered = true;
        self.connection.update(|progress| {
            progress.handled -= 1;
            progress.answered += 1;
        });
        TrackedBody { body, guard: Some(self) }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let is_answered = self.is_answered;
        self.note_source(false);
        self.connection.update(|progress| {
            let count = if is_answered { &mut progress.answered } else { &mut progress.handled };
            *count -= 1;
            progress.idle_wait = Wait::NextRequest;
        });
    }
}

/// What counts a body until it ends.
pub(super) trait BodyGuard {
    /// The source of the body has nothing for now, or has something again.
    fn note_source(&mut self, is_quiet: bool);
}

impl BodyGuard for Exchange {
    fn note_source(&mut self, is_quiet: bool) {
        if self.is_quiet == is_quiet {
            return;
        }
        self.is_quiet = is_quiet;
        let mut progress = self.connection.progress();
        if is_quiet {
            progress.quiet += 1;
            return;
        }
        // It may wait for its client from now on. If it does so already, another stream does not prolong that.
        if progress.quiet == progress.answered {
            progress.since = Instant::now();
        }
        progress.quiet -= 1;
    }
}

impl BodyGuard for RequestBodyGuard {
    fn note_source(&mut self, _: bool) {}
}

/// Counts a request body until it is complete.
pub(super) struct RequestBodyGuard(Arc<Connection>);

impl Drop for RequestBodyGuard {
    fn drop(&mut self) {
        self.0.update(|progress| progress.receiving -= 1);
    }
}

/// A body that drops a guard when it ends.
pub(super) struct TrackedBody<B, T> {
    body: B,
    guard: Option<T>,
}

impl<B: Body + Unpin, T: BodyGuard + Unpin> Body for TrackedBody<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Some(guard) = &mut self.guard {
            guard.note_source(frame.is_pending());
        }
        if self.body.is_end_stream() || matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.guard = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible};

    use axum::body::Bytes;

    use super::*;

    /// A body that has what the test put there.
    struct Events(VecDeque<&'static str>);

    impl Body for Events {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(event) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(event.as_bytes()))))),
                None => Poll::Pending,
            }
        }
    }

    fn poll<T: BodyGuard + Unpin>(body: &mut TrackedBody<Events, T>) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        Pin::new(body).poll_frame(&mut context).is_ready()
    }

    #[test]
    fn a_stream_without_news_does_not_wait_for_its_client() {
        let connection = Connection::new(IpAddr::from([127, 0, 0, 1]));
        let waits = || connection.waiting_for().map(|(wait, _)| wait);
        assert_eq!(waits(), Some(Wait::Anything));
        let mut stream = connection.exchange().track_response(Events(["a", "b"].into()));
        assert_eq!(waits(), Some(Wait::Reading), "nobody has asked for its first bytes");
        assert!(poll(&mut stream) && poll(&mut stream));
        assert_eq!(waits(), Some(Wait::Reading), "nobody asks for more");
        assert!(!poll(&mut stream));
        assert_eq!(waits(), None, "there is nothing to read");

        // Another stream whose client does not read counts, however often this one has news.
        let stuck = connection.exchange().track_response(Events(["c"].into()));
        let (wait, since) = connection.waiting_for().unwrap();
        assert_eq!(wait, Wait::Reading);
        stream.body.0.push_back("d");
        assert!(poll(&mut stream) && !poll(&mut stream));
        assert_eq!(connection.waiting_for(), Some((Wait::Reading, since)));
        drop(stuck);
        assert_eq!(waits(), None);
        drop(stream);
        assert_eq!(waits(), Some(Wait::NextRequest));
    }
}
