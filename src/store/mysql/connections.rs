//! Connections on which no call hangs. A primary that loses power leaves connections that stay silent for ever, while new ones
//! reach its successor. So every statement has a time limit. A connection that exceeds it, or on which the server reports an
//! error that is not about data or locks, is never used again, and neither are those of its generation.
//!
//! sqlx's own pool asks a connection whether it works when it is given back, and without a limit: eight that fall silent in
//! that moment would block it for as long as TCP takes to give up, a quarter of an hour. deadpool asks when a connection is
//! taken, within a limit. (sqlx 0.8 cannot set TCP keepalive; the limits do what it would.)

use std::{
    io,
    ops::DerefMut,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolConfig, PoolError, RecycleResult, Status, Timeouts, WeakPool,
};
use sqlx::{
    ConnectOptions, Connection, Execute, Executor, FromRow, MySql, MySqlConnection,
    mysql::{MySqlArguments, MySqlConnectOptions, MySqlQueryResult, MySqlRow},
    query::{Query, QueryAs},
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::super::{
    error::StoreError,
    pool_use::PoolUse,
    slow_query::{timed, timed_with_values},
    sqlx_error::is_connection_usable,
};
use crate::supervise::supervise;

/// How long a call waits for a connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one statement may take, unless it commits. A lock is waited for much shorter.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to answer a ping, or to roll back.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// After this many seconds the server rolls back the transaction of a silent client: a process that is stopped or cut off in
/// the middle of a batch must not keep its rows locked.
const SILENT_SECONDS: u32 = 15;
/// A connection that was last used longer ago than this is pinged before it is used.
const TRUSTED: Duration = Duration::from_secs(1);
/// Idle connections are closed well before the server does it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement waits for a row that another transaction has locked: the rest of its batch waits as long.
const LOCK_WAIT_SECONDS: u32 = 1;
/// How long it waits for a table that is locked or altered. By then its client has given up, and the server does not see
/// that: without a limit these statements would use up all of its connections.
const TABLE_WAIT_SECONDS: u32 = 5;

/// Advances whenever a connection behaves as if the server were gone, or another one now. Connections of an earlier generation
/// are not used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Generation(Arc<AtomicU64>);

impl Generation {
    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Connections whose sessions have the same settings.
#[derive(Clone, Debug)]
pub(super) struct ConnectionPool {
    pool: Pool<Sessions>,
    /// How long one connection may be in use.
    limit: Duration,
}

impl ConnectionPool {
    /// Up to `count` connections, none of which is opened yet. `settings`: of the session, in addition to those that all have.
    pub(super) fn new(
        options: &MySqlConnectOptions,
        settings: &str,
        count: u32,
        limit: Duration,
        generation: &Generation,
    ) -> Result<Self, StoreError> {
        let settings = format!(
            "SET SESSION wait_timeout = {SILENT_SECONDS}, innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}, \
             lock_wait_timeout = {TABLE_WAIT_SECONDS}, {settings}"
        );
        let limits = Timeouts {
            wait: Some(ACQUIRE_TIMEOUT),
            create: Some(ACQUIRE_TIMEOUT),
            recycle: Some(CHECK_TIMEOUT),
        };
        let config = PoolConfig { max_size: count as usize, timeouts: limits, ..PoolConfig::default() };
        let pool =
            Pool::builder(Sessions { options: options.clone(), settings, generation: generation.clone() })
                .config(config)
                .runtime(deadpool::Runtime::Tokio1)
                .build()
                .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let weak = pool.weak();
        tokio::spawn(async move { supervise("closing idle connections", || close_idle(&weak)).await });
        Ok(Self { pool, limit })
    }

    /// A connection, for as long as the limit of the pool.
    pub(super) async fn acquire(&self) -> Result<PooledConnection, StoreError> {
        let deadline = Instant::now() + self.limit;
        let session = match timeout(ACQUIRE_TIMEOUT, self.pool.get()).await {
            Ok(Ok(session)) => session,
            Ok(Err(PoolError::Backend(error))) => return Err(error.into()),
            Ok(Err(error)) => return Err(StoreError::Unavailable(error.to_string())),
            Err(_) => {
                let text = format!("no connection within {ACQUIRE_TIMEOUT:?}");
                return Err(StoreError::Unavailable(text));
            }
        };
        Ok(PooledConnection { session: Some(session), deadline, state: State::Clean })
    }

    /// All rows of one statement.
    pub(super) async fn fetch_all<T>(
        &self,
        query: QueryAs<'_, MySql, T, MySqlArguments>,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'row> FromRow<'row, MySqlRow> + Send + Unpin,
    {
        Ok(self.acquire().await?.fetch_all(query).await?)
    }

    /// How many are in use now.
    pub(super) fn in_use(&self, name: &'static str) -> PoolUse {
        let Status { max_size, size, available, waiting } = self.pool.status();
        PoolUse {
            name,
            in_use: size.saturating_sub(available),
            idle: available,
            max: max_size,
            waiting: Some(waiting),
        }
    }

    /// Closes those that are idle now, and others when they are returned.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

/// Closes idle connections, until the pool is closed.
async fn close_idle(weak: &WeakPool<Sessions>) {
    loop {
        sleep(IDLE_TIMEOUT / 2).await;
        let Some(pool) = weak.upgrade().filter(|pool: &Pool<Sessions>| !pool.is_closed()) else { return };
        let idle = pool.retain(|_, metrics| metrics.last_used() < IDLE_TIMEOUT).removed;
        for session in idle {
            let _ = timeout(CHECK_TIMEOUT, session.connection.close()).await; // gone or closed, either is fine
        }
    }
}

/// Opens connections, and decides which may be used again.
#[derive(Debug)]
struct Sessions {
    options: MySqlConnectOptions,
    settings: String,
    generation: Generation,
}

#[derive(Debug)]
struct Session {
    connection: MySqlConnection,
    generation: u64,
}

impl Manager for Sessions {
    type Type = Session;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Session, sqlx::Error> {
        let generation = self.generation.current();
        let mut connection = self.options.connect().await?;
        connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        connection.execute(self.settings.as_str()).await?;
        Ok(Session { connection, generation })
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if session.generation != self.generation.current() {
            return Err(deadpool::managed::RecycleError::message("of an earlier generation"));
        }
        if metrics.last_used() >= TRUSTED {
            session.connection.ping().await?;
        }
        Ok(())
    }
}

/// A connection in use. A transaction that is not committed is rolled back when it is dropped.
pub(super) struct PooledConnection {
    session: Option<Object<Sessions>>,
    deadline: Instant,
    state: State,
}

/// Whether a connection may be returned to the pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No statement and no transaction is under way.
    Clean,
    /// A transaction may be open, or an answer may still arrive.
    Open,
    /// Never to be used again.
    Broken,
}

impl PooledConnection {
    pub(super) async fn fetch_all<T>(
        &mut self,
        query: QueryAs<'_, MySql, T, MySqlArguments>,
    ) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'row> FromRow<'row, MySqlRow> + Send + Unpin,
    {
        self.state = State::Open;
        let (limit, sql) = (self.limit(), query.sql());
        let answer = in_time(limit, query.fetch_all(self.connection()?));
        let answer = timed(sql, answer).await;
        self.note_error(answer)
    }

    pub(super) async fn execute(
        &mut self,
        query: Query<'_, MySql, MySqlArguments>,
    ) -> Result<MySqlQueryResult, sqlx::Error> {
        self.state = State::Open;
        let (limit, sql) = (self.limit(), query.sql());
        let answer = in_time(limit, query.execute(self.connection()?));
        let answer = timed(sql, answer).await;
        self.note_error(answer)
    }

    /// Statements as text, the last of which is `COMMIT`. The disk may take its time.
    pub(super) async fn commit(&mut self, statements: &str) -> Result<(), sqlx::Error> {
        self.state = State::Open;
        let limit = self.deadline;
        let answer = in_time(limit, self.connection()?.execute(sqlx::raw_sql(statements)));
        let answer = timed_with_values(statements, answer).await;
        self.note_error(answer)?;
        self.state = State::Clean;
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut MySqlConnection, sqlx::Error> {
        let session = self.session.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut session.deref_mut().connection)
    }

    fn limit(&self) -> Instant {
        self.deadline.min(Instant::now() + STATEMENT_TIMEOUT)
    }

    fn note_error<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Err(error) = &result
            && !is_connection_usable(error)
            && let Some(session) = &self.session
        {
            self.state = State::Broken;
            if let Some(pool) = Object::pool(session) {
                pool.manager().generation.advance();
            }
        }
        result
    }
}

async fn in_time<T>(
    limit: Instant,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "the server is silent");
    timeout_at(limit, answer).await.unwrap_or_else(|_| Err(sqlx::Error::Io(silent())))
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        match (self.state, Handle::try_current()) {
            (State::Clean, _) => {}
            (State::Open, Ok(runtime)) => drop(runtime.spawn(roll_back(session))),
            // Dropped without a goodbye: the server may not answer it.
            (State::Open | State::Broken, _) => drop(Object::take(session)),
        }
    }
}

/// The connection goes back once its transaction is rolled back; if that takes too long, the server does it, when it sees
/// that the connection is gone.
async fn roll_back(mut session: Object<Sessions>) {
    let rolled_back = timeout(CHECK_TIMEOUT, session.connection.execute("ROLLBACK")).await;
    if !matches!(rolled_back, Ok(Ok(_))) {
        drop(Object::take(session));
    }
}
