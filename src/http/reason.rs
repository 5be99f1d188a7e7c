//! The words for what can go wrong, in one table, with their statuses.

use std::time::Duration;

use axum::http::StatusCode;
use serde::{Serialize, Serializer};

use crate::{domain::rejection::RejectionReason, telemetry::LogLimiter};

/// Defines [`Reason`]: one table of the words and their statuses.
macro_rules! reasons {
    ($($status:ident { $($variant:ident $word:literal,)+ })+) => {
        /// The stable words for what can go wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Reason {
            $($($variant,)+)+
            /// An order is refused. The domain knows the word and the status.
            Rejected(RejectionReason),
        }

        impl Reason {
            const OWN: &[Self] = &[$($(Self::$variant,)+)+];

            pub(super) fn status(self) -> StatusCode {
                match self {
                    $($(Self::$variant)|+ => StatusCode::$status,)+
                    Self::Rejected(reason) => {
                        StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
                    }
                }
            }

            /// The word as it stands in answers.
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $($(Self::$variant => $word,)+)+
                    Self::Rejected(reason) => reason.as_str(),
                }
            }
        }
    };
}

reasons! {
    BAD_REQUEST {
        InvalidJson "invalid_json",
        InvalidBody "invalid_body",
        InvalidField "invalid_field",
        InvalidName "invalid_name",
        InvalidSku "invalid_sku",
        InvalidStock "invalid_stock",
        InvalidTerms "invalid_terms",
        InvalidChange "invalid_change",
        InvalidReasonText "invalid_reason",
        InvalidProductId "invalid_product_id",
        InvalidTotal "invalid_total",
        InvalidLines "invalid_lines",
        InvalidBuyer "invalid_buyer",
        InvalidReference "invalid_reference",
        InvalidRestock "invalid_restock",
        DuplicateProduct "duplicate_product",
        InvalidOrderId "invalid_order_id",
        InvalidLimit "invalid_limit",
        InvalidAfter "invalid_after",
        InvalidStatus "invalid_status",
        InvalidCreatedAfter "invalid_created_after",
        InvalidOrder "invalid_order",
        InvalidWait "invalid_wait",
        InvalidQuery "invalid_query",
        InvalidIdempotencyKey "invalid_idempotency_key",
        InvalidHost "invalid_host",
        InvalidRequest "invalid_request",
    }
    NOT_FOUND {
        OrderNotFound "order_not_found",
        RouteNotFound "route_not_found",
    }
    METHOD_NOT_ALLOWED {
        MethodNotAllowed "method_not_allowed",
    }
    CONFLICT {
        SkuTaken "sku_taken",
        StockBelowReserved "stock_below_reserved",
        ProductHasReservations "product_has_reservations",
        ProductArchived "product_archived",
        StockChanged "stock_changed",
        StockAboveMaximum "stock_above_maximum",
        OrderNotReserved "order_not_reserved",
        OrderAlreadyPaid "order_already_paid",
        PaidWithAnotherReference "paid_with_another_reference",
        OrderExpired "order_expired",
        OrderNotPaid "order_not_paid",
        StockTooLarge "stock_too_large",
    }
    PAYLOAD_TOO_LARGE {
        BodyTooLarge "body_too_large",
    }
    URI_TOO_LONG {
        UriTooLong "uri_too_long",
    }
    REQUEST_HEADER_FIELDS_TOO_LARGE {
        HeadTooLarge "head_too_large",
    }
    REQUEST_TIMEOUT {
        RequestTimeout "request_timeout",
    }
    UNSUPPORTED_MEDIA_TYPE {
        UnsupportedMediaType "unsupported_media_type",
    }
    SERVICE_UNAVAILABLE {
        LaneFull "lane_full",
        Overloaded "overloaded",
        QueueUnavailable "queue_unavailable",
        DatabaseUnavailable "database_unavailable",
        NotReady "not_ready",
    }
    INTERNAL_SERVER_ERROR {
        InternalError "internal_error",
    }
}

/// Every `reason` that an error can have, with its HTTP status.
pub fn error_reasons() -> impl Iterator<Item = (&'static str, u16)> {
    let rejections = RejectionReason::ALL.into_iter().map(Reason::Rejected);
    let reasons = Reason::OWN.iter().copied().chain(rejections);
    reasons.map(|reason| (reason.as_str(), reason.status().as_u16()))
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Reason {
    /// `Some` if this error is logged now, with the number of suppressed ones before it: a flood of 503s becomes one line every
    /// five seconds for each reason.
    pub(super) fn due(self) -> Option<u64> {
        static FLOODS: [LogLimiter; 5] = [const { LogLimiter::every(Duration::from_secs(5)) }; 5];
        let flood = match self {
            Self::LaneFull => 0,
            Self::Overloaded => 1,
            Self::QueueUnavailable => 2,
            Self::DatabaseUnavailable => 3,
            Self::NotReady => 4,
            _ => return Some(0),
        };
        FLOODS[flood].due()
    }
}
