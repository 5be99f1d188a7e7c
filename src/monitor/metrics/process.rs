//! The process, as Linux describes it in `/proc/self`. Elsewhere there are no such files, and no such metrics.

use std::fs;

/// Processor time in `/proc` is counted in units of 1/100 s, on every architecture that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time that the process used, in seconds.
pub(super) fn cpu_seconds() -> Option<f64> {
    cpu_seconds_in(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Memory that the process holds, in bytes.
pub(super) fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(field(&status, "VmRSS:")? * 1024.0)
}

pub(super) fn threads() -> Option<f64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "Threads:")
}

pub(super) fn open_files() -> Option<f64> {
    // One of them is the directory that is read here.
    Some((fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)) as f64)
}

pub(super) fn max_files() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    field(&limits, "Max open files")
}

/// The first number behind a name.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The 14th and 15th field. The second one, the program's name, may contain anything but ends with the last parenthesis.
fn cpu_seconds_in(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    let (user, system) = (times.next()??, times.next()??);
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_it_is_written() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 9 0 12345 1 2";
        assert_eq!(cpu_seconds_in(stat), Some(4.0));
        assert_eq!(cpu_seconds_in("7 (a) S 1"), None);
        assert_eq!(field("VmPeak: 3 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12.0));
        assert_eq!(field("Max open files            unlimited  unlimited  files", "Max open files"), None);
    }

    #[test]
    fn this_process_has_memory_files_and_threads() {
        assert!(resident_bytes().unwrap() > 1_000_000.0);
        assert!(open_files().unwrap() >= 3.0 && max_files().unwrap() >= open_files().unwrap());
        assert!(threads().unwrap() >= 1.0 && cpu_seconds().unwrap() >= 0.0);
    }
}
