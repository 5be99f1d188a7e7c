//! `antre import`: creates the products of a CSV file with their stock.
//!
//! It writes to the database, not through an API: it needs the same settings as the other tools and no address, and a product
//! and its stock are created in one transaction, which the API does not offer. A new product needs no more: workers find its
//! lane within seconds, or its first order opens it. A recount waits out the leases of the APIs' order gates, as they do.

mod file;

use std::collections::HashMap;

use serde::Serialize;

use self::file::{LineError, Row};
use super::{
    database,
    outcome::{Finding, ToolError},
    output::{self, count},
};
use crate::{
    domain::{inventory::Inventory, product::Product},
    server_url::shown,
    service::order_gate::OrderGate,
    settings::{Database, Settings, tools::Import},
    store::{Creation, Recount, Store, StoreError},
};

/// How many SKUs one statement looks for.
const SKUS_PER_STATEMENT: usize = 500;

pub(super) async fn run(settings: &Settings, arguments: Import) -> Result<Finding, ToolError> {
    let Import { file, dry_run, recount, output } = arguments;
    let database = settings.backends.database()?;
    let (Database::Sqlite(url) | Database::MySql(url)) = &database;
    let bytes = tokio::fs::read(&file)
        .await
        .map_err(|error| ToolError::Failed(format!("cannot read {}: {error}", file.display())))?;
    let mut report = Report { database: shown(url), dry_run, ..Report::default() };
    match file::read(&bytes) {
        Err(errors) => report.errors = errors,
        Ok(rows) => {
            let failed = |error: String, done: &Report| {
                let done = count(done.created, "product", "products");
                let again = "it is safe to run it again";
                ToolError::Failed(format!(
                    "cannot import into {}: {error}. {done} created; {again}",
                    shown(url)
                ))
            };
            let store = database::open(&database).await.map_err(|error| failed(error, &report))?;
            let imported = Importer { store: &*store, dry_run, recount }.import(&rows, &mut report).await;
            store.close().await;
            imported.map_err(|error| failed(error.to_string(), &report))?;
        }
    }
    if output.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    Ok(if report.is_complete() { Finding::None } else { Finding::Some })
}

/// What is done with the rows of a valid file.
struct Importer<'a> {
    store: &'a dyn Store,
    dry_run: bool,
    recount: bool,
}

impl Importer<'_> {
    async fn import(&self, rows: &[Row], report: &mut Report) -> Result<(), StoreError> {
        for rows in rows.chunks(SKUS_PER_STATEMENT) {
            let skus: Vec<_> = rows.iter().map(|row| row.sku.clone()).collect();
            let known = self.store.products_by_sku(&skus).await?;
            let known: HashMap<_, _> =
                known.into_iter().filter_map(|product| Some((product.sku.clone()?, product))).collect();
            for row in rows {
                match known.get(&row.sku) {
                    Some(product) => self.compare(row, product, report).await?,
                    None => self.create(row, report).await?,
                }
            }
        }
        if report.recounted > 0 && !self.dry_run {
            OrderGate::outlast_leases().await;
        }
        Ok(())
    }

    async fn create(&self, row: &Row, report: &mut Report) -> Result<(), StoreError> {
        if !self.dry_run
            && let Creation::SkuTaken(id) = self.store.create(row.product()).await?
        {
            // Another import was faster.
            if let Some((product, _)) = self.store.inventory(id).await? {
                self.compare(row, &product, report).await?;
            }
            return Ok(());
        }
        report.created += 1;
        Ok(())
    }

    /// A product that exists is changed only where the seller asks for it.
    async fn compare(&self, row: &Row, product: &Product, report: &mut Report) -> Result<(), StoreError> {
        let Some((product, inventory)) = &self.store.inventory(product.id).await? else { return Ok(()) };
        if product.archived_at.is_some() {
            report.add(row, product, Difference::Archived);
            return Ok(());
        }
        let is_renamed = product.name != row.name;
        if is_renamed {
            let name = product.name.as_str().to_owned();
            report.add(row, product, Difference::Name { name, name_in_file: row.name.as_str().to_owned() });
        }
        if inventory.stored() == row.stock.get() {
            report.unchanged += 1;
        } else if !self.recount {
            report.add(row, product, Difference::stock(inventory, row));
        } else if row.stock.get() < inventory.reserved() {
            report.add(row, product, Difference::below_reserved(inventory, row));
        } else if self.dry_run {
            report.recounted += 1;
        } else {
            match self.store.recount(product.id, row.stock).await? {
                Recount::Done(..) => report.recounted += 1,
                Recount::BelowReserved(_) => {
                    report.add(row, product, Difference::below_reserved(inventory, row));
                }
                Recount::Archived => report.add(row, product, Difference::Archived),
                // The second is never answered to a recount that expects nothing.
                Recount::NoSuchProduct | Recount::StockChanged { .. } => {}
            }
        }
        Ok(())
    }
}

/// What was done, or would be.
#[derive(Debug, Default, Serialize)]
struct Report {
    database: String,
    dry_run: bool,
    created: u64,
    recounted: u64,
    /// They exist, with this stock.
    unchanged: u64,
    differences: Vec<Line>,
    /// Lines that are wrong. If there are any, nothing was written.
    errors: Vec<LineError>,
}

/// A line whose product exists and differs.
#[derive(Debug, Serialize)]
struct Line {
    line: u64,
    sku: String,
    product_id: u64,
    #[serde(flatten)]
    difference: Difference,
}

/// What differs; it was left as it is.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Difference {
    Name { name: String, name_in_file: String },
    Stock { stored_stock: u32, stock_in_file: u32 },
    BelowReserved { reserved_stock: u32, stock_in_file: u32 },
    Archived,
}

impl Difference {
    fn stock(inventory: &Inventory, row: &Row) -> Self {
        Self::Stock { stored_stock: inventory.stored(), stock_in_file: row.stock.get() }
    }

    fn below_reserved(inventory: &Inventory, row: &Row) -> Self {
        Self::BelowReserved { reserved_stock: inventory.reserved(), stock_in_file: row.stock.get() }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Name { name, name_in_file } => {
                format!("is called {name:?}, and {name_in_file:?} in the file; the name stays")
            }
            Self::Stock { stored_stock, stock_in_file } => format!(
                "has {stored_stock} stored, and {stock_in_file} in the file; the stock stays (--recount sets it, and brings pieces \
                 back that were sold since they were counted)"
            ),
            Self::BelowReserved { reserved_stock, stock_in_file } => format!(
                "has {reserved_stock} reserved by buyers, and {stock_in_file} in the file: the stock cannot be less, and stays"
            ),
            Self::Archived => {
                "is archived, and stays as it is: to sell it again, give the line another SKU".to_owned()
            }
        }
    }
}

impl Report {
    fn add(&mut self, row: &Row, product: &Product, difference: Difference) {
        let (sku, product_id) = (row.sku.as_str().to_owned(), product.id.get());
        self.differences.push(Line { line: row.line, sku, product_id, difference });
    }

    /// Whether all stock is as the file says. A name does not matter for that.
    fn is_complete(&self) -> bool {
        let is_name = |line: &Line| matches!(line.difference, Difference::Name { .. });
        self.errors.is_empty() && self.differences.iter().all(is_name)
    }

    fn print(&self) -> std::io::Result<()> {
        for LineError { line, message } in &self.errors {
            output::line(format_args!("line {line}: {message}"))?;
        }
        if !self.errors.is_empty() {
            let errors = count(self.errors.len() as u64, "error", "errors");
            return output::line(format_args!("{errors}; nothing was written."));
        }
        for Line { line, sku, product_id, difference } in &self.differences {
            let sentence = difference.sentence();
            output::line(format_args!("line {line}: {sku} (product {product_id}) {sentence}"))?;
        }
        let products = |number| count(number, "product", "products");
        let would = if self.dry_run { "would be " } else { "" };
        output::line(format_args!(
            "{}: {} {would}created, {} {would}recounted, {} as in the file.",
            self.database,
            products(self.created),
            products(self.recounted),
            products(self.unchanged),
        ))
    }
}
