//! All objects: their records in memory, on disk, and in the catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidemark_journal::image::Image;
use uuid::Uuid;

use super::files::{RecordFolder, Unreadable};
use super::record::check_name;
use super::{Object, ObjectError, ObjectKind, limits};
use crate::data_dir::FileError;

/// The objects of an appliance. Calls block on the disk.
#[derive(Debug)]
pub struct Objects {
    records: RecordFolder,
    unreadable: Vec<Unreadable>,
    /// Held by whoever changes records, over what the disk takes for it; before `state`.
    changing: Mutex<()>,
    /// Never held over a wait: every frame of a splitter that names content looks here.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_name: BTreeMap<String, Arc<Object>>,
    /// Records replaced or removed that somebody may still be reading.
    leaving: Vec<Weak<Object>>,
}

/// What changes of an object; `None` and empty leave it as it is.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Publish a template, or take that back.
    pub published: Option<bool>,
    /// Hold, or release.
    pub hold: Option<bool>,
    /// Lock until then, microseconds since 1970: later than before.
    pub locked_until_us: Option<u64>,
    /// Tags to set.
    pub set_tags: BTreeMap<String, String>,
    /// Keys of tags to remove.
    pub remove_tags: BTreeSet<String>,
}

impl Objects {
    /// Reads all records in `folder`, which is made when missing. A record that cannot be read is an error in the log,
    /// and nothing is freed while there is one.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        let fail = |action, error| FileError::new(action, folder, error);
        let records = RecordFolder::open(folder).map_err(|error| fail("creating", error))?;
        let (objects, mut unreadable) = records.load().map_err(|error| fail("reading", error))?;
        let mut by_name: BTreeMap<String, Arc<Object>> = BTreeMap::new();
        for object in objects {
            if by_name.contains_key(&object.name) {
                let path = folder.join(object.id.to_string()).display().to_string();
                unreadable
                    .push(Unreadable { path, problem: format!("another is named '{}' too", object.name) });
            } else {
                by_name.insert(object.name.clone(), Arc::new(object));
            }
        }
        for one in &unreadable {
            tracing::error!(path = one.path, problem = one.problem, "the record of an object cannot be used");
        }
        let state = Mutex::new(State { by_name, leaving: Vec::new() });
        Ok(Self { records, unreadable, changing: Mutex::new(()), state })
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All objects by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Object>> {
        self.state().by_name.values().cloned().collect()
    }

    /// An object by its name. Its content stays as long as the answer is held.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn get(&self, name: &str) -> Result<Arc<Object>, ObjectError> {
        let found = self.state().by_name.get(name).cloned();
        found.ok_or_else(|| ObjectError::Missing(name.to_owned()))
    }

    /// An object by its id, as [`Objects::get`].
    #[must_use]
    pub fn by_id(&self, id: Uuid) -> Option<Arc<Object>> {
        self.state().by_name.values().find(|object| object.id == id).cloned()
    }

    /// Templates that splitters may be told about.
    #[must_use]
    pub fn published_templates(&self) -> Vec<Arc<Object>> {
        let published = |object: &Arc<Object>| object.published && object.kind == ObjectKind::Template;
        self.list().into_iter().filter(published).collect()
    }

    /// Whether there are any.
    #[must_use]
    pub fn any_published(&self) -> bool {
        self.state().by_name.values().any(|object| object.published && object.kind == ObjectKind::Template)
    }

    /// Whether this very object is there and published now. Names are never given anew, only removed.
    #[must_use]
    pub fn is_published(&self, object: &Object) -> bool {
        let state = self.state();
        let now = state.by_name.get(&object.name);
        now.is_some_and(|now| now.id == object.id && now.published && now.kind == ObjectKind::Template)
    }

    /// What must be kept in the chunk store: the content of all objects, of those too that were removed and are still
    /// being read.
    ///
    /// # Errors
    /// With the path of a record that cannot be read: what it keeps is not known, so nothing may be freed.
    pub fn roots(&self) -> Result<Vec<Image>, String> {
        if let Some(one) = self.unreadable.first() {
            return Err(format!(
                "the record {} cannot be used ({}): put a copy of it back, or remove it if its object is not needed",
                one.path, one.problem
            ));
        }
        let mut state = self.state();
        state.leaving.retain(|object| object.strong_count() > 0);
        let leaving = state.leaving.iter().filter_map(Weak::upgrade).map(|object| object.image.clone());
        Ok(state.by_name.values().map(|object| object.image.clone()).chain(leaving).collect())
    }

    /// Refuses a name that a new object cannot have.
    ///
    /// # Errors
    /// [`ObjectError::Invalid`], [`ObjectError::Taken`], [`ObjectError::Limit`].
    pub fn check_free(&self, name: &str) -> Result<(), ObjectError> {
        check_name(name)?;
        let state = self.state();
        if state.by_name.contains_key(name) {
            return Err(ObjectError::Taken(name.to_owned()));
        }
        if state.by_name.len() >= limits::OBJECTS_MAX {
            return Err(ObjectError::Limit(format!(
                "there are {} objects: remove some",
                limits::OBJECTS_MAX
            )));
        }
        Ok(())
    }

    /// Adds an object whose chunks are durable. It is there for good when this returns.
    ///
    /// # Errors
    /// As [`Objects::check_free`]; when the record cannot be written.
    pub fn add(&self, object: Object) -> Result<Arc<Object>, ObjectError> {
        object.check()?;
        // Two uploads of one name may come to their ends together.
        let _changing = self.changing();
        self.check_free(&object.name)?;
        self.records.write(&object)?;
        let object = Arc::new(object);
        self.state().by_name.insert(object.name.clone(), Arc::clone(&object));
        Ok(object)
    }

    /// Changes marks and tags, durably.
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; [`ObjectError::Kept`] when a lock would be shortened; [`ObjectError::Invalid`].
    pub fn change(&self, name: &str, change: &Change) -> Result<Arc<Object>, ObjectError> {
        let _changing = self.changing();
        let before = self.get(name)?;
        let mut object = Object::clone(&before);
        if let Some(until_us) = change.locked_until_us {
            if until_us < object.locked_until_us {
                return Err(ObjectError::Kept(format!(
                    "'{name}' is locked for longer than that, and no lock can be shortened: name a later time"
                )));
            }
            object.locked_until_us = until_us;
        }
        object.published = change.published.unwrap_or(object.published);
        object.hold = change.hold.unwrap_or(object.hold);
        object.tags.retain(|key, _| !change.remove_tags.contains(key));
        object.tags.extend(change.set_tags.clone());
        object.check()?;
        self.records.write(&object)?;
        let object = Arc::new(object);
        let mut state = self.state();
        state.by_name.insert(name.to_owned(), Arc::clone(&object));
        state.leaving.push(Arc::downgrade(&before));
        Ok(object)
    }

    /// Removes an object, durably. Its chunks are freed by the next collection, once nobody reads them. `locks_us` is the
    /// time by which locks end, microseconds since 1970: [`Now::locks_us`](crate::retention::Now::locks_us).
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; [`ObjectError::Kept`] while it is held or locked.
    pub fn remove(&self, name: &str, locks_us: u64) -> Result<Uuid, ObjectError> {
        let _changing = self.changing();
        let object = self.get(name)?;
        if object.hold {
            return Err(ObjectError::Kept(format!(
                "'{name}' is held: run `tidemark object set {name} --release` first"
            )));
        }
        if object.locked_until_us > locks_us {
            return Err(ObjectError::Kept(format!(
                "'{name}' is locked and cannot be removed by anyone before the time that `tidemark object list` shows"
            )));
        }
        let path = Path::new(name);
        self.records
            .remove(object.id)
            .map_err(|error| FileError::new("removing the record of", path, error))?;
        let mut state = self.state();
        state.by_name.remove(name);
        state.leaving.push(Arc::downgrade(&object));
        state.leaving.retain(|object| object.strong_count() > 0);
        Ok(object.id)
    }
}

#[cfg(test)]
mod tests {
    use tidemark_journal::store::KeyDomain;
    use tidemark_proto::ids::{DiskId, Lsn};

    use super::*;
    use crate::clock::now_us;

    fn object(name: &str, kind: ObjectKind) -> Object {
        Object {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            kind,
            size_bytes: 5,
            hash: [0; 32],
            tags: BTreeMap::new(),
            created_us: 1,
            published: false,
            hold: false,
            locked_until_us: 0,
            new_bytes: 0,
            image: Image::empty(KeyDomain([1; 16]), DiskId(1), Lsn(0), 512),
        }
    }

    #[test]
    fn objects_are_there_after_a_restart_with_their_marks() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        objects.add(object("a", ObjectKind::Template)).unwrap();
        objects.add(object("b", ObjectKind::Iso)).unwrap();
        assert!(matches!(objects.add(object("a", ObjectKind::Iso)), Err(ObjectError::Taken(_))));
        let publish = Change { published: Some(true), ..Change::default() };
        objects.change("a", &publish).unwrap();
        assert!(matches!(objects.change("b", &publish), Err(ObjectError::Invalid(_))));
        let tags = BTreeMap::from([("os".to_owned(), "debian".to_owned())]);
        objects.change("b", &Change { set_tags: tags, hold: Some(true), ..Change::default() }).unwrap();
        drop(objects);
        std::fs::write(dir.path().join(format!("{}.new", Uuid::new_v4())), "torn").unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        assert_eq!(objects.list().len(), 2);
        let published: Vec<_> = objects.published_templates().iter().map(|one| one.name.clone()).collect();
        assert_eq!(published, ["a"]);
        let b = objects.get("b").unwrap();
        assert!(b.hold && b.tags["os"] == "debian");
        assert_eq!(objects.roots().unwrap().len(), 2);
    }

    #[test]
    fn holds_and_locks_keep_and_locks_only_grow() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        objects.add(object("a", ObjectKind::File)).unwrap();
        let hold = |hold| Change { hold: Some(hold), ..Change::default() };
        objects.change("a", &hold(true)).unwrap();
        assert!(matches!(objects.remove("a", now_us()), Err(ObjectError::Kept(_))));
        objects.change("a", &hold(false)).unwrap();
        let until = |us| Change { locked_until_us: Some(us), ..Change::default() };
        let later = now_us() + 3_600_000_000;
        objects.change("a", &until(later)).unwrap();
        assert!(matches!(objects.change("a", &until(later - 1)), Err(ObjectError::Kept(_))));
        assert!(matches!(objects.remove("a", now_us()), Err(ObjectError::Kept(_))));
        // Negative control: a lock that has passed keeps nothing.
        objects.add(object("b", ObjectKind::File)).unwrap();
        objects.change("b", &until(1)).unwrap();
        objects.remove("b", now_us()).unwrap();
        assert!(matches!(objects.get("b"), Err(ObjectError::Missing(_))));
    }

    #[test]
    fn a_reader_keeps_what_was_removed_and_damage_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        objects.add(object("a", ObjectKind::File)).unwrap();
        let reader = objects.get("a").unwrap();
        objects.remove("a", now_us()).unwrap();
        assert_eq!(objects.roots().unwrap().len(), 1);
        drop(reader);
        assert_eq!(objects.roots().unwrap().len(), 0);
        let id = objects.add(object("c", ObjectKind::File)).unwrap().id;
        drop(objects);
        let path = dir.path().join(id.to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        assert!(objects.roots().unwrap_err().contains("put a copy"));
    }
}
