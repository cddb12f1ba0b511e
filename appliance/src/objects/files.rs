//! The folder of the records.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{Object, ObjectError, limits};
use crate::data_dir::write_private;

/// Records as files, one each.
#[derive(Debug)]
pub(super) struct RecordFolder {
    path: PathBuf,
}

/// A record that cannot be read: whatever it keeps is not known, so nothing may be freed.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    pub path: String,
    pub problem: String,
}

impl RecordFolder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self { path: path.to_path_buf() })
    }

    fn file(&self, id: Uuid) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// All records, and those that cannot be read. What a killed process half wrote is removed.
    pub(super) fn load(&self) -> io::Result<(Vec<Object>, Vec<Unreadable>)> {
        let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".new") {
                fs::remove_file(&path)?;
                continue;
            }
            let Ok(id) = name.parse::<Uuid>() else { continue };
            match read(&path, id) {
                Ok(object) => objects.push(object),
                Err(problem) => unreadable.push(Unreadable { path: path.display().to_string(), problem }),
            }
        }
        Ok((objects, unreadable))
    }

    /// Writes a record, durably, over an earlier one of the same object.
    pub(super) fn write(&self, object: &Object) -> Result<(), ObjectError> {
        let bytes = object.encode();
        if bytes.len() > limits::RECORD_MAX_BYTES {
            return Err(ObjectError::Limit(format!(
                "the record of '{}' is too long: use fewer tags",
                object.name
            )));
        }
        Ok(write_private(&self.file(object.id), &bytes)?)
    }

    /// Removes a record, durably.
    pub(super) fn remove(&self, id: Uuid) -> io::Result<()> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(&self.path)?.sync_all()
    }
}

fn read(path: &Path, id: Uuid) -> Result<Object, String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.len() > u64::try_from(limits::RECORD_MAX_BYTES).unwrap_or(u64::MAX) {
        return Err("it is too long".to_owned());
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let object = Object::decode(&bytes).map_err(|error| error.to_string())?;
    if object.id == id { Ok(object) } else { Err("it has the name of another object".to_owned()) }
}
