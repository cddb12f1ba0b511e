//! Bookmarks of all VMs by name of the VM, tag, text, time and level, newest first.
//!
//! A search is a walk through one of two indexes that hold all it judges by. Text is found anywhere in a name, which no
//! ordered index answers, so the cost is the rows walked: those of the time range and the VMs, up to the limit. Over a
//! million bookmarks the worst case, a text that is nowhere, takes a few tenths of a second.

use tidemark_proto::ids::Lsn;

use super::pool::fetch_all;
use super::{Catalog, CatalogError, from_db, to_db};

/// Beyond one in this many VMs, walking by time and leaving VMs out is cheaper than walking each VM and sorting.
const FEW_VMS_DIVISOR: u64 = 8;

/// What is looked for; what is empty is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointSearch {
    /// Part of the bookmark's name, in any case.
    pub text: String,
    /// Name of the VM in any case, `*` for any characters.
    pub vm: String,
    /// Key and value of a tag of the VM.
    pub tag: Option<(String, String)>,
    /// From this time on, microseconds since 1970.
    pub from_us: u64,
    /// Up to this time, inside.
    pub to_us: u64,
    /// The level achieved.
    pub consistency: String,
    /// Rows at most.
    pub limit: u32,
}

/// A bookmark that was found.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct FoundPoint {
    /// The VM's name.
    pub vm: String,
    /// The bookmark's name.
    pub name: String,
    lsn: i64,
    time_us: i64,
    /// The level achieved.
    pub consistency: String,
}

impl FoundPoint {
    /// The point it names.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        Lsn(from_db(self.lsn))
    }

    /// Appliance time, microseconds since 1970.
    #[must_use]
    pub fn time_us(&self) -> u64 {
        from_db(self.time_us)
    }
}

/// A pattern for `LIKE … ESCAPE '!'`: the text as it stands, `*` as any characters where `wildcard`.
fn like(text: &str, wildcard: bool) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        match c {
            '*' if wildcard => pattern.push('%'),
            '%' | '_' | '!' => pattern.extend(['!', c]),
            c => pattern.push(c),
        }
    }
    pattern
}

/// Parameters: text, from, to, level or '', limit; and where VMs are chosen: name, tag's key or '', tag's value.
const EVERY_VM: &str = "SELECT v.name AS vm, b.name, b.lsn, b.time_us, b.consistency \
    FROM bookmarks b JOIN vms v ON v.id = b.vm_id \
    WHERE b.time_us >= $2 AND b.time_us <= $3 AND b.folded LIKE $1 ESCAPE '!' \
    AND ($4 = '' OR b.consistency = $4) \
    ORDER BY b.time_us DESC, b.vm_id, b.folded LIMIT $5";

/// Walks the chosen VMs, and sorts.
const FEW_VMS: &str = "SELECT v.name AS vm, b.name, b.lsn, b.time_us, b.consistency \
    FROM bookmarks b JOIN vms v ON v.id = b.vm_id \
    WHERE b.vm_id IN (SELECT c.id FROM vms c WHERE lower(c.name) LIKE lower($6) ESCAPE '!' AND ($7 = '' OR EXISTS \
        (SELECT 1 FROM vm_tags t WHERE t.vm_id = c.id AND t.key = $7 AND t.value = $8))) \
    AND b.time_us >= $2 AND b.time_us <= $3 AND b.folded LIKE $1 ESCAPE '!' \
    AND ($4 = '' OR b.consistency = $4) \
    ORDER BY b.time_us DESC, b.vm_id, b.folded LIMIT $5";

/// Walks by time. An expression instead of the column keeps both databases from walking by VM.
const MANY_VMS: &str = "SELECT v.name AS vm, b.name, b.lsn, b.time_us, b.consistency \
    FROM bookmarks b JOIN vms v ON v.id = b.vm_id \
    WHERE b.vm_id || '' IN (SELECT c.id FROM vms c WHERE lower(c.name) LIKE lower($6) ESCAPE '!' AND ($7 = '' OR EXISTS \
        (SELECT 1 FROM vm_tags t WHERE t.vm_id = c.id AND t.key = $7 AND t.value = $8))) \
    AND b.time_us >= $2 AND b.time_us <= $3 AND b.folded LIKE $1 ESCAPE '!' \
    AND ($4 = '' OR b.consistency = $4) \
    ORDER BY b.time_us DESC, b.vm_id, b.folded LIMIT $5";

/// How many VMs there are, and how many are chosen.
const COUNT_VMS: &str = "SELECT (SELECT COUNT(*) FROM vms), (SELECT COUNT(*) FROM vms c \
    WHERE lower(c.name) LIKE lower($1) ESCAPE '!' AND ($2 = '' OR EXISTS \
        (SELECT 1 FROM vm_tags t WHERE t.vm_id = c.id AND t.key = $2 AND t.value = $3)))";

impl Catalog {
    /// The bookmarks that fulfil all that is asked, newest first.
    ///
    /// # Errors
    /// What the database says.
    pub async fn search_points(&self, search: &PointSearch) -> Result<Vec<FoundPoint>, CatalogError> {
        let text = format!("%{}%", like(&search.text.to_lowercase(), false));
        let (from, to, limit) = (to_db(search.from_us), to_db(search.to_us), i64::from(search.limit));
        let level = search.consistency.as_str();
        if search.vm.is_empty() && search.tag.is_none() {
            return Ok(fetch_all!(self.pool, FoundPoint, EVERY_VM, &text, from, to, level, limit)?);
        }
        let name = if search.vm.is_empty() { "%".to_owned() } else { like(&search.vm, true) };
        let (key, value) = search.tag.clone().unwrap_or_default();
        let counts = fetch_all!(self.pool, (i64, i64), COUNT_VMS, &name, &key, &value)?;
        let (all, chosen) = counts.first().copied().unwrap_or_default();
        if chosen == 0 {
            return Ok(Vec::new());
        }
        let few = from_db(chosen).saturating_mul(FEW_VMS_DIVISOR) <= from_db(all);
        let sql = if few { FEW_VMS } else { MANY_VMS };
        Ok(fetch_all!(self.pool, FoundPoint, sql, &text, from, to, level, limit, &name, &key, &value)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_databases_take_for_wildcards_is_taken_as_it_stands() {
        assert_eq!(like("50%_!*", false), "50!%!_!!*");
        assert_eq!(like("web-*_1", true), "web-%!_1");
    }
}
