//! Orders of several products: all or nothing, through their whole lives.

use super::*;

suite! {
    every_store: [
        all_lines_or_none,
        a_basket_is_read_as_it_was_ordered,
        each_change_moves_all_lines,
        a_basket_that_is_redelivered_gets_its_verdict_again,
        the_key_of_a_basket_repeats_only_this_basket,
        the_short_line_of_a_stored_rejection_is_named,
        baskets_in_opposite_order_at_once,
    ],
    sql_only: [],
}

/// An order of these products and totals.
fn basket<const N: usize>(of: [(ProductId, u32); N]) -> NewOrder {
    let line = |(product_id, total)| Line { product_id, total: Quantity::new(total).unwrap() };
    let lines = of.into_iter().map(line).collect::<Vec<_>>().try_into().unwrap();
    NewOrder { lines, ..order(of[0].0, 1) }
}

const fn too_few(product_id: ProductId, available: u32) -> Verdict {
    Verdict::Rejected(Rejection::InsufficientStock { product_id, available })
}

async fn all_lines_or_none(database: Database) {
    let (shirt, hat, sock) =
        (database.product_of(5).await, database.product_of(3).await, database.product_of(10).await);
    let orders = [
        basket([(hat, 2), (shirt, 1), (sock, 4)]),
        basket([(shirt, 1), (hat, 2)]),
        basket([(shirt, 4), (hat, 1)]),
        order(sock, 6),
        basket([(sock, 1), (hat, 1)]),
        basket([(sock, 1), (stranger(), 1)]),
    ];
    let verdicts = database.decide(&orders).await;
    assert_eq!(accepted(&verdicts), [true, false, true, true, false, false]);
    assert_eq!(verdicts[1], too_few(hat, 1));
    assert_eq!(verdicts[4], too_few(sock, 0), "the first line that is short");
    assert_eq!(verdicts[5], too_few(sock, 0));
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    assert_eq!(database.pieces(hat).await, [3, 0, 3]);
    assert_eq!(database.pieces(sock).await, [10, 0, 10]);
    let unknown = database.decide(&[basket([(stranger(), 1), (shirt, 1)])]).await;
    assert_eq!(unknown, [Verdict::Rejected(Rejection::ProductNotFound { product_id: stranger() })]);
    database.assert_balanced().await;
}

async fn a_basket_is_read_as_it_was_ordered(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(3).await);
    let buyer = Some("buyer-1".to_owned().try_into().unwrap());
    let basket = NewOrder { buyer: buyer.clone(), ..basket([(hat, 2), (shirt, 1)]) };
    let single = NewOrder { buyer: buyer.clone(), ..order(hat, 1) };
    database.decide(&[basket.clone(), single.clone()]).await;
    for new in [&basket, &single] {
        let stored = database.store.order(new.id).await.unwrap().unwrap();
        assert_eq!((stored.lines.as_ref(), &stored.buyer), (Some(&new.lines), &buyer));
        assert_eq!(stored.lane(), Some(hat));
    }
    // It is in the list of each of its products.
    let ids = async |id| database.orders_of(id).await.iter().map(|order| order.id).collect::<Vec<_>>();
    assert_eq!(ids(hat).await, [basket.id, single.id]);
    assert_eq!(ids(shirt).await, [basket.id]);
}

async fn each_change_moves_all_lines(database: Database) {
    let (shirt, hat) = (database.product_of(10).await, database.product_of(10).await);
    let baskets = [1, 2, 3].map(|total| basket([(hat, total), (shirt, 3 * total)]));
    // Nine shirts are left for the third one, which asks for nine: only six are accepted before it.
    let verdicts = database.settle_within(&commands(&baskets[..2]), NO_TIME).await;
    assert_eq!(accepted(&verdicts), [true, true]);
    assert_eq!(database.pieces(hat).await, [10, 7, 3]);
    assert_eq!(database.pieces(shirt).await, [10, 1, 9]);
    assert_eq!(database.settle(&[change_of(&baskets[0], PAY)]).await, [PAID]);
    assert_eq!(database.pieces(hat).await, [9, 7, 2]);
    assert_eq!(database.pieces(shirt).await, [7, 1, 6]);
    assert_eq!(database.settle(&[change_of(&baskets[1], Change::Expire)]).await, [EXPIRED]);
    assert_eq!(database.pieces(hat).await, [9, 9, 0]);
    assert_eq!(database.pieces(shirt).await, [7, 7, 0]);
    assert_eq!(accepted(&database.decide(&baskets[2..]).await), [false], "nine shirts of seven");
    let last = basket([(shirt, 7), (hat, 9)]);
    assert_eq!(accepted(&database.decide(slice::from_ref(&last)).await), [true]);
    assert_eq!(database.settle(&[change_of(&last, Change::Cancel)]).await, [CANCELLED]);
    assert_eq!(database.pieces(hat).await, [9, 9, 0]);
    assert_eq!(database.pieces(shirt).await, [7, 7, 0]);
    // A change that names other products is of another order.
    let stray = ChangeOrder {
        other_products: [].into(),
        ..ChangeOrder::of(
            &database.store.order(last.id).await.unwrap().unwrap(),
            SystemClock.command_id(),
            PAY,
            ReplyMode::Detached,
            Origin::default(),
        )
        .unwrap()
    };
    assert_eq!(database.settle(&[stray.into()]).await, [Verdict::OrderNotFound]);
    database.assert_balanced().await;
}

async fn a_basket_that_is_redelivered_gets_its_verdict_again(database: Database) {
    let (shirt, hat) = (database.product_of(2).await, database.product_of(2).await);
    let baskets = [basket([(shirt, 2), (hat, 1)]), basket([(hat, 1), (shirt, 1)])];
    let verdicts = database.decide(&baskets).await;
    assert_eq!(accepted(&verdicts), [true, false]);
    // The second one is not stored: now it finds what it asks for only if the first one is given up.
    assert_eq!(database.decide(&baskets).await, verdicts);
    assert_eq!(database.settle(&[change_of(&baskets[0], Change::Cancel)]).await, [CANCELLED]);
    assert_eq!(
        database.decide(&baskets[..1]).await,
        verdicts[..1],
        "what was decided, whatever happened since"
    );
    assert_eq!(database.pieces(shirt).await, [2, 2, 0]);
}

async fn the_key_of_a_basket_repeats_only_this_basket(database: Database) {
    let (shirt, hat) = (database.product_of(9).await, database.product_of(9).await);
    let first = keyed(basket([(shirt, 2), (hat, 1)]), "a-key");
    assert_eq!(accepted(&database.decide(slice::from_ref(&first)).await), [true]);
    let again = keyed(basket([(shirt, 2), (hat, 1)]), "a-key");
    let stored = database.store.order(first.id).await.unwrap().unwrap();
    assert_eq!(database.decide(&[again]).await, [Verdict::AlreadyPlaced(stored)]);
    let buyer = Some("buyer-1".to_owned().try_into().unwrap());
    for other in [
        basket([(hat, 1), (shirt, 2)]),
        basket([(shirt, 2), (hat, 2)]),
        order(shirt, 2),
        NewOrder { buyer, ..basket([(shirt, 2), (hat, 1)]) },
    ] {
        assert_eq!(database.decide(&[keyed(other, "a-key")]).await, [KEY_REUSED]);
    }
    assert_eq!(database.pieces(shirt).await, [9, 7, 2]);
}

async fn the_short_line_of_a_stored_rejection_is_named(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(1).await);
    let late = NewOrder { reply: ReplyMode::Detached, ..basket([(shirt, 1), (hat, 2)]) };
    assert_eq!(database.decide(slice::from_ref(&late)).await, [too_few(hat, 1)]);
    let stored = database.store.order(late.id).await.unwrap().unwrap();
    assert_eq!(stored.rejection(), Some(Rejection::InsufficientStock { product_id: hat, available: 1 }));
    assert_eq!(stored.lines, Some(late.lines.clone()));
    assert_eq!(database.decide(&[late]).await, [too_few(hat, 1)]);
}

/// Baskets of the same products in every order, decided by several workers at once: no deadlock ends in an error, and no piece
/// is sold twice.
async fn baskets_in_opposite_order_at_once(database: Database) {
    const PIECES: u32 = 40;
    let mut products = Vec::new();
    for _ in 0..4 {
        products.push(database.product_of(PIECES).await);
    }
    let mut workers = JoinSet::new();
    for worker in 0..4 {
        let (store, products) = (database.store.clone(), products.clone());
        workers.spawn(async move {
            let mut accepted = Vec::new();
            for round in 0..20 {
                let at = |step: usize| products[(worker + step * (1 + round % 3)) % 4];
                let baskets = [basket([(at(0), 1), (at(1), 2)]), basket([(at(2), 1)])];
                let verdicts = decide(&*store, &baskets).await;
                let reserved = baskets.into_iter().zip(verdicts).filter(|(_, verdict)| is_reserved(verdict));
                accepted.extend(reserved.map(|(order, _)| order));
            }
            accepted
        });
    }
    let accepted: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    for id in products {
        let lines = accepted.iter().flat_map(|order| order.lines.as_slice());
        let sold: u32 = lines.filter(|line| line.product_id == id).map(|line| line.total.get()).sum();
        assert_eq!(database.pieces(id).await, [PIECES, PIECES - sold, sold]);
    }
    database.assert_balanced().await;
}
