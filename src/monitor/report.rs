//! What a process tells the others, once a second. JSON, so that processes of two releases read each other: a field that is
//! missing has its default, and one that is unknown is ignored. A report that is lost is missing on the pages, no more.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::latency::Latencies;
use crate::domain::{ids::ProductId, inventory::Inventory};

/// One process's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub process: ProcessIdentity,
    /// Counts the reports of the process, from 1.
    pub sequence: u64,
    /// The process ends now: this is its last report.
    #[serde(default)]
    pub is_last: bool,
    #[serde(default)]
    pub database: Vital,
    #[serde(default)]
    pub broker: Vital,
    /// How many lanes a worker serves, alone or as a substitute for others.
    #[serde(default)]
    pub lanes_served: u32,
    /// How many dead letters the broker holds; `None`: not asked.
    #[serde(default)]
    pub dead_letters: Option<u64>,
    /// What has happened to products since the last report. Those without any change are left out.
    #[serde(default)]
    pub products: Vec<ProductReport>,
    /// The lanes with undecided commands that this process knows of.
    #[serde(default)]
    pub lanes: Vec<LaneReport>,
}

/// Which process it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// A new one with each start.
    pub id: Uuid,
    /// For people: what it is, on which machine, with which process id, as in `worker@shop-1/4711`.
    pub name: String,
    pub role: ProcessRole,
    /// Of the program.
    pub version: String,
    pub started_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessRole {
    Api,
    Worker,
    /// Both in one process.
    Serve,
}

impl ProcessRole {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Worker => "worker",
            Self::Serve => "serve",
        }
    }

    pub const fn is_api(self) -> bool {
        matches!(self, Self::Api | Self::Serve)
    }

    pub const fn is_worker(self) -> bool {
        matches!(self, Self::Worker | Self::Serve)
    }
}

/// Whether a process reaches a server that it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Vital {
    /// Not asked yet.
    #[default]
    Unknown,
    Ok,
    Unavailable {
        since: Timestamp,
        error: String,
    },
}

/// What a process did with one product since its last report. Counts are numbers of orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductReport {
    #[serde(rename = "id")]
    pub product_id: ProductId,
    #[serde(flatten)]
    pub counts: Counts,
    /// The last inventory that the process has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stock: Option<StockLevel>,
    /// Commands up to the one with this time are decided: Unix milliseconds, of a command's id. 0: unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub decided_until_ms: i64,
    /// How long clients of an API waited for their verdicts.
    #[serde(default, skip_serializing_if = "Latencies::is_empty")]
    pub latencies: Latencies,
}

/// An inventory, and when it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockLevel {
    pub available: u32,
    pub reserved: u32,
    /// Unix milliseconds.
    pub seen_ms: i64,
}

impl StockLevel {
    pub fn new(inventory: Inventory, seen_ms: i64) -> Self {
        Self { available: inventory.available(), reserved: inventory.reserved(), seen_ms }
    }

    /// Pieces in the warehouse.
    pub const fn stored(self) -> u64 {
        self.available as u64 + self.reserved as u64
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Numbers of orders, by what became of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Counts {
            $($(#[$doc])* #[serde(skip_serializing_if = "is_zero")] pub $name: u64,)*
        }

        impl std::ops::AddAssign for Counts {
            fn add_assign(&mut self, more: Self) {
                $(self.$name = self.$name.saturating_add(more.$name);)*
            }
        }
    };
}

counts! {
    /// New reservations.
    reserved,
    /// Refused by a lane's decision, whatever the reason.
    rejected,
    /// Refused by an API that knows that the product is closed to orders: sold out, paused, not open or closed.
    refused_early,
    /// Not queued: the lane was full, or the broker away. The client may send it again.
    not_queued,
    paid,
    cancelled,
    expired,
    extended,
    returned,
    /// Payments that came too late.
    too_late,
    /// Decided before, and answered again.
    repeated,
    /// Kept from a decision by invalid data in the database.
    undecidable,
}

impl Counts {
    /// Orders that were refused, by a lane or by an API that knows better.
    pub const fn refused(&self) -> u64 {
        self.rejected.saturating_add(self.refused_early)
    }
}

/// A lane with commands that are not decided, as one process sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneReport {
    #[serde(rename = "id")]
    pub product_id: ProductId,
    /// Commands that the process submitted, as an API, and of which it knows no verdict.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unanswered: u64,
    /// Commands that the process took, as a worker, and has not decided.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held: u64,
    /// How long ago the oldest of them was submitted, in milliseconds.
    pub oldest_ms: u64,
    /// For how long the process knows of no decision while some wait, in milliseconds.
    pub undecided_ms: u64,
    /// How often their decision failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tries: u32,
    /// Why it failed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl Report {
    /// The bytes of a message.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // numbers and texts always serialize
    }

    /// An error when this is no report.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written_and_leaves_out_what_is_zero() {
        let product_id = ProductId::new(17).unwrap();
        let process = ProcessIdentity {
            id: Uuid::nil(),
            name: "worker@shop-1/4711".to_owned(),
            role: ProcessRole::Worker,
            version: "0.1.0".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
        };
        let report = Report {
            process,
            sequence: 3,
            is_last: false,
            database: Vital::Unavailable { since: Timestamp::UNIX_EPOCH, error: "gone".to_owned() },
            broker: Vital::Ok,
            lanes_served: 2,
            dead_letters: Some(0),
            products: vec![ProductReport {
                product_id,
                counts: Counts { reserved: 2, ..Counts::default() },
                stock: Some(StockLevel { available: 1, reserved: 2, seen_ms: 9 }),
                decided_until_ms: 8,
                latencies: Latencies::default(),
            }],
            lanes: vec![LaneReport {
                product_id,
                unanswered: 0,
                held: 4,
                oldest_ms: 5,
                undecided_ms: 6,
                tries: 0,
                error: None,
            }],
        };
        let bytes = report.encode();
        assert_eq!(Report::decode(&bytes).unwrap(), report);
        let text = String::from_utf8(bytes).unwrap();
        let product =
            r#"{"id":17,"reserved":2,"stock":{"available":1,"reserved":2,"seen_ms":9},"decided_until_ms":8}"#;
        assert!(text.contains(product), "{text}");
        assert!(Report::decode(b"{}").is_err());
    }

    #[test]
    fn a_report_of_another_release_is_read() {
        let other = br#"{"process":{"id":"00000000-0000-0000-0000-000000000000","name":"w","role":"worker","version":"9",
            "started_at":"2030-01-01T00:00:00Z","color":"red"},"sequence":1,"more":[],"products":[{"id":1,"lost":4}]}"#;
        let report = Report::decode(other).unwrap();
        assert_eq!((report.broker, report.products[0].counts), (Vital::Unknown, Counts::default()));
    }
}
