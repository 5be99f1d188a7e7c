//! Random batches and recounts, compared with a model of the rules.

use super::*;

suite! {
    every_store: [
        any_history_matches_the_model,
    ],
    sql_only: [],
}

/// One step with four products, of which the last does not exist.
#[derive(Clone, Debug)]
enum Step {
    Decide(Vec<Pick>),
    Recount { product: usize, counted: u32 },
}

#[derive(Clone, Debug)]
enum Pick {
    New {
        product: usize,
        total: u32,
        late: bool,
    },
    /// An order that was picked before, perhaps in the same batch.
    Again(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let total = prop_oneof![8 => 1_u32..12, 1 => 1..=Quantity::MAX];
    let pick = prop_oneof![
        2 => (0..4_usize, total, any::<bool>()).prop_map(|(product, total, late)| Pick::New { product, total, late }),
        1 => any::<Index>().prop_map(Pick::Again),
    ];
    let counted = prop_oneof![8 => 0_u32..20, 1 => 0..=Stock::MAX];
    let step = prop_oneof![
        3 => vec(pick, 0..12).prop_map(Step::Decide),
        1 => (0..4_usize, counted).prop_map(|(product, counted)| Step::Recount { product, counted }),
    ];
    vec(step, 1..16)
}

/// The rules, on plain numbers.
struct Model {
    /// Available and reserved pieces.
    pieces: BTreeMap<ProductId, (u32, u32)>,
    stored: BTreeMap<OrderId, (ProductId, Verdict)>,
}

impl Model {
    /// The expected verdicts. `expires_at` is the time that the store gave to the reservations of this batch.
    fn decide(&mut self, orders: &[NewOrder], expires_at: Option<Timestamp>) -> Vec<Verdict> {
        let mut decided: HashMap<OrderId, Verdict> = HashMap::new();
        let verdict = |order: &NewOrder| {
            if let Some((_, verdict)) = self.stored.get(&order.id) {
                return verdict.clone();
            }
            let verdict = decided.entry(order.id).or_insert_with(|| {
                let Line { product_id, total } = order.lines.first();
                let total = total.get();
                let Some((available, reserved)) = self.pieces.get_mut(&product_id) else {
                    return Verdict::Rejected(Rejection::ProductNotFound { product_id });
                };
                let fits = *available >= total;
                let verdict = match expires_at {
                    Some(expires_at) if fits => Verdict::Reserved { expires_at },
                    None if fits => panic!("{order:?} fits, but the store reserved nothing now"),
                    _ => {
                        Verdict::Rejected(Rejection::InsufficientStock { product_id, available: *available })
                    }
                };
                if fits {
                    (*available, *reserved) = (*available - total, *reserved + total);
                }
                if fits || order.reply == ReplyMode::Detached {
                    self.stored.insert(order.id, (product_id, verdict.clone()));
                }
                verdict
            });
            verdict.clone()
        };
        orders.iter().map(verdict).collect()
    }

    fn recount(&mut self, id: ProductId, counted: u32) -> Option<Result<(), StockBelowReserved>> {
        let (available, reserved) = self.pieces.get_mut(&id)?;
        Some(match counted.checked_sub(*reserved) {
            None => Err(StockBelowReserved { reserved: *reserved }),
            Some(rest) => {
                *available = rest;
                Ok(())
            }
        })
    }
}

async fn any_history_matches_the_model(database: Database) {
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    block_in_place(|| {
        let history = |steps| {
            runtime.block_on(replay(&database, steps));
            Ok(())
        };
        TestRunner::new(config).run(&steps(), history).unwrap_or_else(|error| panic!("{error}"));
    });
}

async fn replay(database: &Database, steps: Vec<Step>) {
    let mut products = Vec::new();
    for _ in 0..3 {
        products.push(database.product_of(0).await);
    }
    let mut model =
        Model { pieces: products.iter().map(|id| (*id, (0, 0))).collect(), stored: BTreeMap::new() };
    products.push(stranger());
    let mut picked: Vec<NewOrder> = Vec::new();
    for step in steps {
        match step {
            Step::Recount { product, counted } => {
                let found = database.store.recount(products[product], stock(counted)).await.unwrap();
                let expected = model.recount(products[product], counted);
                let found = match found {
                    Recount::Done(..) => Some(Ok(())),
                    Recount::BelowReserved(below) => Some(Err(below)),
                    Recount::NoSuchProduct => None,
                    Recount::Archived => panic!("nobody archived it"),
                    Recount::StockChanged { .. } => panic!("nothing was expected"),
                };
                assert_eq!(found, expected);
            }
            Step::Decide(picks) => {
                let mut batch = Vec::new();
                for pick in picks {
                    let order = match pick {
                        Pick::New { product, total, late: false } => order(products[product], total),
                        Pick::New { product, total, late: true } => detached_order(products[product], total),
                        Pick::Again(_) if picked.is_empty() => continue,
                        Pick::Again(index) => index.get(&picked).clone(),
                    };
                    batch.push(order.clone());
                    picked.push(order);
                }
                let found = database.store.decide(&commands(&batch), TTL).await.unwrap().verdicts;
                let expires_at = batch.iter().zip(&found).find_map(|(order, verdict)| match verdict {
                    Verdict::Reserved { expires_at } if !model.stored.contains_key(&order.id) => {
                        Some(*expires_at)
                    }
                    _ => None,
                });
                assert_eq!(found, model.decide(&batch, expires_at));
            }
        }
        for (id, (available, reserved)) in &model.pieces {
            assert_eq!(database.pieces(*id).await, [available + reserved, *available, *reserved]);
        }
    }
    for id in model.pieces.keys() {
        let expected = model.stored.iter().filter(|(_, (product, _))| product == id);
        let expected: Vec<_> = expected.map(|(id, (_, verdict))| (*id, verdict.clone())).collect();
        let found: Vec<_> =
            database.orders_of(*id).await.iter().map(|order| (order.id, Verdict::on_stored(order))).collect();
        assert_eq!(found, expected);
    }
}
