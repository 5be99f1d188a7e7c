//! What antre is compared with: small servers on the same HTTP stack that decide every order in its own transaction, and one
//! that does nothing. Each is a process. They answer what antre answers, store the same columns under the same checks, and
//! are tuned as well as antre is: READ COMMITTED, cached prepared statements, no
//! ping before a connection is used, and the size of the pool that turned out best.

use std::{io::Read, process, sync::Arc, thread};

use antre::{
    clock::{Clock, SystemClock},
    domain::ids::OrderId,
};
use antre_testkit::error::Result;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
    serve::ListenerExt,
};
use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Executor, MySql, MySqlPool, Transaction, mysql::MySqlPoolOptions};
use tokio::net::TcpListener;

use crate::variant::Design;

#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    design: Design,
    #[arg(long, env = "DATABASE_URL", default_value = "")]
    database_url: String,
    #[arg(long, default_value_t = 1)]
    pool: u32,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    // The process that started this one holds the other end: this one ends with it.
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    tokio::runtime::Runtime::new()?.block_on(serve(args))
}

async fn serve(args: &ServeArgs) -> Result<()> {
    let router = match args.design {
        Design::Noop => Router::new().route("/api/orders", post(|| async { StatusCode::CREATED })),
        design => {
            let pool = connect(&args.database_url, args.pool).await?;
            Router::new().route("/api/orders", post(place)).with_state(Arc::new(Server { design, pool }))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

async fn connect(url: &str, size: u32) -> Result<MySqlPool> {
    let options = MySqlPoolOptions::new()
        .min_connections(size)
        .max_connections(size)
        .acquire_timeout(std::time::Duration::from_secs(30))
        // A ping before each use would be one more round trip for every order.
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                Ok(())
            })
        });
    Ok(options.connect(url).await?)
}

struct Server {
    design: Design,
    pool: MySqlPool,
}

#[derive(Clone, Copy, Deserialize)]
struct PlaceOrder {
    product_id: i64,
    total: u32,
}

enum Verdict {
    Reserved(OrderId, Timestamp),
    Rejected { available: i64 },
}

async fn place(State(server): State<Arc<Server>>, body: Bytes) -> Response {
    let Ok(order) = serde_json::from_slice::<PlaceOrder>(&body) else {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    };
    match server.decide(order).await {
        Ok(Verdict::Reserved(id, expires_at)) => {
            let view = OrderView {
                id,
                product_id: order.product_id,
                total: order.total,
                status: "reserved",
                created_at: id.created_at(),
                expires_at,
            };
            let location = [(header::LOCATION, format!("/api/orders/{id}"))];
            (location, json(StatusCode::CREATED, "OK", view)).into_response()
        }
        Ok(Verdict::Rejected { available }) => {
            let view = RejectionView {
                reason: "insufficient_stock",
                message: "fewer pieces are available; nothing was reserved",
                available_stock: available,
            };
            json(StatusCode::BAD_REQUEST, "BAD REQUEST", view)
        }
        Err(error) => {
            eprintln!("{error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Server {
    async fn decide(&self, order: PlaceOrder) -> sqlx::Result<Verdict> {
        let mut transaction = self.pool.begin().await?;
        let taken = match self.design {
            Design::Update => update(&mut transaction, order).await?,
            Design::ForUpdate => select_for_update(&mut transaction, order).await?,
            Design::SkipLocked => skip_locked(&mut transaction, order).await?,
            Design::Noop => Ok(()),
        };
        if let Err(available) = taken {
            transaction.rollback().await?;
            return Ok(Verdict::Rejected { available });
        }
        let (id, expires_at) = insert(&mut transaction, order).await?;
        transaction.commit().await?;
        Ok(Verdict::Reserved(id, expires_at))
    }
}

/// Pieces that are available, if those are too few.
type Taken = std::result::Result<(), i64>;

async fn update(transaction: &mut Transaction<'_, MySql>, order: PlaceOrder) -> sqlx::Result<Taken> {
    let updated = sqlx::query(
        "UPDATE direct_inventories
         SET available_stock = available_stock - ?, reserved_stock = reserved_stock + ?
         WHERE product_id = ? AND available_stock >= ?",
    )
    .bind(order.total)
    .bind(order.total)
    .bind(order.product_id)
    .bind(order.total)
    .execute(&mut **transaction)
    .await?;
    if updated.rows_affected() == 1 {
        return Ok(Ok(()));
    }
    let available: i64 =
        sqlx::query_scalar("SELECT available_stock FROM direct_inventories WHERE product_id = ?")
            .bind(order.product_id)
            .fetch_one(&mut **transaction)
            .await?;
    Ok(Err(available))
}

async fn select_for_update(
    transaction: &mut Transaction<'_, MySql>,
    order: PlaceOrder,
) -> sqlx::Result<Taken> {
    let available: i64 =
        sqlx::query_scalar("SELECT available_stock FROM direct_inventories WHERE product_id = ? FOR UPDATE")
            .bind(order.product_id)
            .fetch_one(&mut **transaction)
            .await?;
    if available < i64::from(order.total) {
        return Ok(Err(available));
    }
    sqlx::query(
        "UPDATE direct_inventories
         SET available_stock = available_stock - ?, reserved_stock = reserved_stock + ?
         WHERE product_id = ?",
    )
    .bind(order.total)
    .bind(order.total)
    .bind(order.product_id)
    .execute(&mut **transaction)
    .await?;
    Ok(Ok(()))
}

/// The design that Shopify published (<https://shopify.engineering/scaling-inventory-reservations>), with what it names
/// as necessary: a row for each piece, the primary key in the order of the search, READ COMMITTED.
async fn skip_locked(transaction: &mut Transaction<'_, MySql>, order: PlaceOrder) -> sqlx::Result<Taken> {
    let pieces: Vec<i64> = sqlx::query_scalar(
        "SELECT piece FROM direct_pieces WHERE product_id = ? ORDER BY piece LIMIT ? FOR UPDATE SKIP LOCKED",
    )
    .bind(order.product_id)
    .bind(order.total)
    .fetch_all(&mut **transaction)
    .await?;
    if pieces.len() < order.total as usize {
        return Ok(Err(pieces.len() as i64));
    }
    for piece in pieces {
        sqlx::query("DELETE FROM direct_pieces WHERE product_id = ? AND piece = ?")
            .bind(order.product_id)
            .bind(piece)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(Ok(()))
}

async fn insert(
    transaction: &mut Transaction<'_, MySql>,
    order: PlaceOrder,
) -> sqlx::Result<(OrderId, Timestamp)> {
    const TTL_MS: i64 = 15 * 60 * 1000;
    let id = SystemClock.order_id();
    let expires_at_ms = id.created_at().as_millisecond() + TTL_MS;
    sqlx::query(
        "INSERT INTO direct_orders (id, product_id, total, status, expires_at) VALUES (?, ?, ?, 'reserved', ?)",
    )
    .bind(id.uuid())
    .bind(order.product_id)
    .bind(order.total)
    .bind(expires_at_ms)
    .execute(&mut **transaction)
    .await?;
    Ok((id, Timestamp::from_millisecond(expires_at_ms).unwrap_or_default()))
}

#[derive(Serialize)]
struct Envelope<T> {
    code: u16,
    status: &'static str,
    data: T,
}

#[derive(Serialize)]
struct OrderView {
    id: OrderId,
    product_id: i64,
    total: u32,
    status: &'static str,
    created_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Serialize)]
struct RejectionView {
    reason: &'static str,
    message: &'static str,
    available_stock: i64,
}

fn json(code: StatusCode, status: &'static str, data: impl Serialize) -> Response {
    match serde_json::to_vec(&Envelope { code: code.as_u16(), status, data }) {
        Ok(body) => (code, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
