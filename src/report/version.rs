//! Which source this binary was built from, as far as its build told.

use serde::{Deserialize, Serialize};

/// The engine that made a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Package version.
    pub version: String,
    /// Commit of the source, hex; `None` when it was not built from a repository.
    pub commit: Option<String>,
    /// Whether tracked files differed from that commit.
    pub dirty: Option<bool>,
}

impl Engine {
    /// This binary. Commit and dirty flag come from the environment of the build: `SPARSE_ENGINE_COMMIT` and
    /// `SPARSE_ENGINE_DIRTY` ("true", "1", "false" or "0"), which the build script sets.
    pub fn this() -> Self {
        Engine {
            version: env!("CARGO_PKG_VERSION").to_string(),
            commit: option_env!("SPARSE_ENGINE_COMMIT").filter(|c| !c.is_empty()).map(str::to_string),
            dirty: option_env!("SPARSE_ENGINE_DIRTY").and_then(|d| match d {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            }),
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.version)?;
        if let Some(commit) = &self.commit {
            let short: String = commit.chars().take(12).collect();
            write!(f, " ({short}{})", if self.dirty == Some(true) { ", changed" } else { "" })?;
        }
        Ok(())
    }
}
