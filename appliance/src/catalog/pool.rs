//! Connecting, migrating, and running one query text on either database.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use thiserror::Error;

/// Connections to PostgreSQL at most: catalog calls are rare and short; more would only take them from others.
const POSTGRES_CONNECTIONS: u32 = 8;

/// How long a call waits for a connection before it fails.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the catalog is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogUrl {
    /// `catalog.sqlite` in the data folder, or another file.
    Sqlite(Option<PathBuf>),
    /// A PostgreSQL URL.
    Postgres(String),
}

/// The text names no catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the catalog is 'sqlite', 'sqlite:FILE' or 'postgres://USER@HOST/DATABASE'")]
pub struct InvalidCatalogUrl;

impl FromStr for CatalogUrl {
    type Err = InvalidCatalogUrl;
    fn from_str(text: &str) -> Result<Self, InvalidCatalogUrl> {
        if text == "sqlite" {
            return Ok(Self::Sqlite(None));
        }
        if let Some(path) = text.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
            return Ok(Self::Sqlite(Some(path.into())));
        }
        let postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        postgres.then(|| Self::Postgres(text.to_owned())).ok_or(InvalidCatalogUrl)
    }
}

/// A catalog call failed.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// The database refused or cannot be reached.
    #[error("catalog: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("catalog schema: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The catalog was made by an appliance with another certificate authority.
    #[error(
        "this catalog belongs to another appliance (its CA has SHA-256 {0}): use that appliance's data folder, or another catalog"
    )]
    OtherAppliance(String),
    /// A name is taken.
    #[error("{0}")]
    Taken(String),
}

impl CatalogError {
    /// Turns a violated uniqueness into [`CatalogError::Taken`] with `text`.
    pub(crate) fn taken(error: sqlx::Error, text: impl FnOnce() -> String) -> Self {
        match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Self::Taken(text()),
            _ => Self::Database(error),
        }
    }
}

/// The catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(super) pool: Pool,
}

#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Runs a statement on either database; gives the number of rows changed.
macro_rules! execute {
    ($pool:expr, $sql:expr $(, $bind:expr)* $(,)?) => {
        match &$pool {
            $crate::catalog::pool::Pool::Sqlite(pool) =>
                sqlx::query($sql)$(.bind($bind))*.execute(pool).await.map(|done| done.rows_affected()),
            $crate::catalog::pool::Pool::Postgres(pool) =>
                sqlx::query($sql)$(.bind($bind))*.execute(pool).await.map(|done| done.rows_affected()),
        }
    };
}

/// Fetches rows of a type from either database.
macro_rules! fetch_all {
    ($pool:expr, $row:ty, $sql:expr $(, $bind:expr)* $(,)?) => {
        match &$pool {
            $crate::catalog::pool::Pool::Sqlite(pool) =>
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(pool).await,
            $crate::catalog::pool::Pool::Postgres(pool) =>
                sqlx::query_as::<_, $row>($sql)$(.bind($bind))*.fetch_all(pool).await,
        }
    };
}

/// Runs a block of statements in one transaction on either database; `$tx` names it inside. The block may use `?`.
macro_rules! transaction {
    ($pool:expr, $tx:ident, $body:block) => {
        match &$pool {
            $crate::catalog::pool::Pool::Sqlite(pool) => {
                let mut $tx = pool.begin().await?;
                let value = $body;
                $tx.commit().await?;
                value
            }
            $crate::catalog::pool::Pool::Postgres(pool) => {
                let mut $tx = pool.begin().await?;
                let value = $body;
                $tx.commit().await?;
                value
            }
        }
    };
}

pub(super) use {execute, fetch_all, transaction};

impl Catalog {
    /// Connects, brings the schema up to date and binds the catalog to the appliance whose CA has this hash.
    ///
    /// # Errors
    /// When the database cannot be reached or changed, or belongs to another appliance.
    pub async fn open(
        url: &CatalogUrl,
        default_file: &Path,
        ca_sha256: &[u8; 32],
    ) -> Result<Self, CatalogError> {
        let migrations = sqlx::migrate!("./migrations");
        let pool = match url {
            CatalogUrl::Sqlite(path) => {
                let pool = open_sqlite(path.as_deref().unwrap_or(default_file)).await?;
                migrations.run(&pool).await?;
                Pool::Sqlite(pool)
            }
            CatalogUrl::Postgres(url) => {
                let options = PgConnectOptions::from_str(url)?.application_name("tidemark-appliance");
                let pool = PgPoolOptions::new()
                    .max_connections(POSTGRES_CONNECTIONS)
                    .acquire_timeout(CONNECT_TIMEOUT)
                    .connect_with(options)
                    .await?;
                migrations.run(&pool).await?;
                Pool::Postgres(pool)
            }
        };
        let catalog = Self { pool };
        catalog.bind(ca_sha256).await?;
        Ok(catalog)
    }

    async fn bind(&self, ca_sha256: &[u8; 32]) -> Result<(), CatalogError> {
        let own: String = ca_sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let known = fetch_all!(self.pool, (String,), "SELECT ca_sha256 FROM appliance")?;
        match known.into_iter().next() {
            None => {
                execute!(self.pool, "INSERT INTO appliance (ca_sha256) VALUES ($1)", &own)?;
                Ok(())
            }
            Some((theirs,)) if theirs == own => Ok(()),
            Some((theirs,)) => Err(CatalogError::OtherAppliance(theirs)),
        }
    }

    /// Whether the catalog answers.
    ///
    /// # Errors
    /// What the database says.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        fetch_all!(self.pool, (String,), "SELECT ca_sha256 FROM appliance")?;
        Ok(())
    }

    /// Waits for running statements and closes the connections.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

async fn open_sqlite(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A nonce or a revocation that was answered must survive power loss.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(CONNECT_TIMEOUT);
    // One connection: SQLite has one writer, and transactions then never meet a lock.
    SqlitePoolOptions::new().max_connections(1).acquire_timeout(CONNECT_TIMEOUT).connect_with(options).await
}
