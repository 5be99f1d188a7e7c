//! The pages that browsers show now. Each is rendered once a second, however many browsers show it, and only while one does.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::body::Bytes;
use futures_util::stream::{Stream, unfold};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    piece::{Piece, changes, whole},
    view::View,
};
use crate::{clock::Clock, monitor::board::Board};

/// How many browsers may watch one process. Each costs a few kilobytes a second, and a different list of 5,000 products a few
/// milliseconds of one core.
const MAX_VIEWERS: usize = 100;

/// The dashboard of one API.
#[derive(Clone)]
pub struct Dashboard(Arc<Inner>);

struct Inner {
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    viewers: Arc<Semaphore>,
    /// The latest frame of each page that somebody watches.
    frames: Mutex<HashMap<View, watch::Sender<Frame>>>,
}

/// A page as it is this second.
#[derive(Clone, Default)]
struct Frame {
    number: u64,
    whole: Bytes,
    /// Since the frame before.
    changes: Bytes,
}

/// More browsers watch than a process has room for.
pub(super) struct TooManyViewers;

impl Dashboard {
    /// `stop`: ends all streams, which would otherwise last as long as their browsers.
    pub fn new(board: Arc<Board>, clock: Arc<dyn Clock>, stop: CancellationToken) -> Self {
        let viewers = Arc::new(Semaphore::new(MAX_VIEWERS));
        Self(Arc::new(Inner { board, clock, stop, viewers, frames: Mutex::default() }))
    }

    pub(super) fn board(&self) -> &Board {
        &self.0.board
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    /// The events of a page, from now on: first all of it, then what changes.
    pub(super) fn watch(
        &self,
        view: View,
    ) -> Result<impl Stream<Item = Result<Bytes, Infallible>> + Send + use<>, TooManyViewers> {
        let permit = self.0.viewers.clone().try_acquire_owned().map_err(|_| TooManyViewers)?;
        let viewer =
            Viewer { frames: self.subscribe(view), seen: None, stop: self.0.stop.clone(), _permit: permit };
        Ok(unfold(viewer, async |mut viewer| Some((Ok(viewer.next().await?), viewer))))
    }

    fn subscribe(&self, view: View) -> watch::Receiver<Frame> {
        let mut frames = self.0.frames();
        if let Some(frame) = frames.get(&view) {
            return frame.subscribe();
        }
        let pieces = self.0.render(&view);
        let first = Frame { number: 0, whole: whole(&pieces).into(), changes: Bytes::new() };
        let (sender, receiver) = watch::channel(first);
        frames.insert(view.clone(), sender);
        tokio::spawn(self.0.clone().keep_fresh(view, pieces));
        receiver
    }
}

impl Inner {
    fn frames(&self) -> MutexGuard<'_, HashMap<View, watch::Sender<Frame>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn render(&self, view: &View) -> Vec<Piece> {
        view.pieces(&self.board, self.clock.now())
    }

    /// Renders a page each second until nobody watches it.
    async fn keep_fresh(self: Arc<Self>, view: View, mut pieces: Vec<Piece>) {
        let mut ticks = self.board.changed();
        while ticks.changed().await.is_ok() {
            if self.forget(&view) {
                return;
            }
            let new = self.render(&view);
            let (whole, changes) = (whole(&new).into(), changes(&pieces, &new).into());
            if let Some(frame) = self.frames().get(&view) {
                frame.send_modify(|frame| *frame = Frame { number: frame.number + 1, whole, changes });
            }
            pieces = new;
        }
        self.frames().remove(&view);
    }

    /// Returns whether nobody watches any more.
    fn forget(&self, view: &View) -> bool {
        let mut frames = self.frames();
        let is_unwatched = frames.get(view).is_none_or(|frame| frame.receiver_count() == 0);
        if is_unwatched {
            frames.remove(view);
        }
        is_unwatched
    }
}

/// One browser.
struct Viewer {
    frames: watch::Receiver<Frame>,
    /// The number of the last frame that it got.
    seen: Option<u64>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next event; `None`: there is none any more.
    async fn next(&mut self) -> Option<Bytes> {
        if self.seen.is_some() {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = self.frames.changed() => changed.ok()?,
            }
        }
        let frame = self.frames.borrow_and_update().clone();
        let last = self.seen.replace(frame.number);
        // A browser that was too slow for one frame gets all of the next.
        let follows = last.is_some_and(|last| last + 1 == frame.number);
        Some(if follows { frame.changes } else { frame.whole })
    }
}
