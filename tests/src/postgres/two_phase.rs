//! Transactions across two servers by prepared transactions, and what two recovered servers must agree on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

use super::{Postgres, USER, as_user};

/// Of a hundred transactions, so many are given up once both sides have prepared.
const GIVEN_UP_PERCENT: u64 = 10;

/// A session of `psql` that does one thing after another.
struct Session {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Session {
    fn open(database: &Postgres) -> Result<Self> {
        let mut psql = as_user("psql")?;
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", USER, "-h"]).arg(&database.run);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("psql has an input")?;
        let answers = BufReader::new(child.stdout.take().context("psql has an output")?).lines();
        Ok(Self { child, input, answers })
    }

    /// Returns once the server has done it.
    fn run(&mut self, statements: &str) -> Result<()> {
        writeln!(self.input, "{statements}\n\\echo done")?;
        let answer = self.answers.next().context("psql ended")??;
        ensure!(answer == "done", "psql said {answer}");
        Ok(())
    }

    fn close(mut self) -> Result<()> {
        drop(self.input);
        ensure!(self.child.wait()?.success(), "psql failed");
        Ok(())
    }
}

/// Makes the table on a server.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(database: &Postgres) -> Result<()> {
    database.sql("create table transfers (id text primary key, amount int)").map(drop)
}

/// One client's transactions across both servers, until `stop` is set. How many were committed.
///
/// # Errors
/// When a server refuses something.
pub fn run(databases: [&Postgres; 2], client: usize, stop: &AtomicBool) -> Result<u64> {
    let [mut left, mut right] = [Session::open(databases[0])?, Session::open(databases[1])?];
    let mut committed = 0;
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("t-{client}-{number}");
        let first = |amount: i32| {
            format!("begin; insert into transfers values ('{id}', {amount}); prepare transaction '{id}';")
        };
        left.run(&first(-1))?;
        right.run(&first(1))?;
        let given_up = number * 7 % 100 < GIVEN_UP_PERCENT;
        let last = format!("{} prepared '{id}';", if given_up { "rollback" } else { "commit" });
        // Either side may be the first to know.
        let (first, second) = if number % 2 == 0 { (&mut left, &mut right) } else { (&mut right, &mut left) };
        first.run(&last)?;
        second.run(&last)?;
        committed += u64::from(!given_up);
    }
    left.close()?;
    right.close()?;
    Ok(committed)
}

/// What a server has of the transactions.
#[derive(Debug)]
struct Side {
    committed: BTreeSet<String>,
    prepared: BTreeSet<String>,
}

impl Side {
    fn of(database: &Postgres) -> Result<Self> {
        let ids =
            |statement| Ok::<_, anyhow::Error>(database.sql(statement)?.lines().map(str::to_owned).collect());
        Ok(Self {
            committed: ids("select id from transfers")?,
            prepared: ids("select gid from pg_prepared_xacts")?,
        })
    }
}

/// What two recovered servers have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Transactions that both have, after those that were prepared are resolved.
    pub committed: usize,
    /// Those that were prepared on one side at least.
    pub prepared: usize,
}

/// Whether two recovered servers are of one moment: no transaction is committed on one side and absent on the other. Then
/// resolves what is prepared (commits what the other side has committed, rolls back the rest) and compares all of it.
///
/// # Errors
/// What they do not agree on.
pub fn check(databases: [&Postgres; 2]) -> Result<Agreed> {
    let sides = [Side::of(databases[0])?, Side::of(databases[1])?];
    let mut prepared = 0;
    for ((database, own), other) in databases.iter().zip(&sides).zip(sides.iter().rev()) {
        let absent: Vec<_> = own
            .committed
            .iter()
            .filter(|id| !other.committed.contains(*id) && !other.prepared.contains(*id))
            .collect();
        ensure!(absent.is_empty(), "committed on one side and absent on the other: {absent:?}");
        for id in &own.prepared {
            let verdict = if other.committed.contains(id) { "commit" } else { "rollback" };
            database.sql(&format!("{verdict} prepared '{id}'"))?;
            prepared += 1;
        }
    }
    let [left, right] = [Side::of(databases[0])?, Side::of(databases[1])?];
    ensure!(left.committed == right.committed, "they differ after all is resolved");
    let sums = [
        databases[0].sql("select coalesce(sum(amount), 0) from transfers")?,
        databases[1].sql("select coalesce(sum(amount), 0) from transfers")?,
    ];
    let [left_sum, right_sum] = [sums[0].parse::<i64>()?, sums[1].parse::<i64>()?];
    ensure!(left_sum + right_sum == 0, "the sums are {left_sum} and {right_sum}");
    Ok(Agreed { committed: left.committed.len(), prepared })
}
