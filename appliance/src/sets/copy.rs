//! A copy of sets and tags beside the journals: what only administrators know would be lost with the catalog.
//!
//! `sets.json`: `format` "tidemark-sets", `version` 1, `hash` (BLAKE3 of the content's bytes, hexadecimal), and `content`, a JSON
//! text of its own: `sets` and `tags`. Written whole, and only when it changed. It is read when the catalog knows neither.

use serde::{Deserialize, Serialize};

use super::Set;
use crate::catalog::{Catalog, CatalogError, Pointing, SetRow};
use crate::core::Core;
use crate::data_dir::{DataDir, read_text, write_private};

const FORMAT: &str = "tidemark-sets";
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct File {
    format: String,
    version: u32,
    hash: String,
    content: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    sets: Vec<CopiedSet>,
    tags: Vec<CopiedTag>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CopiedSet {
    name: String,
    rules: Vec<String>,
    policy: String,
    created_us: u64,
    every_us: u64,
    hold: String,
    order: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CopiedTag {
    /// The VM's id.
    vm: String,
    key: String,
    value: String,
}

/// Writes the copy, if it is not as it should be. A failure is logged: the next change tries again.
pub(super) async fn keep(core: &Core) {
    if let Err(problem) = write(core).await {
        tracing::error!(problem, "cannot keep the copy of sets and tags beside the journals");
    }
}

async fn write(core: &Core) -> Result<(), String> {
    let failed = |error: CatalogError| error.to_string();
    let rows = core.catalog.sets().await.map_err(failed)?;
    let tags = core.catalog.all_tags().await.map_err(failed)?;
    let sets = rows.iter().map(|row| {
        let Pointing { every_us, hold, order } = row.pointing();
        let (rules, policy) = (row.rules(), row.policy().unwrap_or_default().to_owned());
        CopiedSet {
            name: row.name.clone(),
            rules,
            policy,
            created_us: row.created_us(),
            every_us,
            hold,
            order,
        }
    });
    let tags = tags
        .into_iter()
        .filter_map(|tag| Some(CopiedTag { vm: tag.vm()?.to_string(), key: tag.key, value: tag.value }));
    let content = Content { sets: sets.collect(), tags: tags.collect() };
    let path = core.data.sets();
    if content.sets.is_empty() && content.tags.is_empty() && !path.exists() {
        return Ok(());
    }
    let content = serde_json::to_string(&content).map_err(|error| error.to_string())?;
    let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
    let file = File { format: FORMAT.to_owned(), version: VERSION, hash, content };
    let text = serde_json::to_string(&file).map_err(|error| error.to_string())?;
    let kept = tokio::task::spawn_blocking(move || {
        if read_text(&path).is_ok_and(|old| old == text) {
            Ok(())
        } else {
            write_private(&path, text.as_bytes())
        }
    });
    kept.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Takes sets and tags from the copy, if the catalog has neither. How many sets that were. A copy that cannot be used is
/// logged and left where it is until something changes.
///
/// # Errors
/// What the database says.
pub async fn restore(catalog: &Catalog, data: &DataDir) -> Result<usize, CatalogError> {
    let path = data.sets();
    if !path.exists() || !catalog.sets().await?.is_empty() || !catalog.all_tags().await?.is_empty() {
        return Ok(0);
    }
    let content = match read_text(&path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
        Ok(content) => content,
        Err(problem) => {
            tracing::error!(path = %path.display(), problem, "the copy of sets and tags cannot be used");
            return Ok(0);
        }
    };
    for tag in content.tags {
        if let Ok(vm) = tag.vm.parse()
            && catalog.vm(vm).await?.is_some()
        {
            catalog.set_tag(vm, &tag.key, &tag.value).await?;
        }
    }
    let mut restored = 0;
    for copied in content.sets {
        let pointing = Pointing { every_us: copied.every_us, hold: copied.hold, order: copied.order };
        let row = SetRow::new(copied.name, &copied.rules, copied.policy, copied.created_us, &pointing);
        // Rules of a later version would match other VMs than they should.
        if Set::of(&row).rules.len() == row.rules().len() {
            catalog.put_set(&row).await?;
            restored += 1;
        } else {
            tracing::error!(set = row.name, "a set of a later version cannot be restored");
        }
    }
    Ok(restored)
}

fn parse(text: &str) -> Result<Content, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if file.format != FORMAT || file.version != VERSION {
        return Err(format!("it is of format {} version {}", file.format, file.version));
    }
    if blake3::hash(file.content.as_bytes()).to_hex().as_str() != file.hash {
        return Err("its hash is wrong".to_owned());
    }
    serde_json::from_str(&file.content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 1 writes it.
    const GOLDEN: &str = r#"{"format":"tidemark-sets","version":1,"hash":"HASH","content":"{\"sets\":[{\"name\":\"shop\",\"rules\":[\"name=web-*\"],\"policy\":\"\",\"created_us\":7,\"every_us\":5000000,\"hold\":\"free\",\"order\":[]}],\"tags\":[{\"vm\":\"v\",\"key\":\"app\",\"value\":\"shop\"}]}"}"#;

    fn golden() -> String {
        let content =
            GOLDEN.split_once("\"content\":\"").unwrap().1.trim_end_matches("\"}").replace("\\\"", "\"");
        GOLDEN.replace("HASH", blake3::hash(content.as_bytes()).to_hex().as_str())
    }

    #[test]
    fn a_copy_is_read_whole_or_not_at_all() {
        let content = parse(&golden()).unwrap();
        assert_eq!((content.sets[0].name.as_str(), content.sets[0].every_us), ("shop", 5_000_000));
        assert_eq!(content.tags[0].value, "shop");
        assert!(parse(&golden().replace("web-*", "web-1")).unwrap_err().contains("hash"));
        assert!(
            parse(&golden().replace("\"version\":1", "\"version\":2")).unwrap_err().contains("version 2")
        );
        assert!(parse("").is_err());
    }
}
