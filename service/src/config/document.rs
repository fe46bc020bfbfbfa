//! One configuration file.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Errors;
use super::limits::MAX_FILE_BYTES;
use super::node::{Node, Source};
use super::parse::{Lookup, parse};
use super::value::ConfigValue;

/// A file that has been read and has a structure; its values are not decoded yet.
#[derive(Clone, Debug)]
pub struct Document {
    source: Arc<Source>,
    root: Node,
    errors: Errors,
}

impl Document {
    /// Reads and parses a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not YAML.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Errors> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes));
        let problem = match read {
            Err(error) => format!("cannot be read: {error}"),
            Ok(_) => match String::from_utf8(bytes) {
                Ok(text) => return Self::parse(name, text),
                Err(error) => {
                    let valid = error.utf8_error().valid_up_to();
                    let before = error.as_bytes().iter().take(valid);
                    let line = before.filter(|byte| **byte == b'\n').count() + 1;
                    format!("line {line} is not UTF-8 text")
                }
            },
        };
        let mut errors = Errors::new();
        errors.push_file(name, problem);
        Err(errors)
    }

    /// Parses a text; `name` stands for it in messages.
    ///
    /// # Errors
    ///
    /// When it is not YAML.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Self, Errors> {
        Self::parse_with(name, text, &|name| std::env::var(name).ok())
    }

    /// Like [`Document::parse`], with another place to look `${NAME}` up.
    ///
    /// # Errors
    ///
    /// When it is not YAML.
    pub fn parse_with(
        name: impl Into<String>,
        text: impl Into<String>,
        env: Lookup<'_>,
    ) -> Result<Self, Errors> {
        let source = Arc::new(Source::new(name, text));
        let mut errors = Errors::new();
        if source.text().len() > MAX_FILE_BYTES {
            errors.push_file(
                source.name(),
                format!("larger than {} MiB", MAX_FILE_BYTES >> 20),
            );
            return Err(errors);
        }
        match parse(&source, env, &mut errors) {
            Some(root) => Ok(Self {
                source,
                root,
                errors,
            }),
            None => Err(errors),
        }
    }

    /// Decodes the whole document.
    ///
    /// # Errors
    ///
    /// All errors of the document.
    pub fn decode<T: ConfigValue>(&self) -> Result<T, Errors> {
        let (value, errors) = self.decode_partly();
        errors.into_result(value)
    }

    /// Decodes the whole document for a plan builder, who adds errors of its own before it asks
    /// [`Errors::into_result`]. The value may be there in spite of errors.
    pub fn decode_partly<T: ConfigValue>(&self) -> (Option<T>, Errors) {
        let mut errors = self.errors();
        let value = T::decode(&self.root, &mut errors);
        (value, errors)
    }

    /// The tree.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The errors found while parsing, to be continued: duplicate keys, missing variables.
    pub fn errors(&self) -> Errors {
        self.errors.clone()
    }

    /// The text.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Finds a file named in this one: relative paths start at the directory of this file.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        match Path::new(self.source.name()).parent() {
            Some(directory) => directory.join(path),
            None => path.as_ref().to_path_buf(),
        }
    }
}
