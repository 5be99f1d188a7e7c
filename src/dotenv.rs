//! The file `.env` of the current directory. Parent directories are not searched: there, the `.env` of another program could
//! choose the database.

use std::{
    cell::Cell,
    env, fs,
    io::{self, Read},
    path::PathBuf,
};

use clap::CommandFactory;

use crate::settings::Settings;

const FILE: &str = ".env";

/// Variables that are not settings of antre, but of libraries, and of docker-compose.yml, which reads the same file.
const OTHER_NAMES: [&str; 20] = [
    "ANTRE_IMAGE",
    "API_PORT",
    "BUILD_NETWORK",
    "GRAFANA_IMAGE",
    "GRAFANA_PASSWORD",
    "GRAFANA_PORT",
    "MYSQL_IMAGE",
    "MYSQL_PASSWORD",
    "MYSQL_ROOT_PASSWORD",
    "PROMETHEUS_IMAGE",
    "PROMETHEUS_PORT",
    "RABBITMQ_IMAGE",
    "RABBITMQ_PASSWORD",
    "RABBITMQ_UI_PORT",
    "RUNTIME_IMAGE",
    "RUST_BACKTRACE",
    "RUST_IMAGE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TZ",
];

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DotEnv {
    pub path: PathBuf,
    /// Names in the file that are not settings.
    pub unknown: Vec<String>,
}

impl DotEnv {
    /// Adds the variables of the file to the environment, and overrides none. `None`: there is no such file.
    pub fn load() -> Result<Option<Self>, DotEnvError> {
        let path = env::current_dir().unwrap_or_default().join(FILE);
        let read = match fs::read(&path) {
            Ok(text) => names(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(Problem::Unreadable(error)),
        };
        let loaded = read.and_then(|names| match dotenvy::from_path(&path) {
            Ok(()) => Ok(names),
            Err(error) => Err(Problem::of(error, 0)),
        });
        match loaded {
            Ok(names) => {
                let unknown = names.into_iter().filter(|name| !is_known(name)).collect();
                Ok(Some(Self { path, unknown }))
            }
            Err(problem) => Err(DotEnvError { path, problem }),
        }
    }

    /// Logs the path of the file, and the unknown names in it.
    pub fn log(&self) {
        let path = self.path.display();
        tracing::info!(%path, "settings of this file apply unless a flag or the environment overrides them");
        if !self.unknown.is_empty() {
            let names = self.unknown.join(", ");
            tracing::warn!(%path, names, "antre has no settings of these names; antre --help lists those that it has");
        }
    }
}

/// Why the file cannot be read. Never shows its content, which may be a password.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {problem}", path.display())]
pub struct DotEnvError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Unreadable(io::Error),
    #[error("line {0} is not UTF-8")]
    NotText(usize),
    #[error(
        "line {0} is not NAME=value, or a quote that opens there stays open; a value with spaces, # or $ goes between single \
         quotes"
    )]
    NotAVariable(usize),
}

impl Problem {
    /// `lines`: how many were read.
    fn of(error: dotenvy::Error, lines: usize) -> Self {
        match error {
            dotenvy::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => Self::NotText(lines),
            dotenvy::Error::Io(error) => Self::Unreadable(error),
            // If a quote stays open, dotenvy has also read all lines after it.
            dotenvy::Error::LineParse(text, _) => {
                Self::NotAVariable((lines + 1).saturating_sub(text.lines().count().max(1)))
            }
            _ => Self::NotAVariable(lines),
        }
    }
}

fn is_known(name: &str) -> bool {
    let settings = Settings::command();
    let is_setting = settings.get_arguments().any(|setting| setting.get_env().is_some_and(|env| env == name));
    is_setting || OTHER_NAMES.contains(&name) || name.starts_with("OTEL_")
}

/// The names in the file, or which line is invalid.
fn names(text: &[u8]) -> Result<Vec<String>, Problem> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let returned = Cell::new(0);
    let lines = Lines { rest: text, returned: &returned };
    let names = dotenvy::from_read_iter(lines).map(|variable| variable.map(|(name, _)| name));
    names.collect::<Result<_, _>>().map_err(|error| Problem::of(error, returned.get()))
}

/// Returns a line at a time, and counts: dotenvy does not say which line is invalid.
struct Lines<'a> {
    rest: &'a [u8],
    returned: &'a Cell<usize>,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        let count = line.len().min(buffer.len());
        let (now, later) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.rest = later;
        if count > 0 && count == line.len() {
            self.returned.update(|lines| lines + 1);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn complaint(text: &[u8]) -> String {
        let said = names(text).unwrap_err().to_string();
        assert!(!said.contains("secret"), "{said}");
        said
    }

    #[test]
    fn an_invalid_line_is_named() {
        for (text, line) in [
            ("secret", "line 1 "),
            ("\n# comment\n\nA=b\nsecret secret\nB=c\n", "line 5 "),
            ("A='one\ntwo'\nB=c\n= secret\n", "line 4 "),
            ("A=b\nB='secret\nC=d\nD=e\n", "line 2 "),
            ("A=b\r\nB=secret secret\r\n", "line 2 "),
        ] {
            assert!(complaint(text.as_bytes()).starts_with(line), "{text:?}");
        }
        assert!(complaint(b"A=b\nB=\xffsecret\n").starts_with("line 2 is not UTF-8"));
        let long = format!("A={}\nsecret", "x".repeat(100_000));
        assert!(complaint(long.as_bytes()).starts_with("line 2 "));
    }

    #[test]
    fn unknown_names_are_found() {
        let text =
            "\u{feff}DATABASE_URL=x\nexport AMQP_URL=y\nDATABSE_URL=z\nMYSQL_PASSWORD=x\nRUST_LOG=info\n";
        let names = names(text.as_bytes()).unwrap();
        let unknown: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
        assert_eq!((names.len(), unknown), (5, vec![&"DATABSE_URL".to_owned()]));
    }

    /// docker-compose.yml reads the same file.
    #[test]
    fn the_variables_of_compose_are_known() {
        let compose = include_str!("../docker-compose.yml");
        let mut names: Vec<_> =
            compose.split("${").skip(1).filter_map(|rest| rest.split([':', '}']).next()).collect();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() > 5 && names.iter().all(|name| is_known(name)), "{names:?}");
    }
}
