//! One line in the log for a statement that takes long, with its text and without its values.

use std::{borrow::Cow, fmt, time::Instant};

use crate::telemetry::{ms, slow};

/// How much of a text is logged, in characters.
const MAX_SHOWN: usize = 1_000;

/// Waits for the answer to a statement.
pub(super) async fn timed<T, E: fmt::Display>(
    sql: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    Statement::new(sql, Cow::Borrowed).answer(answer).await
}

/// The same for a text that contains values.
pub(super) async fn timed_with_values<T, E: fmt::Display>(
    sql: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    Statement::new(sql, without_values).answer(answer).await
}

struct Statement<'a> {
    sql: &'a str,
    /// The text as it may be logged.
    shown: fn(&'a str) -> Cow<'a, str>,
    began: Instant,
    is_answered: bool,
}

impl<'a> Statement<'a> {
    fn new(sql: &'a str, shown: fn(&'a str) -> Cow<'a, str>) -> Self {
        Self { sql, shown, began: Instant::now(), is_answered: false }
    }

    async fn answer<T, E: fmt::Display>(
        mut self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let answer = answer.await;
        self.is_answered = true;
        self.report(answer.as_ref().err().map(|error| error as &dyn fmt::Display));
        answer
    }

    fn report(&self, error: Option<&dyn fmt::Display>) {
        let elapsed = self.began.elapsed();
        if let Some(suppressed) = slow::QUERIES.due(elapsed) {
            let (sql, error) = (on_one_line(&(self.shown)(self.sql)), error.map(tracing::field::display));
            tracing::warn!(sql, elapsed_ms = ms(elapsed), error, suppressed, "a slow query");
        }
    }
}

/// Its caller went away before the answer came.
impl Drop for Statement<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.report(Some(&"nobody waits for its answer any longer"));
        }
    }
}

fn on_one_line(sql: &str) -> String {
    let words: Vec<_> = sql.split_whitespace().collect();
    words.join(" ").chars().take(MAX_SHOWN).collect()
}

/// With … for everything between single quotes.
fn without_values(sql: &str) -> Cow<'_, str> {
    let parts = sql.split('\'').enumerate();
    let shown: Vec<_> = parts.map(|(index, part)| if index % 2 == 0 { part } else { "…" }).collect();
    shown.join("'").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_shown_on_one_line_without_its_values() {
        let sql = "UPDATE JSON_TABLE('[[7, 1]]', '$[*]' COLUMNS (id BIGINT))\n     SET a = 1;COMMIT";
        assert_eq!(
            on_one_line(&without_values(sql)),
            "UPDATE JSON_TABLE('…', '…' COLUMNS (id BIGINT)) SET a = 1;COMMIT"
        );
        assert_eq!(without_values("COMMIT"), "COMMIT");
        assert_eq!(on_one_line(&"a ".repeat(10_000)).len(), MAX_SHOWN);
    }
}
