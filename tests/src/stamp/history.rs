//! The workload's own log: which writes were submitted and completed, in which order.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, bail};

/// What an operation does to its sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stamps them.
    Data,
    /// Zeroes them with a command to the disk.
    Zeroes,
    /// Discards them; the disks of these tests then read as zeroes.
    Discard,
}

/// One operation. Operations that touch a common sector are never in flight together, so they are in order of
/// `sequence` there; ticks are of one counter that is raised before each submission and after each completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Index in [`History::operations`].
    pub sequence: u64,
    /// What it does.
    pub kind: Kind,
    /// First sector.
    pub start_sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// Tick taken before the submission; `None`: never submitted.
    pub submitted: Option<u64>,
    /// Tick taken after a successful completion; `None`: unknown, running or failed.
    pub completed: Option<u64>,
}

/// Everything one workload did to one disk that held only zeroes before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Names the run; stamps of any other are foreign.
    pub run: u64,
    /// Size of the disk in sectors.
    pub disk_sectors: u64,
    /// By sequence number.
    pub operations: Vec<Operation>,
}

impl History {
    /// Number of operations that completed.
    #[must_use]
    pub fn completed(&self) -> usize {
        self.operations.iter().filter(|operation| operation.completed.is_some()).count()
    }

    /// Writes the history as text: one line each for the run, a submission, a completion.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "run {} {}", self.run, self.disk_sectors)?;
        for operation in &self.operations {
            let kind = match operation.kind {
                Kind::Data => "data",
                Kind::Zeroes => "zeroes",
                Kind::Discard => "discard",
            };
            let tick = |tick: Option<u64>| tick.map_or_else(|| "-".to_owned(), |tick| tick.to_string());
            writeln!(
                out,
                "{kind} {} {} {} {} {}",
                operation.sequence,
                operation.start_sector,
                operation.sectors,
                tick(operation.submitted),
                tick(operation.completed)
            )?;
        }
        Ok(())
    }

    /// Reads what [`History::write_to`] wrote.
    ///
    /// # Errors
    /// A line that is not of that form, or an operation out of sequence.
    pub fn read_from(input: impl BufRead) -> Result<Self> {
        let mut history = Self::default();
        for (number, line) in input.lines().enumerate() {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            let at = || format!("history line {}: {line}", number + 1);
            match words.as_slice() {
                ["run", run, sectors] => {
                    history.run = run.parse().with_context(at)?;
                    history.disk_sectors = sectors.parse().with_context(at)?;
                }
                [kind, sequence, start, sectors, submitted, completed] => {
                    let tick = |word: &str| -> Result<Option<u64>> {
                        if word == "-" { Ok(None) } else { Ok(Some(word.parse().with_context(at)?)) }
                    };
                    let operation = Operation {
                        sequence: sequence.parse().with_context(at)?,
                        kind: match *kind {
                            "data" => Kind::Data,
                            "zeroes" => Kind::Zeroes,
                            "discard" => Kind::Discard,
                            _ => bail!(at()),
                        },
                        start_sector: start.parse().with_context(at)?,
                        sectors: sectors.parse().with_context(at)?,
                        submitted: tick(submitted)?,
                        completed: tick(completed)?,
                    };
                    if operation.sequence != history.operations.len() as u64 {
                        bail!("{}: out of sequence", at());
                    }
                    history.operations.push(operation);
                }
                _ => bail!(at()),
            }
        }
        Ok(history)
    }
}
