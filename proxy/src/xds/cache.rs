//! The last good resources in a file, for a start without the control plane.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use attache_service::{
    config::json::{self, Value, json},
    xds::{Resource, ResourceType},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost_types::Any;

/// Larger files are not read.
const MOST_BYTES: u64 = 256 << 20;
/// The form of the file.
const FORM: u64 = 1;

pub(super) const TYPES: [ResourceType; 4] = [
    ResourceType::CLUSTER,
    ResourceType::CLUSTER_LOAD_ASSIGNMENT,
    ResourceType::LISTENER,
    ResourceType::ROUTE_CONFIGURATION,
];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is broken: {0}")]
    Broken(String),
    #[error("it is larger than {} MiB", MOST_BYTES >> 20)]
    TooLarge,
}

/// What a file holds: resources as they came, by type.
pub(super) type Saved = Vec<(ResourceType, Vec<Resource>)>;

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<Saved>, CacheError> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if size > MOST_BYTES {
        return Err(CacheError::TooLarge);
    }
    parse(&fs::read(path)?)
        .map(Some)
        .map_err(CacheError::Broken)
}

fn parse(text: &[u8]) -> Result<Saved, String> {
    let value: Value = json::from_slice(text).map_err(|error| error.to_string())?;
    if value["form"].as_u64() != Some(FORM) {
        return Err(format!("`form` is not {FORM}"));
    }
    let of = |kind: ResourceType| -> Result<Vec<Resource>, String> {
        let list = value["resources"][kind.type_url()].as_array();
        list.into_iter()
            .flatten()
            .map(|one| resource(kind, one))
            .collect()
    };
    TYPES
        .into_iter()
        .map(|kind| Ok((kind, of(kind)?)))
        .collect()
}

fn resource(kind: ResourceType, value: &Value) -> Result<Resource, String> {
    let text = |name: &str| {
        let text = value[name].as_str();
        text.ok_or_else(|| format!("a resource without `{name}`"))
    };
    let content = STANDARD.decode(text("content")?);
    Ok(Resource {
        name: text("name")?.to_owned(),
        version: text("version")?.to_owned(),
        content: Any {
            type_url: kind.type_url().to_owned(),
            value: content.map_err(|error| error.to_string())?,
        },
    })
}

/// The text of a file.
pub(super) fn text(saved: &Saved) -> String {
    let mut resources = json::Map::new();
    for (kind, list) in saved {
        let list = list.iter().map(|one| {
            json!({
                "name": one.name,
                "version": one.version,
                "content": STANDARD.encode(&one.content.value),
            })
        });
        resources.insert(kind.type_url().to_owned(), list.collect());
    }
    json!({ "form": FORM, "resources": resources }).to_string()
}

/// Replaces a file as a whole, readable by its owner alone.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = beside(path);
    // Left by a process that was killed.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn saved() -> Saved {
        let content = Any {
            type_url: ResourceType::CLUSTER.type_url().to_owned(),
            value: vec![10, 3, 119, 101, 98],
        };
        let web = Resource {
            name: "web".to_owned(),
            version: "7".to_owned(),
            content,
        };
        TYPES
            .into_iter()
            .map(|kind| match kind {
                ResourceType::CLUSTER => (kind, vec![web.clone()]),
                kind => (kind, Vec::new()),
            })
            .collect()
    }

    #[test]
    fn what_was_written_is_read_and_only_its_owner_can() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xds.json");
        fs::write(beside(&path), "left by somebody").unwrap();

        write(&path, &text(&saved())).unwrap();

        assert_eq!(read(&path).unwrap(), Some(saved()));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_file_is_nothing_and_a_broken_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xds.json");
        assert_eq!(read(&path).unwrap(), None);
        let half = text(&saved());
        for broken in [&half[..half.len() / 2], "{}", r#"{"form": 2}"#] {
            fs::write(&path, broken).unwrap();
            assert!(
                matches!(read(&path), Err(CacheError::Broken(_))),
                "{broken}"
            );
        }
    }
}
