//! The socket of one client as hyper sees it. It updates its [`Connection`], and writes the answers that hyper has none for.
//!
//! hyper answers a head that it cannot read (400, 431) before any code of ours runs, with an empty body, and offers no hook for
//! it. Such an answer is the last one on a connection, and the only one without an `x-request-id`. It is recognised when it is
//! written, and replaced by the same refusal with the envelope of this API.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    connection::{Connection, Wait},
    envelope::{ApiError, Reason},
    site::{REQUEST_ID, last_answer},
};

/// The maximum size of the head of a request, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Every HTTP/2 connection begins with this.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) struct ClientSocket {
    socket: TcpStream,
    connection: Arc<Connection>,
    protocol: Protocol,
    /// Whether the first line of the current head has arrived.
    has_request_line: bool,
    /// The bytes of a refusal that are not written yet.
    refusal: Bytes,
    /// Whether a refusal is the last answer.
    has_refused: bool,
    /// How many bytes that a refused client still sends may be discarded.
    linger_bytes: usize,
    is_blocked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// So many bytes of [`H2_PREFACE`] have arrived, and no others.
    Undecided(usize),
    Http1,
    Http2,
}

impl Protocol {
    fn after(self, mut bytes: &[u8]) -> Self {
        let Self::Undecided(mut seen) = self else { return self };
        while let (Some((byte, rest)), Some(expected)) = (bytes.split_first(), H2_PREFACE.get(seen)) {
            if byte != expected {
                return Self::Http1;
            }
            (bytes, seen) = (rest, seen + 1);
        }
        if seen == H2_PREFACE.len() { Self::Http2 } else { Self::Undecided(seen) }
    }
}

impl ClientSocket {
    pub(super) fn new(socket: TcpStream, connection: Arc<Connection>) -> Self {
        Self {
            socket,
            connection,
            protocol: Protocol::Undecided(0),
            has_request_line: false,
            refusal: Bytes::new(),
            has_refused: false,
            linger_bytes: 1024 * 1024,
            is_blocked: false,
        }
    }

    fn received(&mut self, bytes: &[u8]) {
        if let Protocol::Undecided(_) = self.protocol {
            self.protocol = self.protocol.after(bytes);
            if self.protocol == Protocol::Http2 {
                self.connection.set_idle_wait(Wait::NextRequest);
            }
        }
        // HTTP/2 has pings and settings, too: arriving bytes need not belong to a request.
        if self.protocol != Protocol::Http2 {
            if self.connection.note_received() {
                self.has_request_line = false;
            }
            self.has_request_line = self.has_request_line || bytes.contains(&b'\n');
        }
    }

    /// Where in these bytes hyper's own error answer begins, and its status.
    fn find_hyper_error(&self, bytes: &[u8]) -> Option<(usize, u16)> {
        if self.protocol == Protocol::Http2 || self.has_refused || !bytes.ends_with(b"\r\n\r\n") {
            return None; // our answers end with a body
        }
        const BEGIN: &[u8] = b"HTTP/1.";
        let begin = bytes.windows(BEGIN.len()).rposition(|window| window == BEGIN)?;
        let head = str::from_utf8(&bytes[begin..]).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let is_ours = head.contains(REQUEST_ID.as_str());
        (!is_ours && (400..500).contains(&status)).then_some((begin, status))
    }

    fn refuse(&mut self, status: u16) {
        let error = match status {
            408 => ApiError::late("head"),
            // hyper also has a limit for the first line, and it is above the one for the whole head.
            414 | 431 if !self.has_request_line => ApiError::new(
                Reason::UriTooLong,
                format!("the first line of a request may have {MAX_HEAD_BYTES} bytes at the most"),
            ),
            414 | 431 => ApiError::new(
                Reason::HeadTooLarge,
                format!("the head of a request may have {MAX_HEAD_BYTES} bytes and 100 headers at the most"),
            ),
            _ => ApiError::new(
                Reason::InvalidRequest,
                "this is not a request of HTTP/1.1 or HTTP/2 (without TLS); look at its first line and its headers",
            ),
        };
        self.refusal = last_answer(&error).into();
        self.has_refused = true;
        self.connection.set_idle_wait(Wait::Closing);
    }

    /// Updates the connection when the socket takes no more bytes, or takes them again.
    fn note_write<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() != self.is_blocked {
            self.is_blocked = written.is_pending();
            self.connection.set_blocked(self.is_blocked);
        }
        written
    }

    /// Writes the rest of a refusal.
    fn poll_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.refusal.has_remaining() {
            let written = Pin::new(&mut self.socket).poll_write(context, &self.refusal);
            match ready!(self.note_write(written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.refusal.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on for a moment: a client that is still sending when the connection closes would see a reset instead of the
    /// answer. The sweep closes the connection.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut discarded = [0; 4096];
        while self.linger_bytes > 0 {
            let mut discarded = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.socket).poll_read(context, &mut discarded)) {
                Ok(()) if !discarded.filled().is_empty() => {
                    self.linger_bytes = self.linger_bytes.saturating_sub(discarded.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl Drop for ClientSocket {
    /// Bytes that a client does not read are discarded at once: otherwise the system keeps them for another half minute.
    fn drop(&mut self) {
        if self.is_blocked {
            let _ = self.socket.set_zero_linger();
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.connection.is_head_late() && !self.has_refused {
            self.refuse(408);
            // Best effort: so few bytes fit into a socket that has nothing else to send.
            let _ = self.poll_refusal(context);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        self.received(&buffer.filled()[filled..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(context))?;
        let last = slices.iter().rfind(|slice| !slice.is_empty());
        if let Some(last) = last
            && let Some((begin, status)) = self.find_hyper_error(last)
        {
            let whole: usize = slices.iter().map(|slice| slice.len()).sum();
            let before = whole - (last.len() - begin);
            if before == 0 {
                self.refuse(status);
                let _ = self.poll_refusal(context)?; // the flush writes the rest
                return Poll::Ready(Ok(whole));
            }
            // Answers to earlier requests: they are written first, alone.
            let first = slices.iter().find(|slice| !slice.is_empty()).unwrap_or(last);
            let written = Pin::new(&mut self.socket).poll_write(context, &first[..before.min(first.len())]);
            return self.note_write(written);
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
        if self.has_refused {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_is_recognised_by_its_preface_in_any_pieces() {
        let after =
            |pieces: &[&[u8]]| pieces.iter().fold(Protocol::Undecided(0), |seen, piece| seen.after(piece));
        assert!(after(&[H2_PREFACE, b"\0\0\0"]) == Protocol::Http2);
        for at in 1..H2_PREFACE.len() {
            let (begin, end) = H2_PREFACE.split_at(at);
            assert!(after(&[begin]) == Protocol::Undecided(at));
            assert!(after(&[begin, end]) == Protocol::Http2);
            assert!(after(&[begin, b"x"]) == Protocol::Http1);
        }
        assert!(after(&[b"P", b"OST / HTTP/1.1\r\n"]) == Protocol::Http1);
        assert!(after(&[b"GET / HTTP/1.1\r\n", H2_PREFACE]) == Protocol::Http1);
    }
}
