//! The decision alone: the time of `domain::decide` for a full batch of 1,000 orders. The claim is less than 100 µs: a batch
//! waits for the database, not for the decision.

use std::{hint::black_box, time::Duration};

use antre::{
    clock::{Clock, SystemClock},
    domain::{
        command::{Command, NewOrder, ReplyMode},
        decide::{self, ArchivedProducts, Snapshot, SpecialTerms, Times},
        holdings::Holdings,
        ids::ProductId,
        inventory::Inventories,
        inventory::{Inventory, Stock},
        lines::Lines,
        order::Quantity,
        origin::Origin,
        rules::Rules,
    },
};
use criterion::{BatchSize, Criterion, Throughput};

const ORDERS: u32 = 1_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    batches(&mut criterion);
    criterion.final_summary();
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide 1,000 orders");
    group.throughput(Throughput::Elements(ORDERS.into()));
    for (name, products, stock) in [
        ("one hot product", 1, Stock::MAX),
        ("one hot product, sold out halfway", 1, ORDERS),
        ("100 products in turn", 100, Stock::MAX),
    ] {
        let (inventories, orders) = batch(products, stock);
        let times = Times { decided_at: SystemClock.now(), expires_at: SystemClock.now() };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || inventories.clone(),
                |inventories| {
                    let snapshot = Snapshot {
                        inventories,
                        archived: ArchivedProducts::new(),
                        terms: SpecialTerms::new(),
                        holdings: Holdings::new(),
                        stored: None,
                        times,
                        rules: Rules::of_ttl(Duration::from_secs(900)),
                    };
                    decide::decide(snapshot, black_box(&orders))
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Orders of one to three pieces, for each product in turn.
fn batch(products: u64, stock: u32) -> (Inventories, Vec<Command>) {
    let ids: Vec<_> = (1..=products).filter_map(ProductId::new).collect();
    let mut inventory = Inventory::EMPTY;
    if let Some(stock) = Stock::new(stock) {
        let _ = inventory.recount(stock); // nothing is reserved yet that it could be below
    }
    let orders = (0..ORDERS).zip(ids.iter().cycle()).filter_map(|(number, product_id)| {
        let total = Quantity::new(number % 3 + 1)?;
        Some(Command::Place(NewOrder {
            id: SystemClock.order_id(),
            lines: Lines::one(*product_id, total),
            buyer: None,
            reply: ReplyMode::Until(SystemClock.now()),
            key: None,
            origin: Origin::default(),
        }))
    });
    (ids.iter().map(|id| (*id, inventory)).collect(), orders.collect())
}
