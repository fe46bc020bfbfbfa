//! Text that is not shown: passwords, tokens, keys.

use std::{
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::{Value as Json, json};

use super::{
    compound::Located,
    error::Errors,
    node::{Node, Spanned as _},
    schema::Schemas,
    value::ConfigValue,
};

/// Larger files are no secrets.
const MAX_SECRET: u64 = 64 << 10;

crate::config_oneof! {
    /// Where a secret is.
    pub enum Secret {
        /// In a file; white space at its ends does not count. Relative paths start at the file
        /// that they are written in.
        File(Located<PathBuf>) = "file",
        /// Here, best as `${NAME}`, a variable of the environment.
        Value(Hidden) = "value",
    }
}

impl Secret {
    /// The file, if it is in one, to be watched for changes.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::File(path) => Some(path.resolved()),
            Self::Value(_) => None,
        }
    }

    /// The secret. What is wrong with its file is reported there.
    pub fn read(&self, errors: &mut Errors) -> Option<Hidden> {
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::File(path) => read(&path.resolved())
                .map_err(|problem| errors.push(path, problem))
                .ok(),
        }
    }
}

fn read(path: &Path) -> Result<Hidden, String> {
    let problem = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
    let file = std::fs::File::open(path).map_err(problem)?;
    let mut text = String::new();
    file.take(MAX_SECRET + 1)
        .read_to_string(&mut text)
        .map_err(problem)?;
    if text.len() as u64 > MAX_SECRET {
        return Err(format!("`{}` is larger than 64 KiB", path.display()));
    }
    match text.trim() {
        "" => Err(format!("`{}` is empty", path.display())),
        text => Ok(Hidden(text.to_owned())),
    }
}

impl Located<PathBuf> {
    /// The path from the folder of the file that it is written in.
    pub fn resolved(&self) -> PathBuf {
        let file = self.span().file().map(Path::new);
        match file.and_then(Path::parent) {
            Some(folder) => folder.join(&self.value),
            None => self.value.clone(),
        }
    }
}

/// Text that neither logs nor printed configurations show.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl ConfigValue for Hidden {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match node.text() {
            Some(text) if !text.is_empty() && !node.is_null() => Some(Self(text.to_owned())),
            _ => {
                errors.expected(node, "a secret text");
                None
            }
        }
    }

    fn encode(&self) -> Option<Json> {
        Some("(hidden)".into())
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        json!({ "type": ["string", "number", "boolean"], "minLength": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn secret(folder: &Path, text: &str) -> (Secret, Errors) {
        let file = folder.join("a.yaml");
        let document = Document::parse(file.to_str().unwrap(), text).unwrap();
        (document.decode().unwrap(), Errors::new())
    }

    #[test]
    fn secrets_come_from_files_beside_the_configuration_or_from_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), " s3cret\n").unwrap();

        let (from_file, mut errors) = secret(folder.path(), "file: token");
        let (here, _) = secret(folder.path(), "value: other");

        assert_eq!(from_file.read(&mut errors).unwrap().reveal(), "s3cret");
        assert_eq!(from_file.file(), Some(folder.path().join("token")));
        assert_eq!(here.read(&mut errors).unwrap().reveal(), "other");
        assert!(errors.is_empty());
    }

    #[test]
    fn secrets_are_not_shown() {
        let (here, _) = secret(Path::new("/"), "value: s3cret");
        let shown = format!("{here:?} {:?}", here.encode());
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn a_file_that_is_missing_or_empty_is_reported_at_its_place() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        for (file, said) in [("none", "cannot read"), ("empty", "is empty")] {
            let (secret, mut errors) = secret(folder.path(), &format!("file: {file}"));
            assert_eq!(secret.read(&mut errors), None);
            let errors = errors.to_string();
            assert!(
                errors.contains("a.yaml:1:7") && errors.contains(said),
                "{errors}"
            );
        }
    }
}
