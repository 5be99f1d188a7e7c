//! The command line of a rehearsal.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;

use super::load::{arrivals::Arrivals, target::Target};

/// Play a flash sale against a running antre, and say whether it held
///
/// Creates a product named `rehearsal <time>`, sets its stock, lets the buyers in, and compares the answers with the
/// inventory. The product, its orders and their events stay: they are real to the target. There is no default target, and a
/// target that is not on this machine must be confirmed.
///
/// Exits with 0 if no piece was oversold, the books balance and there was no error; with 1 if not, or if the rehearsal could
/// not be played; with 2 if the command line is wrong; with 130 after Ctrl-C.
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct RehearseArgs {
    /// The API to play against, for example http://localhost:3000; with the path prefix of a gateway if there is one
    #[arg(long, value_name = "URL", help_heading = "The rehearsal")]
    pub target: Target,
    /// How many buyers come; each orders one piece, once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "The rehearsal")]
    pub buyers: u64,
    /// How many pieces there are
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=2_147_483_647), help_heading = "The rehearsal")]
    pub stock: u64,
    /// How many buyers arrive in a second, or `all` for all of them in the same moment
    #[arg(long, value_name = "N", default_value = "1000", help_heading = "The rehearsal")]
    pub rate: Rate,
    /// How long the rate climbs from 0 to --rate, in a straight line
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = ramp, help_heading = "The rehearsal")]
    pub ramp: Duration,
    /// The share of accepted orders that is paid, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share, help_heading = "The rehearsal")]
    pub pay: f64,
    /// The share of accepted orders that is cancelled, 0 to 1; their pieces are sold again
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share, help_heading = "The rehearsal")]
    pub cancel: f64,
    /// How long a buyer waits for its verdict, retries included
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = patience, help_heading = "The rehearsal")]
    pub patience: Duration,
    /// The most connections at once [default: 512, or what the limit of open files allows]
    #[arg(long, value_name = "N", value_parser = connections, help_heading = "The rehearsal")]
    pub connections: Option<usize>,
    /// Play against a target that is not on this machine without asking
    #[arg(long, help_heading = "The rehearsal")]
    pub yes: bool,
    /// Write a page with charts to this file; it opens without a network
    #[arg(long, value_name = "FILE", help_heading = "The rehearsal")]
    pub report: Option<PathBuf>,
    /// Write the verdict as JSON
    #[arg(long, help_heading = "The rehearsal")]
    pub json: bool,
}

/// How fast buyers arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// So many in a second.
    PerSecond(f64),
    /// All in the same moment.
    All,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "all" => Ok(Self::All),
            Ok(rate) if (0.01..=1_000_000.0).contains(&rate) => Ok(Self::PerSecond(rate)),
            _ => Err("it must be a number from 0.01 to 1000000, or `all`".to_owned()),
        }
    }
}

impl RehearseArgs {
    /// What does not go together.
    pub fn check(&self) -> Result<(), String> {
        if self.pay + self.cancel > 1.0 + 1e-9 {
            return Err(format!(
                "--pay {} and --cancel {} are more than 1 together: an order is paid or cancelled, not both. The default of \
                 --pay is 0.8",
                self.pay, self.cancel
            ));
        }
        if self.rate == Rate::All && !self.ramp.is_zero() {
            return Err("--ramp needs a --rate that it can climb to, not `all`".to_owned());
        }
        Ok(())
    }

    /// When the buyers are due.
    pub fn arrivals(&self) -> Arrivals {
        match self.rate {
            Rate::All => Arrivals::at_once(self.buyers),
            Rate::PerSecond(rate) => Arrivals::at_rate(self.buyers, rate, self.ramp),
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("it must be a number from 0 to 1".to_owned()),
    }
}

fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(connections) if (1..=60_000).contains(&connections) => Ok(connections),
        _ => Err("it must be a number from 1 to 60000".to_owned()),
    }
}

fn ramp(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO)
}

fn patience(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(100))
}

fn duration(text: &str, least: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= least && duration <= Duration::from_secs(3600) => Ok(duration),
        Ok(_) => Err(format!("it must be at least {} and at most 1h", humantime::format_duration(least))),
        Err(error) => Err(format!("{error}; write it like 500ms, 10s or 15m")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RehearseArgs,
    }

    fn parsed(more: &[&str]) -> Result<RehearseArgs, String> {
        let line = ["rehearse", "--target=http://localhost:3000", "--buyers=10", "--stock=5"];
        let line = Line::try_parse_from(line.iter().chain(more)).map_err(|error| error.to_string())?;
        line.args.check().map(|()| line.args)
    }

    #[test]
    fn the_defaults_are_a_trial() {
        let args = parsed(&[]).unwrap();
        assert_eq!((args.rate, args.pay, args.cancel), (Rate::PerSecond(1_000.0), 0.8, 0.0));
        assert_eq!((args.yes, args.json, args.report), (false, false, None));
    }

    #[test]
    fn a_target_must_be_named() {
        let error = Line::try_parse_from(["rehearse", "--buyers=10", "--stock=5"]).unwrap_err().to_string();
        assert!(error.contains("--target"), "{error}");
    }

    #[test]
    fn what_is_out_of_range_or_does_not_go_together_is_refused() {
        for (more, word) in [
            (&["--pay=1.1"][..], "0 to 1"),
            (&["--pay=-1"], "0 to 1"),
            (&["--cancel=NaN"], "0 to 1"),
            (&["--cancel=0.3"], "more than 1"),
            (&["--rate=0"], "`all`"),
            (&["--rate=inf"], "`all`"),
            (&["--rate=all", "--ramp=10s"], "--ramp"),
            (&["--ramp=2h"], "1h"),
            (&["--ramp=5"], "write it like"),
            (&["--patience=1ms"], "100ms"),
            (&["--connections=0"], "1 to 60000"),
        ] {
            let error = parsed(more).unwrap_err();
            assert!(error.contains(word), "{more:?}: {error}");
        }
        assert!(parsed(&["--pay=0.7", "--cancel=0.3", "--rate=all"]).is_ok());
    }
}
