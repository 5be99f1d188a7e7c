//! Data that somebody changed by hand, and commands that meet it.

use super::*;

suite! {
    every_store: [],
    sql_only: [
        the_database_refuses_invalid_rows,
        every_database_has_its_own_id,
        an_inventory_below_its_reservations_stops_no_other_order,
        only_the_command_that_the_database_refuses_is_undecidable,
        a_change_of_an_order_without_inventory_is_undecidable,
        corrupt_rows_stop_no_other_command,
        a_rejection_without_a_valid_reason_is_corrupt,
    ],
}

async fn the_database_refuses_invalid_rows(database: Database) {
    let id = database.product_of(5).await;
    let (reserved, rejected) = (order(id, 2), detached_order(id, 9));
    database.decide(&[reserved.clone(), rejected.clone()]).await;
    let (reserved, rejected) = (reserved.id.uuid().simple(), rejected.id.uuid().simple());
    let new = SystemClock.order_id().uuid().simple();
    let insert =
        "INSERT INTO orders (id, product_id, total, status, expires_at, rejected_available, rejection_reason)
                  VALUES";
    let good = [
        format!("{insert} (X'{new}', {id}, 1, 'reserved', 0, NULL, NULL)"),
        format!("DELETE FROM orders WHERE id = X'{new}'"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, 0, 'insufficient_stock')"),
        format!("DELETE FROM orders WHERE id = X'{new}'"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, NULL, 'idempotency_key_reused')"),
        format!("DELETE FROM orders WHERE id = X'{new}'"),
    ];
    for statement in good {
        database.by_hand(&statement).await.unwrap();
    }
    let bad = [
        // Oversold, or out of balance.
        format!("UPDATE inventories SET available_stock = -1, reserved_stock = 6 WHERE product_id = {id}"),
        format!("UPDATE inventories SET available_stock = 6, reserved_stock = -1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET available_stock = available_stock - 1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET reserved_stock = reserved_stock + 1 WHERE product_id = {id}"),
        format!("UPDATE inventories SET stored_stock = 4 WHERE product_id = {id}"),
        format!("UPDATE inventories SET stored_stock = NULL WHERE product_id = {id}"),
        format!(
            "UPDATE inventories SET stored_stock = -1, available_stock = -1, reserved_stock = 0 WHERE product_id = {id}"
        ),
        // A product has one inventory, and an inventory has a product.
        format!("INSERT INTO inventories (product_id) VALUES ({id})"),
        format!("INSERT INTO inventories (product_id) VALUES ({})", stranger()),
        format!("DELETE FROM products WHERE id = {id}"),
        // Invalid orders.
        format!("{insert} (X'{reserved}', {id}, 1, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 0, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, -1, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, NULL, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'pending', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'RESERVED', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, NULL, 0, NULL, NULL)"),
        format!("{insert} (X'{new}', NULL, 1, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (NULL, {id}, 1, 'reserved', 0, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'reserved', NULL, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'reserved', 0, 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', 0, 0, 'insufficient_stock')"),
        format!("{insert} (X'{new}', {id}, 1, 'paid', 0, 0, NULL)"),
        // Rejections without their reason, of no known reason, or with what does not belong to it.
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, NULL, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, 0, NULL)"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, NULL, 'whim')"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, NULL, 'IDEMPOTENCY_KEY_REUSED')"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, NULL, 'insufficient_stock')"),
        format!("{insert} (X'{new}', {id}, 1, 'rejected', NULL, 0, 'idempotency_key_reused')"),
        format!("{insert} (X'{new}', {id}, 1, 'reserved', 0, NULL, 'idempotency_key_reused')"),
        format!("UPDATE orders SET rejection_reason = NULL WHERE id = X'{rejected}'"),
        format!("UPDATE orders SET status = 'rejected' WHERE id = X'{reserved}'"),
        format!("UPDATE orders SET status = 'reserved' WHERE id = X'{rejected}'"),
    ];
    for statement in bad {
        let error = database.by_hand(&statement).await.expect_err(&statement);
        assert!(error.as_database_error().is_some(), "{statement}: {error}");
    }
    assert_eq!(database.pieces(id).await, [5, 3, 2]);
    assert_eq!(database.orders_of(id).await.len(), 2);
    database.assert_balanced().await;
}

async fn every_database_has_its_own_id(database: Database) {
    let id = database.store.installation_id().await.unwrap();
    assert!(!id.is_nil());
    assert_eq!(database.home.open().await.installation_id().await.unwrap(), id, "opened again");
    let other = match &database.home {
        Home::Memory { .. } => Database::memory().await,
        Home::Sqlite { .. } => Database::sqlite().await,
        Home::MySql { .. } => Database::mysql().await,
    };
    assert_ne!(other.store.installation_id().await.unwrap(), id);
    database.by_hand("DELETE FROM installation").await.unwrap();
    let error = database.store.installation_id().await.unwrap_err();
    assert!(error.to_string().contains("table installation"), "{error}");
}

const UNDECIDABLE: Expected = Expected::Undecidable;

/// The inventory has a piece less than its orders reserve: as many orders expire as it has pieces for.
async fn an_inventory_below_its_reservations_stops_no_other_order(database: Database) {
    let id = database.product_of(5).await;
    let orders = database.reserve_for(id, [1; 5], NO_TIME).await;
    database
        .by_hand(&format!(
            "UPDATE inventories SET stored_stock = 4, reserved_stock = 4 WHERE product_id = {id}"
        ))
        .await
        .unwrap();
    let mut batch: Vec<_> = orders.iter().map(|order| change_of(order, Change::Expire)).collect();
    batch.push(order(id, 4).into());
    let decided = database.store.decide(&batch, TTL).await.unwrap();
    assert_eq!(decided.verdicts[..5], [EXPIRED, EXPIRED, EXPIRED, EXPIRED, UNDECIDABLE]);
    assert!(is_reserved(&decided.verdicts[5]), "{:?}", decided.verdicts);
    assert_eq!(decided.undecidable.iter().map(|one| one.index).collect::<Vec<_>>(), [4]);
    assert_eq!(database.pieces(id).await, [4, 0, 4]);
}

async fn only_the_command_that_the_database_refuses_is_undecidable(database: Database) {
    let (good, bad) = (database.product_of(100).await, database.product_of(100).await);
    let poison = order(bad, 7);
    let hex = poison.id.uuid().simple();
    let trigger = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => format!(
            "CREATE TRIGGER refuse_one BEFORE INSERT ON orders WHEN NEW.id = X'{hex}'
             BEGIN SELECT RAISE(ABORT, 'refused by hand'); END"
        ),
        Home::MySql { .. } => format!(
            "CREATE TRIGGER refuse_one BEFORE INSERT ON orders FOR EACH ROW
             IF NEW.id = X'{hex}' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused by hand'; END IF"
        ),
    };
    database.by_hand(&trigger).await.unwrap();
    let mut batch: Vec<_> = (0..20).map(|n| order(if n % 2 == 0 { good } else { bad }, 1)).collect();
    batch.insert(13, poison);
    let decided = database.store.decide(&commands(&batch), TTL).await.unwrap();
    for (index, verdict) in decided.verdicts.iter().enumerate() {
        assert_eq!(is_reserved(verdict), index != 13, "{index}: {verdict:?}");
    }
    assert_eq!(decided.undecidable.len(), 1);
    assert_eq!(decided.undecidable[0].index, 13);
    assert!(decided.undecidable[0].cause.contains("refused by hand"), "{:?}", decided.undecidable);
    assert_eq!(decided.events.len(), 20);
    database.assert_balanced().await;
}

/// Somebody deleted the inventory of a product that has orders. The orders still exist, so no client gets *not found*.
async fn a_change_of_an_order_without_inventory_is_undecidable(database: Database) {
    let (gone, kept) = (database.product_of(5).await, database.product_of(5).await);
    let [reserved, paid] = database.reserve(gone, [1, 1]).await;
    database.change(&paid, PAY).await;
    let [other] = database.reserve(kept, [1]).await;
    database.by_hand(&format!("DELETE FROM inventories WHERE product_id = {gone}")).await.unwrap();
    let batch = [change_of(&reserved, PAY), change_of(&other, PAY), change_of(&paid, Change::Cancel)];
    assert_eq!(database.settle(&batch).await, [UNDECIDABLE, PAID, PAID]);
    assert_eq!(database.status(&reserved).await, OrderStatus::Reserved);
}

/// Rows that antre never writes.
async fn corrupt_rows_stop_no_other_command(database: Database) {
    let (bad, good) = (database.product_of(10).await, database.product_of(10).await);
    let [broken, sound] = database.reserve_for(bad, [1, 1], NO_TIME).await;
    let [other] = database.reserve_for(good, [1], NO_TIME).await;
    let hex = broken.id.uuid().simple();
    let statements = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => vec![
            "PRAGMA ignore_check_constraints = ON".to_owned(),
            format!("UPDATE orders SET total = 0 WHERE id = X'{hex}'"),
            format!("UPDATE products SET name = ' ' WHERE id = {bad}"),
        ],
        Home::MySql { .. } => vec![
            "ALTER TABLE orders ALTER CHECK total_is_positive NOT ENFORCED".to_owned(),
            format!("UPDATE orders SET total = 0 WHERE id = X'{hex}'"),
            format!("UPDATE products SET name = ' ' WHERE id = {bad}"),
        ],
    };
    database.by_hand(&statements.join(";")).await.unwrap();
    let store = &database.store;
    // Lists leave them out and continue after them.
    let everything = OrderPage::first(1);
    let (mut listed, mut page) = (Vec::new(), everything);
    loop {
        let Page { rows, next } = store.orders(page.clone()).await.unwrap();
        listed.extend(rows.iter().map(|order| order.id));
        let Some(next) = next else { break };
        page.after = Some(next);
    }
    assert_eq!(listed, [sound.id, other.id]);
    let products = store.products(false, None, 10).await.unwrap().rows;
    assert_eq!(products.iter().map(|product| product.id).collect::<Vec<_>>(), [good]);
    let due = store.due(None, 10).await.unwrap().rows;
    assert_eq!(due.iter().map(|order| order.id).collect::<Vec<_>>(), [sound.id, other.id]);
    // A request by id gets an error.
    assert!(matches!(store.order(broken.id).await, Err(StoreError::Corrupt(_))));
    // In a batch, only its own command is undecidable.
    let batch = [&broken, &sound, &other].map(|order| change_of(order, Change::Expire));
    assert_eq!(database.settle(&batch).await, [UNDECIDABLE, EXPIRED, EXPIRED]);
    assert_eq!(database.settle(&commands(&[broken, order(bad, 1)])).await[0], UNDECIDABLE);
}

/// Rows that antre never writes.
async fn a_rejection_without_a_valid_reason_is_corrupt(database: Database) {
    let id = database.product_of(3).await;
    let order = detached_order(id, 4);
    assert_eq!(database.decide(slice::from_ref(&order)).await, [rejected(3)]);
    let without_checks = match &database.home {
        Home::Memory { .. } => unreachable!("for SQL only"),
        Home::Sqlite { .. } => "PRAGMA ignore_check_constraints = ON",
        Home::MySql { .. } => {
            "ALTER TABLE orders
                 ALTER CHECK rejected_ones_have_a_reason NOT ENFORCED,
                 ALTER CHECK rejection_reason_is_known NOT ENFORCED,
                 ALTER CHECK rejected_available_has_its_reason NOT ENFORCED"
        }
    };
    for (reason, what) in [
        ("NULL", "no rejection_reason"),
        ("'whim'", "an unknown rejection_reason"),
        ("'product_not_found'", "a rejected_available that does not agree"),
        ("'idempotency_key_reused'", "a rejected_available that does not agree"),
    ] {
        let update = format!("UPDATE orders SET rejection_reason = {reason}");
        database.by_hand(&format!("{without_checks};{update}")).await.unwrap();
        let error = database.store.order(order.id).await.unwrap_err().to_string();
        assert!(error.contains(what), "{reason}: {error}");
        let page = OrderPage { product_id: Some(id), ..OrderPage::first(10) };
        assert_eq!(database.store.orders(page).await.unwrap().rows, [], "{reason}");
        assert_eq!(database.decide(slice::from_ref(&order)).await, [Verdict::Undecidable], "{reason}");
    }
}
