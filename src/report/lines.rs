//! Files of one JSON object a line, appended while a run goes on, and gone on with from a checkpoint.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// What a line holds.
pub trait Line: Serialize + DeserializeOwned + std::fmt::Debug {
    /// Version of the lines; it changes when a key changes its meaning or goes.
    const SCHEMA: u32;
    /// What a file of them holds, for messages.
    const WHAT: &'static str;

    /// The version it has.
    fn schema(&self) -> u32;
    /// Steps done.
    fn step(&self) -> u64;
    /// Whether each of its numbers is one that JSON can hold.
    fn is_finite(&self) -> bool;
}

/// Appends lines.
#[derive(Debug)]
pub struct Lines<L> {
    path: PathBuf,
    file: File,
    kind: PhantomData<L>,
}

impl<L: Line> Lines<L> {
    /// A new, empty file; one that stands there is emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(fail::<L>(path, "write"))?;
        Ok(Lines { path: path.into(), file, kind: PhantomData })
    }

    /// Goes on with the file of a run that goes on from a checkpoint at `step`: lines of later steps, which will be made
    /// again, and a last line without its end are cut off. A missing file is begun anew. Also gives the lines that stay.
    pub fn resume(path: &Path, step: u64) -> Result<(Self, Vec<L>)> {
        let fail = || fail::<L>(path, "go on with");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail())?;
        let (mut keep, mut lines) = (0, Vec::new());
        for (line, end) in read_with_ends::<L>(path)? {
            if line.step() > step {
                break;
            }
            lines.push(line);
            keep = end;
        }
        file.set_len(keep).map_err(fail())?;
        file.seek(SeekFrom::Start(keep)).map_err(fail())?;
        Ok((Lines { path: path.into(), file, kind: PhantomData }, lines))
    }

    /// Appends a line with one write.
    pub fn write(&mut self, line: &L) -> Result<()> {
        if !line.is_finite() {
            return Err(Error::Failed(format!("{}: a number that is not finite in {line:?}", self.path.display())));
        }
        let mut text = serde_json::to_vec(line).map_err(|e| Error::Failed(format!("{}: {e}", self.path.display())))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(fail::<L>(&self.path, "write"))
    }

    /// Brings the file to the disk, before the checkpoint of the same step.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(fail::<L>(&self.path, "write"))
    }
}

/// All lines of a file. A last line without its end, as a killed process leaves it, is left out.
pub fn read_lines<L: Line>(path: &Path) -> Result<Vec<L>> {
    Ok(read_with_ends(path)?.into_iter().map(|(line, _)| line).collect())
}

/// Lines, each with the offset of the byte after it.
fn read_with_ends<L: Line>(path: &Path) -> Result<Vec<(L, u64)>> {
    let text = std::fs::read_to_string(path).map_err(fail::<L>(path, "read"))?;
    let mut lines = Vec::new();
    let mut end = 0;
    for (i, text) in text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n')) {
        end += text.len() as u64;
        let line: L = serde_json::from_str(text).map_err(|e| Error::data(path, format!("line {}: {e}", i + 1)))?;
        if line.schema() != L::SCHEMA {
            let what = format!("line {}: schema {}, this engine reads {}", i + 1, line.schema(), L::SCHEMA);
            return Err(Error::data(path, what));
        }
        lines.push((line, end));
    }
    Ok(lines)
}

fn fail<L: Line>(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |e| Error::Failed(format!("{path}: cannot {doing} {}: {e}", L::WHAT))
}
