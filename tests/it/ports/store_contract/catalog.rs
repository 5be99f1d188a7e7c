//! Products and their stock.

use super::*;

suite! {
    every_store: [
        a_new_product_has_no_pieces,
        a_name_is_read_as_it_was_written,
        products_are_paged_by_id,
        after_a_recount_unreserved_pieces_are_available,
        a_recount_below_what_is_reserved_changes_nothing,
        unknown_ids_find_nothing,
        sold_out_products_are_known_with_the_commit,
    ],
    sql_only: [],
}

async fn a_new_product_has_no_pieces(database: Database) {
    let store = &database.store;
    let shirt = store.create_product(name("Kaos Polos")).await.unwrap();
    let twin = store.create_product(name("Kaos Polos")).await.unwrap();
    assert!(twin.id > shirt.id, "{} after {}", twin.id, shirt.id);
    for product in [shirt, twin] {
        assert_eq!(product.name, name("Kaos Polos"));
        assert_eq!(store.product(product.id).await.unwrap().as_ref(), Some(&product));
        assert_eq!(store.inventory(product.id).await.unwrap(), Some((product, Inventory::EMPTY)));
    }
}

async fn a_name_is_read_as_it_was_written(database: Database) {
    let store = &database.store;
    let longest = "🦀".repeat(ProductName::MAX_LENGTH);
    let family = "👩‍👩‍👧‍👦 e\u{301} \u{10FFFF}";
    for text in [
        "a",
        "Kaos Polos",
        longest.as_str(),
        family,
        "nul\0inside",
        "\0",
        "\\ ' \" ` % _ ? :x $1",
        "عربي ไทย 漢字",
        "two\nlines\tand\r\u{1b}[0m",
        "ends in a zero-width space\u{200b}",
        "'); DROP TABLE products; --",
        "NULL",
        "{\"json\": [1]}",
    ] {
        let product = store.create_product(name(text)).await.unwrap();
        assert_eq!(product.name.as_str(), text);
        assert_eq!(store.product(product.id).await.unwrap().as_ref(), Some(&product));
        assert_eq!(store.inventory(product.id).await.unwrap().unwrap().0, product);
        assert_eq!(store.recount(product.id, stock(1)).await.unwrap().done().unwrap().0, product);
        assert_eq!(store.products(None, 100).await.unwrap().rows.last(), Some(&product));
    }
}

async fn products_are_paged_by_id(database: Database) {
    let store = &database.store;
    let page = async |after, limit| {
        let page = store.products(after, limit).await.unwrap();
        (page.rows, page.next)
    };
    assert_eq!(page(None, 10).await, (vec![], None));
    assert_eq!(store.product_ids().await.unwrap(), []);
    let mut all: Vec<Product> = Vec::new();
    for number in (0..25).rev() {
        all.push(store.create_product(name(&format!("Product {number}"))).await.unwrap());
    }
    let ids: Vec<ProductId> = all.iter().map(|product| product.id).collect();
    assert!(ids.is_sorted());
    assert_eq!(store.product_ids().await.unwrap(), ids);
    assert_eq!(page(None, 10).await, (all[..10].to_vec(), Some(ids[9])));
    assert_eq!(page(Some(ids[9]), 10).await, (all[10..20].to_vec(), Some(ids[19])));
    assert_eq!(page(Some(ids[19]), 10).await, (all[20..].to_vec(), None));
    assert_eq!(page(Some(ids[24]), 10).await, (vec![], None));
    assert_eq!(page(Some(stranger()), 10).await, (vec![], None));
    assert_eq!(page(None, 25).await, (all.clone(), None));
    assert_eq!(page(None, u32::MAX).await, (all.clone(), None));
    assert_eq!(page(None, 0).await.0, []);
}

async fn after_a_recount_unreserved_pieces_are_available(database: Database) {
    let id = database.product_of(10).await;
    assert_eq!(database.pieces(id).await, [10, 10, 0]);
    assert_eq!(accepted(&database.decide(&[order(id, 4)]).await), [true]);
    assert_eq!(database.pieces(id).await, [10, 6, 4]);
    // The same recount twice has one effect.
    for (counted, expected) in [(7, [7, 3, 4]), (7, [7, 3, 4]), (4, [4, 0, 4]), (100, [100, 96, 4])] {
        let (product, inventory) = database.store.recount(id, stock(counted)).await.unwrap().done().unwrap();
        assert_eq!((product.id, product.name), (id, name("Kaos Polos")));
        assert_eq!([inventory.stored(), inventory.available(), inventory.reserved()], expected);
        assert_eq!(database.pieces(id).await, expected);
    }
    assert_eq!(accepted(&database.decide(&[order(id, 97), order(id, 96)]).await), [false, true]);
}

async fn a_recount_below_what_is_reserved_changes_nothing(database: Database) {
    let id = database.product_of(10).await;
    database.decide(&[order(id, 4)]).await;
    for counted in [0, 3] {
        let refused = database.store.recount(id, stock(counted)).await.unwrap();
        assert_eq!(refused, Recount::BelowReserved(StockBelowReserved { reserved: 4 }));
        assert_eq!(database.pieces(id).await, [10, 6, 4]);
    }
    // The refused one left no lock behind.
    assert_eq!(accepted(&database.decide(&[order(id, 6)]).await), [true]);
    assert_eq!(database.pieces(id).await, [10, 0, 10]);
}

async fn unknown_ids_find_nothing(database: Database) {
    let known = database.product_of(3).await;
    let store = &database.store;
    for id in [stranger(), ProductId::new(known.get() + 1).unwrap()] {
        assert_eq!(store.product(id).await.unwrap(), None);
        assert_eq!(store.inventory(id).await.unwrap(), None);
        assert_eq!(store.recount(id, stock(5)).await.unwrap(), Recount::NoSuchProduct);
        assert_eq!(database.orders_of(id).await, []);
    }
    for id in [SystemClock.order_id(), uuid::Uuid::nil().into(), uuid::Uuid::max().into()] {
        assert_eq!(store.order(id).await.unwrap(), None);
    }
    assert_eq!(store.product_ids().await.unwrap(), [known]);
    assert_eq!(store.existing(&[stranger(), known]).await.unwrap(), [known]);
    assert_eq!(store.existing(&[stranger()]).await.unwrap(), []);
    store.ping().await.unwrap();
}

async fn sold_out_products_are_known_with_the_commit(database: Database) {
    let store = &database.store;
    let (shirt, hat, empty) =
        (database.product_of(2).await, database.product_of(1).await, database.product_of(0).await);
    let all = [hat, shirt, stranger(), empty];
    let sold_out = async || store.sold_out(&all).await.unwrap().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(store.sold_out(&[]).await.unwrap(), []);
    assert_eq!(sold_out().await, BTreeSet::from([empty]));
    for round in 0..20 {
        database.decide(&[order(hat, 1), order(shirt, 1)]).await;
        assert_eq!(sold_out().await, BTreeSet::from([hat, empty]), "{round}");
        let last = order(shirt, 1);
        database.decide(slice::from_ref(&last)).await;
        assert_eq!(sold_out().await, BTreeSet::from([hat, shirt, empty]), "{round}");
        store.recount(hat, stock(round + 2)).await.unwrap().done().unwrap();
        store.decide(&[change_of(&last, Change::Cancel)], TTL).await.unwrap();
        assert_eq!(sold_out().await, BTreeSet::from([empty]), "{round}");
        store.recount(shirt, stock(round + 3)).await.unwrap().done().unwrap();
    }
}
