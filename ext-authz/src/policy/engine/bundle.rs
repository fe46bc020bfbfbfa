//! OPA bundles: modules, data and compiled policies in one `.tar.gz`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
};

use flate2::read::GzDecoder;
use regorus::Value;
use serde::Deserialize;

use super::{
    rego::{Module, Sources},
    signature::Signers,
};

/// How much larger a bundle may be when it is unpacked.
const MAX_RATIO: u64 = 10;
/// Most files in a bundle.
const MAX_FILES: usize = 10_000;

/// What a bundle says of itself.
#[derive(Debug, Default, Deserialize)]
struct Manifest {
    #[serde(default)]
    revision: String,
    /// The documents that it is for; `None` is all.
    roots: Option<Vec<String>>,
    rego_version: Option<u8>,
}

/// A bundle, unpacked and found whole.
pub(super) struct Bundle {
    pub(super) revision: Option<String>,
    pub(super) sources: Sources,
    /// `policy.wasm` at its root.
    #[cfg(feature = "opa-wasm")]
    pub(super) wasm: Option<Vec<u8>>,
}

impl Bundle {
    /// Unpacks a bundle of at most `max_size` bytes.
    ///
    /// # Errors
    /// When it is broken, too large, not signed as wanted, or has what is outside its roots.
    pub(super) fn read(
        packed: &[u8],
        max_size: u64,
        signers: Option<&Signers>,
    ) -> Result<Self, String> {
        if packed.len() as u64 > max_size {
            return Err(format!("the bundle is larger than {max_size} bytes"));
        }
        let files = unpack(packed, max_size.saturating_mul(MAX_RATIO))?;
        if let Some(signers) = signers {
            signers.verify(&files)?;
        }
        let manifest = match files.get(".manifest") {
            Some(manifest) => serde_json::from_slice(manifest)
                .map_err(|error| format!("the bundle's .manifest: {error}"))?,
            None => Manifest::default(),
        };
        if manifest.rego_version == Some(0) {
            return Err("the bundle is in version 0 of Rego; `opa fmt` brings it to 1".to_owned());
        }
        let roots = Roots::new(manifest.roots);
        let mut sources = Sources::default();
        for (path, content) in &files {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let text =
                || std::str::from_utf8(content).map_err(|_| format!("`{path}` is not UTF-8"));
            let data = match name {
                "data.json" => Value::from_json_str(text()?),
                "data.yaml" | "data.yml" => Value::from_yaml_str(text()?),
                _ if name.ends_with(".rego") => {
                    sources.modules.push(Module {
                        place: path.clone(),
                        text: text()?.to_owned(),
                    });
                    continue;
                }
                _ => continue,
            };
            let data = data.map_err(|error| format!("`{path}`: {error}"))?;
            let folder = folder.split('/').filter(|name| !name.is_empty());
            let data = folder.rev().fold(data, |data, name| {
                Value::from(BTreeMap::from([(Value::from(name), data)]))
            });
            roots.check_data(&data, path)?;
            sources.data.push((path.clone(), data));
        }
        for module in &sources.modules {
            let package = super::rego::package(module)?;
            if !roots.have(&package) {
                return Err(format!("`{}` is outside the bundle's roots", module.place));
            }
        }
        Ok(Self {
            revision: Some(manifest.revision).filter(|revision| !revision.is_empty()),
            sources,
            #[cfg(feature = "opa-wasm")]
            wasm: files.get("policy.wasm").cloned(),
        })
    }
}

/// The files of a bundle, by their paths without a slash at the beginning.
fn unpack(packed: &[u8], max_size: u64) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let broken = |error: std::io::Error| format!("the bundle is broken: {error}");
    let unpacked = GzDecoder::new(packed).take(max_size.saturating_add(1));
    let mut archive = tar::Archive::new(unpacked);
    let mut files = BTreeMap::new();
    let mut total = 0u64;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err("the bundle has something that is no file".to_owned());
        }
        let path = entry.path_bytes();
        let path = std::str::from_utf8(&path).map_err(|_| "a path in the bundle is not UTF-8")?;
        let path = path
            .trim_start_matches("./")
            .trim_start_matches('/')
            .to_owned();
        if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return Err(format!("the bundle has a file `{path}`"));
        }
        total = total.saturating_add(entry.size());
        if total > max_size || files.len() >= MAX_FILES {
            return Err(format!(
                "the bundle has more than {max_size} bytes or {MAX_FILES} files"
            ));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(broken)?;
        if files.insert(path.clone(), content).is_some() {
            return Err(format!("the bundle has `{path}` twice"));
        }
    }
    Ok(files)
}

/// The documents that a bundle may define.
struct Roots(BTreeSet<Vec<String>>);

impl Roots {
    fn new(roots: Option<Vec<String>>) -> Self {
        let roots = roots.unwrap_or_else(|| vec![String::new()]);
        let split = |root: &String| {
            let names = root.split('/').filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        Self(roots.iter().map(split).collect())
    }

    /// Whether a document is in one of them.
    fn have(&self, path: &[String]) -> bool {
        self.0.iter().any(|root| path.starts_with(root))
    }

    fn check_data(&self, data: &Value, file: &str) -> Result<(), String> {
        self.check(data, &mut Vec::new(), file)
    }

    fn check(&self, data: &Value, path: &mut Vec<String>, file: &str) -> Result<(), String> {
        if self.have(path) {
            return Ok(());
        }
        let above = self.0.iter().any(|root| root.starts_with(path));
        match data {
            Value::Object(fields) if above => {
                for (name, value) in fields.iter() {
                    path.push(
                        name.as_string()
                            .map(ToString::to_string)
                            .unwrap_or_default(),
                    );
                    self.check(value, path, file)?;
                    path.pop();
                }
                Ok(())
            }
            _ => Err(format!(
                "`{file}` has `{}`, which is outside the bundle's roots",
                path.join("/")
            )),
        }
    }
}
