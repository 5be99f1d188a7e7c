//! A collector of traces, as small as it can be: takes OTLP over HTTP, and keeps the spans.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, routing::post};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) name: String,
    pub(super) trace_id: String,
    pub(super) span_id: String,
    /// Empty: it begins its trace.
    pub(super) parent: String,
    /// As the protocol numbers them: 2 server, 4 producer, 5 consumer.
    pub(super) kind: u64,
    /// Nanoseconds since 1970.
    pub(super) times: [u64; 2],
    /// Of the span and its process.
    pub(super) attributes: BTreeMap<String, String>,
    /// Trace and span.
    pub(super) links: Vec<(String, String)>,
}

pub(super) struct Collector {
    pub(super) url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let taken = spans.clone();
        let take = move |body: Bytes| async move { taken.lock().unwrap().extend(spans_of(&body)) };
        let site = Router::new().route("/v1/traces", post(take));
        let serving = tokio::spawn(async move { axum::serve(listener, site).await.unwrap() });
        Self { url, spans, _serving: AbortOnDropHandle::new(serving) }
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans_of(request: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for of_process in Fields::of(request).all(1) {
        let of_process = Fields::of(of_process);
        let resource = of_process.all(1).flat_map(|resource| attributes(&Fields::of(resource), 1));
        let resource: BTreeMap<_, _> = resource.collect();
        for of_scope in of_process.all(2) {
            spans.extend(Fields::of(of_scope).all(2).map(|one| span(&Fields::of(one), resource.clone())));
        }
    }
    spans
}

fn span(span: &Fields<'_>, mut resource: BTreeMap<String, String>) -> Span {
    resource.extend(attributes(span, 9));
    let link = |link: &[u8]| (hex(Fields::of(link).bytes(1)), hex(Fields::of(link).bytes(2)));
    Span {
        name: span.text(5),
        trace_id: hex(span.bytes(1)),
        span_id: hex(span.bytes(2)),
        parent: hex(span.bytes(4)),
        kind: span.number(6),
        times: [span.number(7), span.number(8)],
        attributes: resource,
        links: span.all(13).map(link).collect(),
    }
}

/// Of type `KeyValue`. Texts and integers, which is all that there is.
fn attributes(of: &Fields<'_>, number: u64) -> Vec<(String, String)> {
    let pair = |pair: &[u8]| {
        let value = Fields::of(Fields::of(pair).bytes(2));
        let text = if value.has(1) { value.text(1) } else { value.number(3).to_string() };
        (Fields::of(pair).text(1), text)
    };
    of.all(number).map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fields of a message in Protocol Buffers, by number.
struct Fields<'a>(Vec<(u64, Field<'a>)>);

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn of(mut message: &'a [u8]) -> Self {
        let mut fields = Vec::new();
        while !message.is_empty() {
            let tag = varint(&mut message);
            let field = match tag % 8 {
                0 => Field::Number(varint(&mut message)),
                1 => Field::Number(u64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
                2 => {
                    let length = varint(&mut message) as usize;
                    Field::Bytes(take(&mut message, length))
                }
                5 => Field::Number(u32::from_le_bytes(take(&mut message, 4).try_into().unwrap()).into()),
                other => panic!("wire type {other}"),
            };
            fields.push((tag / 8, field));
        }
        Self(fields)
    }

    fn all(&self, number: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter_map(move |(of, field)| match field {
            Field::Bytes(bytes) if *of == number => Some(*bytes),
            _ => None,
        })
    }

    fn has(&self, number: u64) -> bool {
        self.0.iter().any(|(of, _)| *of == number)
    }

    fn bytes(&self, number: u64) -> &'a [u8] {
        self.all(number).next().unwrap_or_default()
    }

    fn text(&self, number: u64) -> String {
        String::from_utf8(self.bytes(number).to_vec()).unwrap()
    }

    fn number(&self, number: u64) -> u64 {
        let is_it = |(of, field): &(u64, Field<'_>)| match field {
            Field::Number(value) if *of == number => Some(*value),
            _ => None,
        };
        self.0.iter().find_map(is_it).unwrap_or_default()
    }
}

fn take<'a>(message: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = message.split_at(length);
    *message = rest;
    taken
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
