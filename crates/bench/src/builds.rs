//! The builds of antre that are measured.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use antre_testkit::error::Result;

use crate::{plan::Plan, variant::Variant};

pub(crate) struct Builds {
    antre: PathBuf,
    /// Of this checkout, when `antre` is built from it.
    commit: Option<String>,
    baseline: Option<PathBuf>,
}

impl Builds {
    /// Builds this checkout as a user does, unless the plan names a binary.
    pub(crate) fn find(plan: &Plan) -> Result<Self> {
        if plan.baseline.is_none() && plan.variants.iter().any(|variant| variant.is_baseline()) {
            return Err("this variant needs --baseline".into());
        }
        Ok(Self {
            antre: match &plan.antre {
                Some(path) => executable(path)?,
                None => build()?,
            },
            commit: plan.antre.is_none().then(commit),
            baseline: plan.baseline.as_deref().map(executable).transpose()?,
        })
    }

    pub(crate) fn of(&self, variant: Variant) -> &Path {
        match &self.baseline {
            Some(baseline) if variant.is_baseline() => baseline,
            _ => &self.antre,
        }
    }

    /// What each prints for `--version`, and the commit where it is known.
    pub(crate) fn versions(&self) -> Result<(String, Option<String>)> {
        let mut antre = version(&self.antre)?;
        if let Some(commit) = &self.commit {
            antre += &format!(", commit {commit}");
        }
        Ok((antre, self.baseline.as_deref().map(version).transpose()?))
    }
}

/// Where a run writes: in the target directory, which is on a disk. A directory for temporary files may be in memory, and
/// the embedded mode commits to it.
pub(crate) fn directory() -> Result<PathBuf> {
    Ok(target()?.join("antre-bench"))
}

/// This program is in a directory of the target directory that is named after its profile.
fn target() -> Result<PathBuf> {
    let program = env::current_exe()?;
    Ok(program.ancestors().nth(2).ok_or("no target directory")?.to_owned())
}

fn build() -> Result<PathBuf> {
    let target = target()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--package", "antre", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if !status.success() {
        return Err("antre cannot be built".into());
    }
    executable(&target.join("release/antre"))
}

fn commit() -> String {
    let describe = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"];
    let output = Command::new("git").args(describe).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn executable(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()).into())
}

fn version(path: &Path) -> Result<String> {
    let output = Command::new(path).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
