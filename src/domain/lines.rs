//! What an order asks for: pieces of one product, or of several.

use std::{fmt, slice, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::{ids::ProductId, quantity::Quantity};

/// Some pieces of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub product_id: ProductId,
    pub total: Quantity,
}

/// The lines of an order: 1 to [`Lines::MAX`], each of another product. The order stands in the lane of the first one.
///
/// Most orders have one line, which takes no memory elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines(Repr);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Repr {
    One(Line),
    Several(Arc<[Line]>),
}

/// Why lines are not those of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLines {
    #[error("{}", Lines::EXPECTED)]
    Count,
    #[error("product {0} is in two lines; add up their totals in one")]
    Duplicate(ProductId),
}

impl Lines {
    pub const MAX: usize = 50;
    /// What lines look like, for error messages.
    pub const EXPECTED: &str = "a list of 1 to 50 objects with product_id and total, each of another product";

    /// One line.
    pub const fn one(product_id: ProductId, total: Quantity) -> Self {
        Self(Repr::One(Line { product_id, total }))
    }

    pub fn as_slice(&self) -> &[Line] {
        match &self.0 {
            Repr::One(line) => slice::from_ref(line),
            Repr::Several(lines) => lines,
        }
    }

    /// The first line. Its product's lane is that of the order.
    pub fn first(&self) -> Line {
        match &self.0 {
            Repr::One(line) => *line,
            Repr::Several(lines) => lines[0],
        }
    }

    /// The only line, if there is only one.
    pub fn only(&self) -> Option<Line> {
        match &self.0 {
            Repr::One(line) => Some(*line),
            Repr::Several(_) => None,
        }
    }

    /// The lines behind the first one.
    pub fn others(&self) -> &[Line] {
        &self.as_slice()[1..]
    }

    pub fn products(&self) -> impl Iterator<Item = ProductId> {
        self.as_slice().iter().map(|line| line.product_id)
    }
}

impl TryFrom<Vec<Line>> for Lines {
    type Error = InvalidLines;

    fn try_from(lines: Vec<Line>) -> Result<Self, InvalidLines> {
        match lines[..] {
            [line] => Ok(Self(Repr::One(line))),
            [_, .., _] if lines.len() <= Self::MAX => {
                let mut products: Vec<_> = lines.iter().map(|line| line.product_id).collect();
                products.sort_unstable();
                match products.windows(2).find(|pair| pair[0] == pair[1]) {
                    Some(pair) => Err(InvalidLines::Duplicate(pair[0])),
                    None => Ok(Self(Repr::Several(lines.into()))),
                }
            }
            _ => Err(InvalidLines::Count),
        }
    }
}

impl Serialize for Lines {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Line>::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// `2 of product 1, 1 of product 7`.
impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Line { product_id, total }) in self.as_slice().iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} of product {product_id}", total.get())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(product: u64, total: u32) -> Line {
        Line { product_id: ProductId::new(product).unwrap(), total: Quantity::new(total).unwrap() }
    }

    #[test]
    fn lines_are_of_different_products() {
        let lines = Lines::try_from(vec![line(7, 2), line(1, 3)]).unwrap();
        assert_eq!(lines.first(), line(7, 2));
        assert_eq!((lines.only(), lines.others()), (None, &[line(1, 3)][..]));
        assert_eq!(lines.to_string(), "2 of product 7, 3 of product 1");
        assert_eq!(
            Lines::try_from(vec![line(7, 2), line(1, 3), line(7, 1)]),
            Err(InvalidLines::Duplicate(ProductId::new(7).unwrap()))
        );
        assert_eq!(Lines::try_from(vec![]), Err(InvalidLines::Count));
        assert!(Lines::try_from((1..=50).map(|id| line(id, 1)).collect::<Vec<_>>()).is_ok());
        assert_eq!(
            Lines::try_from((1..=51).map(|id| line(id, 1)).collect::<Vec<_>>()),
            Err(InvalidLines::Count)
        );
    }

    #[test]
    fn one_line_is_the_same_however_it_is_made() {
        let one = Lines::one(line(1, 3).product_id, line(1, 3).total);
        assert_eq!(Lines::try_from(vec![line(1, 3)]), Ok(one.clone()));
        assert_eq!((one.only(), one.others()), (Some(line(1, 3)), &[][..]));
        let json = r#"[{"product_id":1,"total":3}]"#;
        assert_eq!(serde_json::to_string(&one).unwrap(), json);
        assert_eq!(serde_json::from_str::<Lines>(json).unwrap(), one);
    }
}
