//! What travels through the broker: JSON, so that a person can read it in the broker's own pages and a worker in
//! another language is possible. `ARCHITECTURE.md` shows both messages.

use serde::{Deserialize, Serialize};

use crate::{
    inventory::StockNews,
    order::{NewOrder, OrderId, Rejection, Verdict, from_millis},
    product::ProductId,
};

/// The `content-type` property of every message.
pub(super) const JSON: &str = "application/json";
/// The `type` property of a message to a lane.
pub(super) const ORDERS_V1: &str = "antre.orders.v1";
/// The `type` property of a message to an API.
pub(super) const VERDICTS_V1: &str = "antre.verdicts.v1";
/// The `type` property of a message that tells how much of a product is left.
pub(super) const STOCK_V1: &str = "antre.stock.v1";
/// The `type` property of a message that tells of a new product.
pub(super) const PRODUCT_V1: &str = "antre.product.v1";

/// A message that is not what it must be; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("not a message of antre: {0}")]
pub(super) struct Undecodable(String);

/// `antre.orders.v1`: orders of one lane, in the order of their arrival.
#[derive(Serialize, Deserialize)]
struct Orders<O> {
    orders: O,
}

/// `antre.verdicts.v1`
#[derive(Serialize, Deserialize)]
struct Verdicts {
    verdicts: Vec<OneVerdict>,
    /// Products of which nothing is left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sold_out: Vec<StockNews>,
}

#[derive(Serialize, Deserialize)]
struct OneVerdict {
    id: OrderId,
    verdict: Word,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Reserved,
    InsufficientStock,
    ProductNotFound,
}

/// `antre.product.v1`
#[derive(Serialize, Deserialize)]
struct Product {
    product_id: ProductId,
}

#[expect(clippy::expect_used, reason = "numbers, texts and ids always serialize")]
fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message of numbers, texts and ids")
}

fn decode<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    kind: Option<&str>,
    expected: &str,
) -> Result<T, Undecodable> {
    if kind != Some(expected) {
        return Err(Undecodable(format!("its type is {kind:?}, not {expected}")));
    }
    serde_json::from_slice(bytes).map_err(|error| Undecodable(error.to_string()))
}

pub(super) fn encode_orders(orders: &[NewOrder]) -> Vec<u8> {
    encode(&Orders { orders })
}

/// At least one order, in order.
pub(super) fn decode_orders(bytes: &[u8], kind: Option<&str>) -> Result<Vec<NewOrder>, Undecodable> {
    let Orders { orders } = decode::<Orders<Vec<NewOrder>>>(bytes, kind, ORDERS_V1)?;
    if orders.is_empty() {
        return Err(Undecodable("it has no orders".to_owned()));
    }
    Ok(orders)
}

pub(super) fn encode_verdicts(verdicts: Vec<(OrderId, Verdict)>, sold_out: Vec<StockNews>) -> Vec<u8> {
    let verdicts = verdicts
        .into_iter()
        .map(|(id, verdict)| {
            let (verdict, expires_at, available_stock) = match verdict {
                Verdict::Reserved { expires_at } => (Word::Reserved, Some(expires_at.as_millisecond()), None),
                Verdict::Rejected(Rejection::InsufficientStock { available }) => {
                    (Word::InsufficientStock, None, Some(available))
                }
                Verdict::Rejected(Rejection::ProductNotFound) => (Word::ProductNotFound, None, None),
            };
            OneVerdict { id, verdict, expires_at, available_stock }
        })
        .collect();
    encode(&Verdicts { verdicts, sold_out })
}

/// What `antre.verdicts.v1` says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) verdicts: Vec<(OrderId, Verdict)>,
    pub(super) sold_out: Vec<StockNews>,
}

pub(super) fn decode_verdicts(bytes: &[u8], kind: Option<&str>) -> Result<Decided, Undecodable> {
    let Verdicts { verdicts, sold_out } = decode(bytes, kind, VERDICTS_V1)?;
    let verdicts: Result<_, _> = verdicts
        .into_iter()
        .map(|one| {
            let verdict = match (one.verdict, one.expires_at, one.available_stock) {
                (Word::Reserved, Some(expires_at), _) => {
                    Verdict::Reserved { expires_at: from_millis(expires_at) }
                }
                (Word::InsufficientStock, _, Some(available)) => {
                    Verdict::Rejected(Rejection::InsufficientStock { available })
                }
                (Word::ProductNotFound, ..) => Verdict::Rejected(Rejection::ProductNotFound),
                (Word::Reserved | Word::InsufficientStock, ..) => {
                    return Err(Undecodable(format!("the verdict on {} is not complete", one.id)));
                }
            };
            Ok((one.id, verdict))
        })
        .collect();
    Ok(Decided { verdicts: verdicts?, sold_out })
}

pub(super) fn encode_stock(news: StockNews) -> Vec<u8> {
    encode(&news)
}

pub(super) fn decode_stock(bytes: &[u8], kind: Option<&str>) -> Result<StockNews, Undecodable> {
    decode(bytes, kind, STOCK_V1)
}

pub(super) fn encode_product(product_id: ProductId) -> Vec<u8> {
    encode(&Product { product_id })
}

pub(super) fn decode_product(bytes: &[u8], kind: Option<&str>) -> Result<ProductId, Undecodable> {
    Ok(decode::<Product>(bytes, kind, PRODUCT_V1)?.product_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{Quantity, now};

    #[test]
    fn what_is_encoded_is_decoded() {
        let orders: Vec<_> = (1..=3)
            .map(|number| NewOrder {
                id: OrderId::mint(),
                product_id: ProductId::new(number).unwrap(),
                total: Quantity::new(12).unwrap(),
                answer_by: now(),
            })
            .collect();
        assert_eq!(decode_orders(&encode_orders(&orders), Some(ORDERS_V1)).unwrap(), orders);
        let verdicts = vec![
            (OrderId::mint(), Verdict::Reserved { expires_at: now() }),
            (OrderId::mint(), Verdict::Rejected(Rejection::InsufficientStock { available: 0 })),
            (OrderId::mint(), Verdict::Rejected(Rejection::ProductNotFound)),
        ];
        let product = ProductId::new(7).unwrap();
        let news = StockNews { product_id: product, version: 3, available: 0 };
        assert_eq!(
            decode_verdicts(&encode_verdicts(verdicts.clone(), vec![news]), Some(VERDICTS_V1)).unwrap(),
            Decided { verdicts, sold_out: vec![news] }
        );
        assert_eq!(decode_stock(&encode_stock(news), Some(STOCK_V1)).unwrap(), news);
        assert_eq!(decode_product(&encode_product(product), Some(PRODUCT_V1)).unwrap(), product);
    }

    #[test]
    fn the_wire_format_is_what_architecture_md_shows() {
        let id: OrderId = "0193ab5e-0000-7000-8000-000000000000".parse().unwrap();
        let order = NewOrder {
            id,
            product_id: ProductId::new(1).unwrap(),
            total: Quantity::new(2).unwrap(),
            answer_by: from_millis(1_734_000_010_000),
        };
        assert_eq!(
            String::from_utf8(encode_orders(&[order])).unwrap(),
            r#"{"orders":[{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"answer_by":1734000010000}]}"#
        );
        let reserved = Verdict::Reserved { expires_at: from_millis(1_734_000_900_000) };
        let rejected = Verdict::Rejected(Rejection::InsufficientStock { available: 0 });
        let news = StockNews { product_id: ProductId::new(1).unwrap(), version: 4, available: 0 };
        assert_eq!(
            String::from_utf8(encode_verdicts(vec![(id, reserved), (id, rejected)], vec![news])).unwrap(),
            r#"{"verdicts":[{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"reserved","expires_at":1734000900000},{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"insufficient_stock","available_stock":0}],"sold_out":[{"product_id":1,"version":4,"available":0}]}"#
        );
    }

    #[test]
    fn what_cannot_be_is_undecodable() {
        let order = |total: &str| {
            format!(
                r#"{{"orders":[{{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":{total},"answer_by":0}}]}}"#
            )
        };
        assert!(decode_orders(order("1").as_bytes(), Some(ORDERS_V1)).is_ok());
        for bad in
            ["", "[]", "{}", r#"{"orders":[]}"#, &order("0"), &order("-1"), &order("\"1\""), &order("4e9")]
        {
            assert!(decode_orders(bad.as_bytes(), Some(ORDERS_V1)).is_err(), "{bad}");
        }
        assert!(decode_orders(order("1").as_bytes(), Some("antre.orders.v2")).is_err());
        assert!(decode_orders(order("1").as_bytes(), None).is_err());
        let incomplete =
            r#"{"verdicts":[{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"reserved"}]}"#;
        assert!(decode_verdicts(incomplete.as_bytes(), Some(VERDICTS_V1)).is_err());
    }
}
