//! Objects, copied from their records so that they can be searched with SQL.

use super::pool::{execute, transaction};
use super::{Catalog, CatalogError, to_db};
use crate::objects::Object;

/// Inserts a copy within a transaction of either database.
macro_rules! insert {
    ($tx:ident, $object:expr) => {{
        let object = $object;
        let id = object.id.to_string();
        let sql = "INSERT INTO objects (id, name, kind, size_bytes, hash, created_us, published, hold, \
                   locked_until_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        sqlx::query(sql)
            .bind(&id)
            .bind(&object.name)
            .bind(object.kind.word())
            .bind(to_db(object.size_bytes))
            .bind(blake3::Hash::from_bytes(object.hash).to_hex().to_string())
            .bind(to_db(object.created_us))
            .bind(i64::from(object.published))
            .bind(i64::from(object.hold))
            .bind(to_db(object.locked_until_us))
            .execute(&mut *$tx)
            .await?;
        for (key, value) in &object.tags {
            let sql = "INSERT INTO object_tags (object_id, key, value) VALUES ($1, $2, $3)";
            sqlx::query(sql).bind(&id).bind(key).bind(value).execute(&mut *$tx).await?;
        }
    }};
}

impl Catalog {
    /// Makes the copies those of `objects`: all of them, and no others.
    ///
    /// # Errors
    /// What the database says; nothing is changed then.
    pub async fn replace_objects(&self, objects: &[std::sync::Arc<Object>]) -> Result<(), CatalogError> {
        transaction!(self.pool, tx, {
            sqlx::query("DELETE FROM object_tags").execute(&mut *tx).await?;
            sqlx::query("DELETE FROM objects").execute(&mut *tx).await?;
            for object in objects {
                insert!(tx, object);
            }
        });
        Ok(())
    }

    /// Copies an object over its earlier copy.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_object(&self, object: &Object) -> Result<(), CatalogError> {
        let id = object.id.to_string();
        transaction!(self.pool, tx, {
            sqlx::query("DELETE FROM object_tags WHERE object_id = $1").bind(&id).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM objects WHERE id = $1").bind(&id).execute(&mut *tx).await?;
            insert!(tx, object);
        });
        Ok(())
    }

    /// Drops the copy of an object.
    ///
    /// # Errors
    /// What the database says.
    pub async fn remove_object(&self, id: uuid::Uuid) -> Result<(), CatalogError> {
        let id = id.to_string();
        execute!(self.pool, "DELETE FROM object_tags WHERE object_id = $1", &id)?;
        execute!(self.pool, "DELETE FROM objects WHERE id = $1", &id)?;
        Ok(())
    }
}
