//! From the settings of a policy to the policy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use attache_service::{
    config::{Located, Size},
    fetch::{Fetched, Fetcher, Validators},
};
use aws_lc_rs::digest;
use regorus::Value;

use super::{
    Program,
    bundle::Bundle,
    rego::{self, Module, Sources},
    signature::Signers,
};
use crate::policy::{
    config::{self, BundlePlace, PolicyEngine, Rego},
    follow::{Brought, Fetch, FetchStats, Followed, Follower, Pace},
    planning::Planning,
};

/// The rule that decides.
const QUERY: &str = "data.envoy.authz.allow";
/// Most files of a policy, and deepest folder.
const MAX_FILES: usize = 1000;
const MAX_DEPTH: usize = 16;
/// Largest bundle, and time between two looks for another one.
const MAX_BUNDLE: Size = Size(32 << 20);
const REFRESH: Duration = Duration::from_secs(60);
const MIN_REFRESH: Duration = Duration::from_millis(100);

/// Where a policy is.
#[derive(Debug)]
pub(super) enum Place {
    /// `None` when what is wrong with it was reported.
    Here(Option<Arc<Program>>),
    /// Wherever it comes from, it is here as soon as it is fetched.
    Followed(Arc<Followed<Program>>),
}

impl Place {
    pub(super) fn program(&self) -> Option<Arc<Program>> {
        match self {
            Self::Here(program) => program.clone(),
            Self::Followed(followed) => followed.value().as_ref().cloned(),
        }
    }

    /// Finds a policy; what is wrong with it is reported at its `name`.
    pub(super) fn plan(
        name: &Located<String>,
        engine: &PolicyEngine,
        limit: Duration,
        planning: &mut Planning<'_>,
    ) -> Self {
        let (compiler, bundle, others) = match engine {
            PolicyEngine::Rego(raw) => {
                let query = raw.query.as_ref().map_or(QUERY, |query| &query.value);
                let language = Language::Rego {
                    query: query.to_owned(),
                };
                let others = raw.inline.is_some() || !raw.files.is_empty() || !raw.data.is_empty();
                (language, &raw.bundle, others)
            }
            PolicyEngine::Wasm(raw) => {
                let language = Language::wasm(raw);
                (
                    language,
                    &raw.bundle,
                    raw.file.is_some() || raw.data.is_some(),
                )
            }
        };
        let compiler = Compiler {
            language: compiler,
            limit,
        };
        if let Some(bundle) = bundle {
            if others {
                planning
                    .errors
                    .push(bundle, "a bundle has all that a policy is made of");
            }
            return from_bundle(name, bundle, compiler, planning);
        }
        let program = match engine {
            PolicyEngine::Rego(raw) => from_files(raw, planning)
                .and_then(|sources| compiler.rego(sources))
                .map_err(|problem| planning.errors.push(name, problem))
                .ok(),
            PolicyEngine::Wasm(raw) => compiler.wasm_file(name, raw, planning),
        };
        Self::Here(program.map(Arc::new))
    }
}

/// What a policy is written in, and what decides in it.
#[derive(Debug, Clone)]
pub(super) enum Language {
    Rego {
        query: String,
    },
    #[cfg(feature = "opa-wasm")]
    Wasm {
        entrypoint: String,
    },
    #[cfg(not(feature = "opa-wasm"))]
    Unavailable,
}

/// Makes policies of what they are written in.
#[derive(Debug, Clone)]
struct Compiler {
    language: Language,
    limit: Duration,
}

impl Compiler {
    fn rego(&self, sources: Sources) -> Result<Program, String> {
        match &self.language {
            Language::Rego { query } => {
                let program = rego::Program::load(sources, query, self.limit)?;
                Ok(Program::rego(program))
            }
            _ => Err("this is no policy in Rego".to_owned()),
        }
    }

    fn bundle(&self, bundle: Bundle) -> Result<Program, String> {
        let mut program = match &self.language {
            Language::Rego { .. } => self.rego(bundle.sources)?,
            #[cfg(feature = "opa-wasm")]
            Language::Wasm { entrypoint } => {
                let wasm = bundle.wasm.ok_or("the bundle has no `policy.wasm`")?;
                let data = bundle.sources.data;
                Program::wasm(super::wasm::Program::load(
                    &wasm, data, entrypoint, self.limit,
                )?)
            }
            #[cfg(not(feature = "opa-wasm"))]
            Language::Unavailable => return Err(UNAVAILABLE.to_owned()),
        };
        program.revision = bundle.revision;
        Ok(program)
    }
}

#[cfg(not(feature = "opa-wasm"))]
const UNAVAILABLE: &str =
    "this program is built without WebAssembly; the cargo feature `opa-wasm` adds it";

#[cfg(not(feature = "opa-wasm"))]
impl Language {
    fn wasm(_: &config::Wasm) -> Self {
        Self::Unavailable
    }
}

#[cfg(not(feature = "opa-wasm"))]
impl Compiler {
    fn wasm_file(
        &self,
        name: &Located<String>,
        _: &config::Wasm,
        planning: &mut Planning<'_>,
    ) -> Option<Program> {
        planning.errors.push(name, UNAVAILABLE);
        None
    }
}

#[cfg(feature = "opa-wasm")]
impl Language {
    fn wasm(raw: &config::Wasm) -> Self {
        let entrypoint = raw.entrypoint.as_ref();
        let entrypoint = entrypoint.map_or("envoy/authz/allow", |entrypoint| &entrypoint.value);
        Self::Wasm {
            entrypoint: entrypoint.to_owned(),
        }
    }
}

#[cfg(feature = "opa-wasm")]
impl Compiler {
    fn wasm_file(
        &self,
        name: &Located<String>,
        raw: &config::Wasm,
        planning: &mut Planning<'_>,
    ) -> Option<Program> {
        let Language::Wasm { entrypoint } = &self.language else {
            return None;
        };
        let Some(file) = &raw.file else {
            planning
                .errors
                .push(name, "either `file` or `bundle` is needed");
            return None;
        };
        let wasm = planning
            .read_bytes(&file.value, MAX_BUNDLE.bytes())
            .map_err(|problem| planning.errors.push(file, problem))
            .ok()?;
        let data = match &raw.data {
            Some(file) => vec![read_data(file, planning)?],
            None => Vec::new(),
        };
        super::wasm::Program::load(&wasm, data, entrypoint, self.limit)
            .map(Program::wasm)
            .map_err(|problem| planning.errors.push(file, problem))
            .ok()
    }
}

fn from_bundle(
    name: &Located<String>,
    raw: &Located<config::Bundle>,
    compiler: Compiler,
    planning: &mut Planning<'_>,
) -> Place {
    let max_size = raw.max_size.unwrap_or(MAX_BUNDLE);
    let signature = raw.signature.as_ref();
    let signers = signature.map(|signature| Signers::plan(signature, planning));
    match &raw.place {
        BundlePlace::File(file) => {
            if let Some(refresh) = &raw.refresh {
                planning
                    .errors
                    .push(refresh, "files are loaded anew when they change");
            }
            let program = planning
                .read_bytes(&file.value, max_size.bytes())
                .and_then(|packed| Bundle::read(&packed, max_size.bytes(), signers.as_ref()))
                .and_then(|bundle| compiler.bundle(bundle))
                .map_err(|problem| planning.errors.push(file, problem));
            Place::Here(program.ok().map(Arc::new))
        }
        BundlePlace::Url(remote) => {
            let interval = raw.refresh.as_ref().map_or(REFRESH, |refresh| {
                if refresh.value < MIN_REFRESH {
                    planning
                        .errors
                        .push(refresh, format!("expected at least {MIN_REFRESH:?}"));
                }
                refresh.value
            });
            let Some(fetcher) = planning.fetcher(remote, max_size) else {
                return Place::Here(None);
            };
            // The settings may hold secrets; and other keys make another policy.
            let keys = signers.as_ref().map(Signers::digest);
            let settings = format!("{raw:?} {compiler:?} {keys:?}");
            let settings = digest::digest(&digest::SHA256, settings.as_bytes());
            let key = format!("policy {} {settings:?}", name.value);
            let followed = planning.kept(key, Followed::<Program>::default);
            let hold = planning.gate.hold(format!("policy `{}`", name.value));
            let fetch = FetchBundle {
                fetcher,
                known: Validators::default(),
                max_size: max_size.bytes(),
                signers,
                compiler,
            };
            let follower = Follower {
                name: name.value.clone(),
                pace: Pace {
                    interval,
                    max_age: None,
                },
                stats: FetchStats::new(name, planning.metrics),
                revision: planning.revision.clone(),
                hold: Some(hold),
            };
            planning.run(Box::pin(followed.clone().follow(fetch, follower)));
            Place::Followed(followed)
        }
    }
}

/// Fetches a bundle, and makes a policy of it when it is whole.
struct FetchBundle {
    fetcher: Fetcher,
    known: Validators,
    max_size: u64,
    signers: Option<Signers>,
    compiler: Compiler,
}

impl Fetch for FetchBundle {
    type Value = Program;

    async fn fetch(&mut self, current: Option<&Program>) -> Result<Brought<Program>, String> {
        if current.is_none() {
            self.known = Validators::default();
        }
        let fetched = self.fetcher.fetch(&self.known).await;
        match fetched.map_err(|error| error.to_string())? {
            Fetched::Same { .. } => Ok(Brought {
                value: None,
                fresh_for: None,
            }),
            Fetched::Document(document) => {
                let bundle = Bundle::read(&document.body, self.max_size, self.signers.as_ref());
                let program = bundle
                    .and_then(|bundle| self.compiler.bundle(bundle))
                    .map_err(|problem| format!("{}: {problem}", self.fetcher.url()))?;
                let revision = program.revision.as_deref().unwrap_or_default();
                tracing::info!(url = %self.fetcher.url(), revision, "bundle loaded");
                self.known = document.validators;
                Ok(Brought {
                    value: Some(program),
                    fresh_for: None,
                })
            }
        }
    }
}

fn from_files(raw: &Rego, planning: &mut Planning<'_>) -> Result<Sources, String> {
    let mut sources = Sources::default();
    for file in &raw.files {
        let before = sources.modules.len();
        match add(&file.value, MAX_DEPTH, &mut sources, planning) {
            Err(problem) => planning.errors.push(file, problem),
            Ok(()) if sources.modules.len() == before => {
                planning.errors.push(file, "there is no `.rego` file");
            }
            Ok(()) => {}
        }
    }
    if let Some(text) = &raw.inline {
        sources.modules.push(Module {
            place: "inline".to_owned(),
            text: text.value.clone(),
        });
    }
    let data = raw.data.iter();
    sources.data = data.filter_map(|file| read_data(file, planning)).collect();
    Ok(sources)
}

/// Adds a `.rego` file, or all in a folder.
fn add(
    path: &Path,
    depth: usize,
    sources: &mut Sources,
    planning: &mut Planning<'_>,
) -> Result<(), String> {
    let full = planning.resolve(path);
    if !full.is_dir() {
        let text = planning.read(path)?;
        sources.modules.push(Module {
            place: path.display().to_string(),
            text,
        });
        return match sources.modules.len() {
            ..=MAX_FILES => Ok(()),
            _ => Err(format!("there are more than {MAX_FILES} files")),
        };
    }
    let problem = |error: std::io::Error| format!("cannot read `{}`: {error}", full.display());
    if depth == 0 {
        return Err(format!("`{}` is too deep", full.display()));
    }
    planning.watch(path);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(&full).map_err(problem)? {
        entries.push(entry.map_err(problem)?.file_name());
    }
    entries.sort();
    for name in entries {
        let path: PathBuf = path.join(&name);
        let name = name.to_string_lossy();
        let hidden = name.starts_with('.');
        let module = name.ends_with(".rego") && !name.ends_with("_test.rego");
        if !hidden && (module || planning.resolve(&path).is_dir()) {
            add(&path, depth.saturating_sub(1), sources, planning)?;
        }
    }
    Ok(())
}

/// The data in a JSON or YAML file, and where it is from.
fn read_data(file: &Located<PathBuf>, planning: &mut Planning<'_>) -> Option<(String, Value)> {
    let text = planning.read_located(file)?;
    let kind = file.value.extension();
    let yaml = kind.is_some_and(|kind| kind == "yaml" || kind == "yml");
    let data = if yaml {
        Value::from_yaml_str(&text)
    } else {
        Value::from_json_str(&text)
    };
    match data {
        Ok(data @ Value::Object(_)) => Some((file.value.display().to_string(), data)),
        Ok(_) => {
            planning.errors.push(file, "the data is no object");
            None
        }
        Err(error) => {
            planning.errors.push(file, error.to_string());
            None
        }
    }
}
