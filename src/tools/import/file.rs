//! A file of products: CSV with the columns sku, name and stock.

use std::collections::HashMap;

use csv::{ByteRecord, ReaderBuilder, Trim};
use serde::Serialize;

use crate::domain::{
    inventory::Stock,
    product::{NewProduct, ProductName},
    sku::Sku,
};

/// The columns, in the order in which a message names them.
const COLUMNS: [&str; 3] = ["sku", "name", "stock"];

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LineError {
    /// Where it begins, counted from 1.
    pub(super) line: u64,
    pub(super) message: String,
}

/// A product of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) sku: Sku,
    pub(super) name: ProductName,
    pub(super) stock: Stock,
}

impl Row {
    pub(super) fn product(&self) -> NewProduct {
        NewProduct { name: self.name.clone(), sku: Some(self.sku.clone()), stock: self.stock }
    }
}

/// All rows, or all that is wrong.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Row>, Vec<LineError>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // Flexible: a line with too many or too few fields is one error among others.
    let mut reader =
        ReaderBuilder::new().has_headers(false).flexible(true).trim(Trim::All).from_reader(bytes);
    let mut records = reader.byte_records();
    let header = match records.next() {
        Some(Ok(header)) => header,
        Some(Err(error)) => return Err(vec![LineError { line: 1, message: error.to_string() }]),
        None => return Err(vec![LineError { line: 1, message: "the file is empty".to_owned() }]),
    };
    let places = places(&header).map_err(|message| vec![LineError { line: 1, message }])?;
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    let (mut lines, mut counter) = (HashMap::new(), LineCounter::new(bytes));
    for record in records {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = counter.line(error.position());
                errors.push(LineError { line, message: error.to_string() });
                continue;
            }
        };
        let line = counter.line(record.position());
        match row(&record, line, places) {
            Ok(row) => match lines.insert(row.sku.clone(), line) {
                None => rows.push(row),
                Some(first) => {
                    let message = format!("line {first} has the sku {} too", row.sku.as_str());
                    errors.push(LineError { line, message });
                }
            },
            Err(messages) => {
                errors.extend(messages.into_iter().map(|message| LineError { line, message }));
            }
        }
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

/// Says in which line a record begins. The reader's own count is one less where lines end in CRLF, or an empty line is above.
struct LineCounter<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl<'a> LineCounter<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, line: 1 }
    }

    /// Of positions in ascending order.
    fn line(&mut self, position: Option<&csv::Position>) -> u64 {
        let begin = position.map_or(self.at, |position| usize::try_from(position.byte()).unwrap_or(self.at));
        let mut begin = begin.clamp(self.at, self.bytes.len());
        while self.bytes.get(begin).is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            begin += 1;
        }
        let passed = self.bytes[self.at..begin].iter().filter(|byte| **byte == b'\n').count();
        (self.at, self.line) = (begin, self.line + passed as u64);
        self.line
    }
}

/// Where the columns are.
fn places(header: &ByteRecord) -> Result<[usize; 3], String> {
    let names: Vec<_> = header.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect();
    let expected = format!("the first line must be a header with the columns {}", COLUMNS.join(", "));
    if let [all] = &names[..]
        && all.contains([';', '\t'])
    {
        return Err(format!("{expected}, separated by commas"));
    }
    if let Some(unknown) = names.iter().find(|name| !COLUMNS.contains(&name.as_str())) {
        return Err(format!("{expected}, and has {unknown:?}"));
    }
    let mut places = [0; 3];
    for (place, column) in places.iter_mut().zip(COLUMNS) {
        let mut found = names.iter().enumerate().filter(|(_, name)| *name == column);
        match (found.next(), found.next()) {
            (Some((at, _)), None) => *place = at,
            (Some(_), Some(_)) => return Err(format!("{expected}, and has {column} twice")),
            (None, _) => return Err(format!("{expected}, and has no {column}")),
        }
    }
    Ok(places)
}

/// The product of a line, or all that is wrong with it.
fn row(record: &ByteRecord, line: u64, [sku, name, stock]: [usize; 3]) -> Result<Row, Vec<String>> {
    if record.len() != COLUMNS.len() {
        let hint = "a field with a comma in it goes between double quotes";
        return Err(vec![format!("there are {} fields, not {}; {hint}", record.len(), COLUMNS.len())]);
    }
    let mut errors = Vec::new();
    let mut text = |column: usize, name: &str| match std::str::from_utf8(&record[column]) {
        Ok(text) => Some(text.to_owned()),
        Err(_) => {
            errors.push(format!("{name} is not UTF-8; save the file as \"CSV UTF-8\""));
            None
        }
    };
    let (sku, name, stock) = (text(sku, "sku"), text(name, "name"), text(stock, "stock"));
    let sku = sku.and_then(|text| {
        let wrong = format!("the sku {text:?} is not {}", Sku::EXPECTED);
        text.try_into().map_err(|_| errors.push(wrong)).ok()
    });
    let name = name.and_then(|text| {
        let wrong = format!("the name {text:?} is not {}", ProductName::EXPECTED);
        text.try_into().map_err(|_| errors.push(wrong)).ok()
    });
    let stock = stock.and_then(|text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let stock = text.parse().ok().filter(|_| digits).and_then(Stock::new);
        if stock.is_none() {
            errors.push(format!("the stock {text:?} is not {}", Stock::EXPECTED));
        }
        stock
    });
    match (sku, name, stock) {
        (Some(sku), Some(name), Some(stock)) => Ok(Row { line, sku, name, stock }),
        _ => Err(errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(u64, String, String, u32)> {
        let rows = read(text.as_bytes()).unwrap();
        let plain =
            |row: Row| (row.line, row.sku.as_str().to_owned(), row.name.as_str().to_owned(), row.stock.get());
        rows.into_iter().map(plain).collect()
    }

    fn errors(bytes: &[u8]) -> Vec<(u64, String)> {
        let errors = read(bytes).unwrap_err();
        errors.into_iter().map(|error| (error.line, error.message)).collect()
    }

    fn row(line: u64, sku: &str, name: &str, stock: u32) -> (u64, String, String, u32) {
        (line, sku.to_owned(), name.to_owned(), stock)
    }

    #[test]
    fn what_spreadsheets_write_is_read() {
        let plain = [row(2, "A-1", "Kaos Polos", 100), row(3, "A-2", "Topi", 0)];
        assert_eq!(rows("sku,name,stock\nA-1,Kaos Polos,100\nA-2,Topi,0\n"), plain);
        assert_eq!(rows("\u{feff}sku,name,stock\r\nA-1,Kaos Polos,100\r\nA-2,Topi,0"), plain);
        assert_eq!(rows("Stock, SKU ,Name\n100 , A-1, Kaos Polos\n0,A-2,Topi\n"), plain);
        assert_eq!(
            rows("sku,name,stock\n\"A\",\"Kaos, \"\"polos\"\"\nputih\",7\n\nB,ก,1\n"),
            [row(2, "A", "Kaos, \"polos\"\nputih", 7), row(5, "B", "ก", 1)]
        );
        assert_eq!(rows("sku,name,stock\n"), []);
    }

    #[test]
    fn each_line_that_is_wrong_is_named() {
        let found = errors(
            b"sku,name,stock\nA,Kaos,1\nB,Kaos\n,,x\nC,\xe9,1\nA,Topi,-1\nA,Topi,2\nD D,Topi,2147483648\n",
        );
        let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 4, 4, 5, 6, 7, 8, 8], "{found:?}");
        for (at, words) in [
            (0, "2 fields, not 3"),
            (1, "the sku \"\" is not"),
            (2, "the name \"\" is not"),
            (3, "the stock \"x\" is not an integer"),
            (4, "name is not UTF-8"),
            (5, "the stock \"-1\""),
            (6, "line 2 has the sku A too"),
            (7, "the sku \"D D\""),
            (8, "the stock \"2147483648\""),
        ] {
            assert!(found[at].1.contains(words), "{words}: {found:?}");
        }
    }

    #[test]
    fn the_header_must_be_there() {
        for (text, words) in [
            ("", "is empty"),
            ("A,Kaos,1\n", "has \"a\""),
            ("sku;name;stock\nA;Kaos;1\n", "separated by commas"),
            ("sku,name\n", "has no stock"),
            ("sku,name,stock,price\n", "has \"price\""),
            ("sku,sku,name,stock\n", "has sku twice"),
        ] {
            let found = errors(text.as_bytes());
            assert!(matches!(&found[..], [(1, message)] if message.contains(words)), "{text:?}: {found:?}");
        }
    }
}
