//! Bodies that are too large, no JSON, or not what the contract says.

use serde_json::json;

use super::{JSON, Target};
use crate::support::harness::{Answer, Pair, RawConnection};

on_both_pairs!(
    invalid_bodies_of_an_order,
    invalid_bodies_of_a_product,
    invalid_bodies_of_a_recount,
    too_large_bodies,
    content_types_that_are_not_json,
);

const MAX_BODY: usize = 16 * 1024;

async fn invalid_bodies_of_an_order(pair: Pair) {
    let target = Target::start(pair).await;
    let refuses = async |body: &[u8], reason: &str, field: Option<&str>| {
        target.refuses("POST", "/api/orders", body, reason, field).await;
    };
    let id = target.product;

    // No JSON.
    let not_json: [&[u8]; 22] = [
        b"",
        b" ",
        b"hello",
        b"product_id=1&total=1",
        b"<order><total>1</total></order>",
        b"{",
        b"{\"product_id\":1,\"total\":",
        b"{\"product_id\":1,\"total\":1",
        b"{\"product_id\":1,\"total\":1,}",
        b"{\"product_id\":1 \"total\":1}",
        b"{\"product_id\":1,\"total\":1}}",
        b"{\"product_id\":1,\"total\":1}{}",
        b"{'product_id':1,'total':1}",
        b"{product_id:1,total:1}",
        b"{\"product_id\":1,\"total\":01}",
        b"{\"product_id\":1,\"total\":+1}",
        b"{\"product_id\":1,\"total\":0x1}",
        b"{\"product_id\":1,\"total\":NaN}",
        b"{\"product_id\":1,\"total\":Infinity}",
        b"{\"product_id\":1,\"total\":1}\0",
        b"\xef\xbb\xbf{\"product_id\":1,\"total\":1}",
        b"{\"product_id\":1,\"total\":1,\"\xff\":1}",
    ];
    for body in not_json {
        refuses(body, "invalid_json", None).await;
    }
    let utf16: Vec<u8> = "{\"total\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    refuses(&utf16, "invalid_json", None).await;

    // Too deep: a parser that calls itself for each bracket would run out of stack.
    for (open, close, reason, field) in
        [("[", "]", "invalid_body", None), ("{\"a\":", "}", "invalid_field", Some("a"))]
    {
        for depth in [200, 2_500] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            refuses(nested.as_bytes(), reason, field).await;
            let inside = format!("{{\"product_id\":{id},\"total\":{nested}}}");
            refuses(inside.as_bytes(), "invalid_total", Some("total")).await;
        }
    }
    refuses("[".repeat(5_000).as_bytes(), "invalid_json", None).await;
    refuses("[".repeat(MAX_BODY).as_bytes(), "invalid_json", None).await;

    // JSON, but no object, or one that contradicts itself.
    for body in
        ["null", "true", "1", "-0.5e-3", "\"order\"", "[]", "[1,1]", "[{\"product_id\":1,\"total\":1}]"]
    {
        refuses(body.as_bytes(), "invalid_body", None).await;
    }
    for body in [
        format!("{{\"product_id\":{id},\"total\":1,\"total\":1}}"),
        format!("{{\"product_id\":{id},\"product_id\":{id},\"total\":1}}"),
        format!("{{\"total\":1,\"product_id\":{id},\"tot\\u0061l\":2}}"),
    ] {
        refuses(body.as_bytes(), "invalid_body", None).await;
    }

    // Fields too few and too many.
    refuses(b"{}", "invalid_product_id", Some("product_id")).await;
    refuses(b"{\"total\":1}", "invalid_product_id", Some("product_id")).await;
    refuses(format!("{{\"product_id\":{id}}}").as_bytes(), "invalid_total", Some("total")).await;
    for field in ["price", "Total", "total ", "id", "", "__proto__", "a\u{301}"] {
        let body = json!({"product_id": id, "total": 1, field: 1}).to_string();
        refuses(body.as_bytes(), "invalid_field", Some(field)).await;
    }
    let long = "x".repeat(5_000);
    let body = json!({"product_id": id, "total": 1, &long: 1}).to_string();
    refuses(body.as_bytes(), "invalid_field", Some(&long[..100])).await;

    // Values that are no number of pieces, and no product.
    let digits = "9".repeat(1_000);
    let fraction = format!("1.{}1", "0".repeat(1_000));
    let no_number = [
        "null",
        "true",
        "false",
        "\"1\"",
        "\"\"",
        "[]",
        "[1]",
        "{}",
        "{\"total\":1}",
        "0",
        "-0",
        "-1",
        "1.0",
        "1.5",
        "0.9999999999999999999",
        "1e0",
        "1e400",
        "-1e400",
        "1e-400",
        "18446744073709551615",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
        "-9223372036854775809",
        &digits,
        &fraction,
    ];
    for value in no_number.into_iter().chain(["2147483648", "4294967295", "4294967296", "4294967297"]) {
        let body = format!("{{\"product_id\":{id},\"total\":{value}}}");
        refuses(body.as_bytes(), "invalid_total", Some("total")).await;
    }
    for value in no_number.into_iter().chain(["9007199254740992", "9223372036854775808"]) {
        let body = format!("{{\"product_id\":{value},\"total\":1}}");
        refuses(body.as_bytes(), "invalid_product_id", Some("product_id")).await;
    }
}

async fn invalid_bodies_of_a_product(pair: Pair) {
    let target = Target::start(pair).await;
    let refuses = async |body: &[u8], reason: &str, field: Option<&str>| {
        target.refuses("POST", "/api/products", body, reason, field).await;
    };
    let not_json: [&[u8]; 6] = [
        b"{\"name\":\"Kaos",
        b"{\"name\":\"Kaos\nPolos\"}",
        b"{\"name\":\"a\0b\"}",
        b"{\"name\":\"\xc3\"}",
        b"{\"name\":\"\xed\xa0\x80\"}", // a surrogate in UTF-8's clothes
        b"{\"name\":\"\\x41\"}",
    ];
    for body in not_json {
        refuses(body, "invalid_json", None).await;
    }
    // A text of no characters: half a surrogate pair.
    for half in ["\\ud83d", "\\udc55", "\\udc55\\ud83d", "a\\ud83dz", "\\ud83d\\u0041"] {
        refuses(format!("{{\"name\":\"{half}\"}}").as_bytes(), "invalid_name", Some("name")).await;
    }
    let (too_long, too_wide) = (format!("\"{}\"", "x".repeat(101)), format!("\"{}\"", "👕".repeat(101)));
    for value in [
        "null",
        "1",
        "true",
        "[]",
        "{}",
        "[\"Kaos\"]",
        "\"\"",
        "\" \"",
        "\"\\t\\r\\n\"",
        "\"\\u00a0\\u3000\\u2028\"",
        "\"\\u200b\\ufeff\"",
        "\"\\u0301\"",
        "\"\\u3164\"",
        "\"a\\u0000b\"",
        "\"a\\u202eb\"",
        &too_long,
        &too_wide,
    ] {
        refuses(format!("{{\"name\":{value}}}").as_bytes(), "invalid_name", Some("name")).await;
    }
    refuses(b"{}", "invalid_name", Some("name")).await;
    let long = format!("\"{}\"", "x".repeat(65));
    for sku in
        ["1", "true", "[]", "{}", "\"\"", "\" \"", "\"a b\"", "\"a\\n\"", "\"\\u00e9\"", "\"\\u0000\"", &long]
    {
        refuses(format!("{{\"name\":\"Kaos\",\"sku\":{sku}}}").as_bytes(), "invalid_sku", Some("sku")).await;
    }
    refuses(b"{\"sku\":\"A\"}", "invalid_name", Some("name")).await;
    refuses(b"{\"name\":\"Kaos\",\"sku\":\"A\",\"sku\":\"A\"}", "invalid_body", None).await;
    refuses(b"{\"Name\":\"Kaos\"}", "invalid_field", Some("Name")).await;
    refuses(b"{\"name\":\"Kaos\",\"id\":7}", "invalid_field", Some("id")).await;
    refuses(b"{\"name\":\"Kaos\",\"name\":\"Kaos\"}", "invalid_body", None).await;
    refuses(b"\"Kaos\"", "invalid_body", None).await;
}

async fn invalid_bodies_of_a_recount(pair: Pair) {
    let target = Target::start(pair).await;
    let path = format!("/api/products/{}/inventory", target.product);
    let refuses = async |body: &str, reason: &str, field: Option<&str>| {
        target.refuses("PUT", &path, body.as_bytes(), reason, field).await;
    };
    for value in [
        "null",
        "-1",
        "0.5",
        "7.0",
        "1e1",
        "1e400",
        "\"7\"",
        "true",
        "[7]",
        "2147483648",
        "99999999999999999999",
    ] {
        refuses(&format!("{{\"stock\":{value}}}"), "invalid_stock", Some("stock")).await;
    }
    refuses("{}", "invalid_stock", Some("stock")).await;
    refuses("{\"stock\":7,\"reserved_stock\":0}", "invalid_field", Some("reserved_stock")).await;
    refuses("{\"stock\":7,\"stock\":7}", "invalid_body", None).await;
    refuses("7", "invalid_body", None).await;
    refuses("", "invalid_json", None).await;
}

async fn too_large_bodies(pair: Pair) {
    let target = Target::start(pair).await;
    let order = json!({"product_id": target.product, "total": 6}).to_string();
    let padded = |length: usize| [order.as_bytes(), &vec![b' '; length - order.len()]].concat();

    // To the byte: the largest body is read, and refused for what is in it.
    let answer = target.send("POST", "/api/orders", JSON, &padded(MAX_BODY)).await;
    assert_eq!((answer.status, answer.reason()), (400, "insufficient_stock"));
    let brackets = "[".repeat(100_000);
    for body in [&padded(MAX_BODY + 1), brackets.as_bytes(), &vec![b'x'; 5_000_000], &padded(5_000_000)] {
        for path in ["/api/orders", "/api/products"] {
            let answer = target.send("POST", path, JSON, body).await;
            assert_eq!((answer.status, answer.reason()), (413, "body_too_large"), "{} bytes", body.len());
            assert_eq!(answer.json["status"], "PAYLOAD TOO LARGE");
        }
        // The same without saying beforehand how much it will be.
        let answer = send_chunked(&target, body).await;
        assert_eq!((answer.status, answer.reason()), (413, "body_too_large"), "{} bytes", body.len());
        target.is_unharmed("a large body").await;
    }
    // What is refused for another reason is refused in words as well, not by a reset while it is being sent.
    let large = padded(5_000_000);
    for (method, path, headers, reason) in [
        ("POST", "/api/orders", "Content-Type: text/plain\r\n", "unsupported_media_type"),
        ("DELETE", "/api/orders", JSON, "method_not_allowed"),
        ("PUT", "/api/products/x/inventory", JSON, "invalid_product_id"),
        ("POST", "/nowhere", JSON, "route_not_found"),
    ] {
        assert_eq!(target.send(method, path, headers, &large).await.reason(), reason);
    }
    let answer = send_chunked(&target, &padded(MAX_BODY)).await;
    assert_eq!((answer.status, answer.reason()), (400, "insufficient_stock"));
    target.is_unharmed("large bodies").await;
}

async fn send_chunked(target: &Target, body: &[u8]) -> Answer {
    let mut wire = RawConnection::open(&target.app).await;
    wire.send(
        format!("POST /api/orders HTTP/1.1\r\nHost: antre\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n")
            .as_bytes(),
    )
    .await;
    for chunk in body.chunks(10_000) {
        wire.send(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await;
    }
    wire.send(b"0\r\n\r\n").await;
    wire.answer("POST", "/api/orders").await
}

async fn content_types_that_are_not_json(pair: Pair) {
    let target = Target::start(pair).await;
    let order = json!({"product_id": target.product, "total": 1}).to_string();
    for headers in [
        "",
        "Content-Type: \r\n",
        "Content-Type: json\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: text/json\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: multipart/form-data; boundary=x\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: application/merge-patch+json\r\n",
        "Content-Type: application/json, text/plain\r\n",
        "Content-Type: */*\r\n",
        "Content-Type: ;application/json\r\n",
        "Content-Type: application/json\r\nContent-Type: text/plain\r\n",
        "Content-Type: text/plain\r\nContent-Type: application/json\r\n",
        "Content-Type: application/json\r\nContent-Type: application/json\r\n",
        "Content-Type: application/\u{ff}json\r\n",
    ] {
        for (method, path) in [
            ("POST", "/api/orders".to_owned()),
            ("POST", "/api/products".to_owned()),
            ("PUT", format!("/api/products/{}/inventory", target.product)),
        ] {
            let answer = target.send(method, &path, headers, order.as_bytes()).await;
            let expected = (415, "unsupported_media_type");
            assert_eq!((answer.status, answer.reason()), expected, "{headers:?}: {answer:?}");
            assert_eq!(answer.json["status"], "UNSUPPORTED MEDIA TYPE");
        }
        target.is_unharmed(headers).await;
    }
    // Not even looked at.
    let answer = target.send("POST", "/api/orders", "", b"\xff\0{").await;
    assert_eq!(answer.status, 415);
    let answer = target.send("POST", "/api/orders", "", &vec![b'x'; 100_000]).await;
    assert_eq!(answer.status, 415);
    // Written in another way it is JSON all the same.
    let too_much = json!({"product_id": target.product, "total": 6}).to_string();
    for headers in [
        "content-type:application/json\r\n",
        "Content-Type: Application/JSON\r\n",
        "Content-Type: application/json; charset=utf-8\r\n",
        "Content-Type: application/json ;charset=\"utf-8\"\r\n",
    ] {
        let answer = target.send("POST", "/api/orders", headers, too_much.as_bytes()).await;
        assert_eq!((answer.status, answer.reason()), (400, "insufficient_stock"), "{headers:?}");
    }
}
