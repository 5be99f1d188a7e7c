//! Products and their stock.

use super::*;

suite! {
    every_store: [
        a_new_product_has_no_pieces,
        a_name_is_read_as_it_was_written,
        products_are_paged_by_id,
        inventories_are_paged_by_id,
        after_a_recount_unreserved_pieces_are_available,
        a_recount_below_what_is_reserved_changes_nothing,
        unknown_ids_find_nothing,
        sold_out_products_are_known_with_the_commit,
        a_sku_is_one_products_own,
        products_are_created_with_their_stock,
        of_those_who_want_one_sku_one_gets_it,
    ],
    sql_only: [
        a_sku_that_was_changed_by_hand_is_corrupt,
    ],
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
        assert_eq!(store.products(false, None, 100).await.unwrap().rows.last(), Some(&product));
    }
}

async fn products_are_paged_by_id(database: Database) {
    let store = &database.store;
    let page = async |after, limit| {
        let page = store.products(false, after, limit).await.unwrap();
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

async fn inventories_are_paged_by_id(database: Database) {
    let store = &database.store;
    let mut all = Vec::new();
    for number in 0..5 {
        let product = store.create_product(name(&format!("Product {number}"))).await.unwrap();
        let (product, inventory) = store.recount(product.id, stock(number)).await.unwrap().done().unwrap();
        all.push((product, Some(inventory)));
    }
    let page = async |after, limit| {
        let page = store.inventories(after, limit).await.unwrap();
        (page.rows, page.next)
    };
    let id = |index: usize| Some(all[index].0.id);
    assert_eq!(page(None, 3).await, (all[..3].to_vec(), id(2)));
    assert_eq!(page(id(2), 3).await, (all[3..].to_vec(), None));
    assert_eq!(page(id(4), 3).await, (vec![], None));
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
    let live = HashMap::from([(known, ProductState::Live)]);
    assert_eq!(store.states(&[stranger(), known]).await.unwrap(), live);
    assert_eq!(store.states(&[stranger()]).await.unwrap(), HashMap::new());
    store.ping().await.unwrap();
}

async fn sold_out_products_are_known_with_the_commit(database: Database) {
    let store = &database.store;
    let (shirt, hat, empty) =
        (database.product_of(2).await, database.product_of(1).await, database.product_of(0).await);
    let all = [hat, shirt, stranger(), empty];
    let sold_out = async || {
        let closed = store.closed_to_orders(&all, Duration::ZERO).await.unwrap();
        let reasons = closed.into_iter().map(|(id, rejection)| (id, Verdict::Rejected(rejection)));
        reasons
            .inspect(|(_, verdict)| assert_eq!(*verdict, rejected(0)))
            .map(|(id, _)| id)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(store.closed_to_orders(&[], Duration::ZERO).await.unwrap(), []);
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

fn sku(text: &str) -> Sku {
    text.to_owned().try_into().unwrap()
}

fn new(text: &str, pieces: u32) -> NewProduct {
    NewProduct { name: name("Kaos Polos"), sku: Some(sku(text)), stock: stock(pieces) }
}

#[track_caller]
fn created(creation: Creation) -> Product {
    match creation {
        Creation::Done(product) => product,
        Creation::SkuTaken(by) => panic!("product {by} has it"),
    }
}

async fn a_sku_is_one_products_own(database: Database) {
    let store = &database.store;
    let plain = store.create_product(name("Topi")).await.unwrap();
    let texts = ["A", "a", "~!\"'\\\\;,%_?:x$1", &"9".repeat(Sku::MAX_LENGTH)];
    let mut products = Vec::new();
    for text in texts {
        let product = created(store.create(new(text, 0)).await.unwrap());
        assert_eq!(product.sku, Some(sku(text)));
        assert_eq!(store.product(product.id).await.unwrap().as_ref(), Some(&product));
        assert_eq!(store.inventory(product.id).await.unwrap().unwrap().0, product);
        assert_eq!(store.recount(product.id, stock(1)).await.unwrap().done().unwrap().0, product);
        assert_eq!(store.create(new(text, 5)).await.unwrap(), Creation::SkuTaken(product.id));
        assert_eq!(store.products_by_sku(&[sku(text)]).await.unwrap(), slice::from_ref(&product));
        products.push(product);
    }
    let listed = store.products(false, None, 100).await.unwrap().rows;
    assert_eq!(listed, [slice::from_ref(&plain), &products].concat());
    let mut found = store.products_by_sku(&texts.map(sku)).await.unwrap();
    found.sort_by_key(|product| product.id);
    assert_eq!(found, products);
    assert_eq!(store.products_by_sku(&[sku("nobody's")]).await.unwrap(), []);
    assert_eq!(store.products_by_sku(&[]).await.unwrap(), []);
}

async fn products_are_created_with_their_stock(database: Database) {
    let product = created(database.store.create(new("A", 7)).await.unwrap());
    assert_eq!(database.pieces(product.id).await, [7, 7, 0]);
    assert_eq!(accepted(&database.decide(&[order(product.id, 7)]).await), [true]);
    // The refused one has changed nothing.
    database.store.create(new("A", 9)).await.unwrap();
    assert_eq!(database.pieces(product.id).await, [7, 0, 7]);
}

async fn of_those_who_want_one_sku_one_gets_it(database: Database) {
    for round in 0..10 {
        let text = format!("SKU-{round}");
        let creations = join_all((0..8).map(|_| database.store.create(new(&text, 1)))).await;
        let creations: Vec<_> = creations.into_iter().map(Result::unwrap).collect();
        let [product] = &database.store.products_by_sku(&[sku(&text)]).await.unwrap()[..] else {
            panic!("{creations:?}")
        };
        let done = creations.iter().filter(|one| **one == Creation::Done(product.clone())).count();
        let taken = creations.iter().filter(|one| **one == Creation::SkuTaken(product.id)).count();
        assert_eq!((done, taken), (1, 7), "{creations:?}");
    }
    assert_eq!(database.store.product_ids().await.unwrap().len(), 10);
}

async fn a_sku_that_was_changed_by_hand_is_corrupt(database: Database) {
    let product = created(database.store.create(new("A", 1)).await.unwrap());
    let other = created(database.store.create(new("B", 1)).await.unwrap());
    database.by_hand("UPDATE products SET sku = 'a b' WHERE sku = 'A'").await.unwrap();
    let error = database.store.product(product.id).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("SKU"), "{error}");
    // It ends no list.
    assert_eq!(database.store.products(false, None, 10).await.unwrap().rows, [other]);
}
