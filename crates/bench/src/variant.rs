//! The ways to take an order that are compared.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Variant {
    Noop,
    DirectUpdate,
    DirectForUpdate,
    DirectSkipLocked,
    AntreBaseline,
    Antre,
    #[value(name = "antre-hash16")]
    AntreHash16,
    AntrePlain,
    AntreNoEvents,
    AntreKeys,
    AntreEmbeddedBaseline,
    AntreEmbedded,
}

/// How one of this program's own servers decides an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Design {
    /// It does not: 201, whatever is asked. The limit of the HTTP stack.
    Noop,
    /// A conditional UPDATE, then an INSERT.
    Update,
    /// SELECT … FOR UPDATE, then an UPDATE and an INSERT.
    ForUpdate,
    /// One row for each piece, SELECT … FOR UPDATE SKIP LOCKED, then a DELETE and an INSERT.
    SkipLocked,
}

impl Variant {
    /// `None`: it is antre.
    pub(crate) fn design(self) -> Option<Design> {
        match self {
            Self::Noop => Some(Design::Noop),
            Self::DirectUpdate => Some(Design::Update),
            Self::DirectForUpdate => Some(Design::ForUpdate),
            Self::DirectSkipLocked => Some(Design::SkipLocked),
            _ => None,
        }
    }

    pub(crate) fn is_direct(self) -> bool {
        self.needs_servers() && self.design().is_some()
    }

    pub(crate) fn is_embedded(self) -> bool {
        matches!(self, Self::AntreEmbedded | Self::AntreEmbeddedBaseline)
    }

    pub(crate) fn needs_servers(self) -> bool {
        self != Self::Noop && !self.is_embedded()
    }

    /// Whether it runs the build that `--baseline` names.
    pub(crate) fn is_baseline(self) -> bool {
        matches!(self, Self::AntreBaseline | Self::AntreEmbeddedBaseline)
    }

    /// The same way to take an order, in the build that `--baseline` names.
    pub(crate) fn baseline(self) -> Option<Self> {
        match self {
            Self::Antre => Some(Self::AntreBaseline),
            Self::AntreEmbedded => Some(Self::AntreEmbeddedBaseline),
            _ => None,
        }
    }

    /// The value of `LANES`, when it is antre on servers.
    pub(crate) fn lanes(self) -> Option<&'static str> {
        match self {
            Self::AntreHash16 => Some("hash:16"),
            _ if self.design().is_none() && !self.is_embedded() => Some("product"),
            _ => None,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl Serialize for Variant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Variant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?, false).map_err(D::Error::custom)
    }
}
